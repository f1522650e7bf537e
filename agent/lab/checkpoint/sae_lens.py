"""The SAELens format, for SAEs of a standard architecture: `sae_lens.SAE.load_from_disk` opens these files."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Protocol

import torch
from torch import Tensor

from agent.lab.checkpoint.graph import GraphError

# max(0, pre) where pre = x @ W_enc + b_enc exceeds the threshold, else 0; `relu` has no threshold.
ARCHITECTURES = frozenset({"relu", "jumprelu", "batchtopk"})


class _Header(Protocol):
    model: str
    hook_name: str
    d_in: int
    d_sae: int
    scale: float
    architecture: str | None


def files(
    header: _Header, tensors: Mapping[str, Tensor], x: Tensor, latents: Tensor
) -> dict[str, str | dict[str, Tensor]]:
    """Return cfg.json and sae_weights.safetensors for an SAE that takes the model's own, unscaled activations.

    The encoder's latents `[n, d_sae]` of scaled activations x `[n, d_in]` tell if it subtracts b_dec first. Raises
    GraphError if they do not fit the architecture in the header.
    """
    required = {"W_enc", "b_enc"} | (set() if header.architecture == "relu" else {"threshold"})
    if header.architecture not in ARCHITECTURES or not required <= set(tensors):
        raise GraphError(
            f"architecture {header.architecture!r} is not one of {', '.join(sorted(ARCHITECTURES))}, or lacks "
            f"{', '.join(sorted(required - set(tensors))) or 'nothing'}; give None if it is not a standard one"
        )
    scale = header.scale
    weights = {  # scaling is folded in: (scale * x - b_dec) @ W_enc == (x - b_dec / scale) @ (scale * W_enc)
        "W_enc": tensors["W_enc"] * scale,
        "b_enc": tensors["b_enc"].clone(),
        "W_dec": tensors["W_dec"] / scale,
        "b_dec": tensors["b_dec"] / scale,
    }
    if header.architecture != "relu":
        weights["threshold"] = tensors["threshold"].clone()
    config = {
        "architecture": "standard" if header.architecture == "relu" else "jumprelu",
        "d_in": header.d_in,
        "d_sae": header.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": _subtracts_b_dec(header, tensors, x, latents),
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": header.model,
            "hook_name": header.hook_name,
            "sae_lens_version": version("sae_lens"),
        },
    }
    return {"cfg.json": json.dumps(config, indent=2) + "\n", "sae_weights.safetensors": weights}


def _subtracts_b_dec(header: _Header, tensors: Mapping[str, Tensor], x: Tensor, latents: Tensor) -> bool:
    def error(offset: Tensor) -> float:
        pre = (x - offset) @ tensors["W_enc"] + tensors["b_enc"]
        expected = pre.relu() if header.architecture == "relu" else pre.relu() * (pre > tensors["threshold"])
        return float((expected - latents).nan_to_num(0, 0, 0).abs().mean())

    with_b_dec, without = error(tensors["b_dec"]), error(torch.zeros_like(tensors["b_dec"]))
    if min(with_b_dec, without) > 1e-3 * (1e-3 + float(latents.nan_to_num(0, 0, 0).abs().mean())):
        raise GraphError(
            f"encode is not the {header.architecture} encoder of the W_enc, b_enc and threshold given with it; "
            "correct them, or give the architecture as None"
        )
    return with_b_dec <= without
