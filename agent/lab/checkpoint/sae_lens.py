"""The SAELens format, for SAEs of its kinds: `sae_lens.SAE.load_from_disk` opens these files, and its tools use them."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from agent.lab.checkpoint.graph import GraphError
from agent.lab.checkpoint.header import Header
from agent.lab.defaults import is_world

HUB_DATASET = re.compile(r"(.+)@[0-9a-f]{40}", re.DOTALL)  # pinned by its commit, as corpus.py does


def _relu(pre: Tensor, _: "Parts") -> Tensor:
    return pre.relu()


def _thresholded(pre: Tensor, parts: "Parts") -> Tensor:
    return pre.relu() * (pre > parts.tensors["threshold"])


def _topk(pre: Tensor, parts: "Parts") -> Tensor:
    values, indices = pre.topk(parts.k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


def _abstopk(pre: Tensor, parts: "Parts") -> Tensor:
    indices = pre.abs().topk(parts.k, dim=-1).indices
    return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))


@dataclass(frozen=True)
class Kind:
    """A kind of SAE: what SAELens calls it, and its latents as a function of pre = x @ W_enc + b_enc."""

    name: str
    select: Callable[[Tensor, "Parts"], Tensor]
    has_threshold: bool = False
    has_k: bool = False


# By the word for it in a header. What BatchTopK trains has one threshold afterwards, and is a JumpReLU to SAELens. So
# is a gated encoder, whose two paths share W_enc (Rajamanoharan et al. 2024, arXiv 2404.16014, appendix E): its gate
# is open where pre, of the magnitudes, exceeds a threshold.
ARCHITECTURES = {
    "relu": Kind("standard", _relu),
    "jumprelu": Kind("jumprelu", _thresholded, has_threshold=True),
    "batchtopk": Kind("jumprelu", _thresholded, has_threshold=True),
    "matryoshka": Kind("jumprelu", _thresholded, has_threshold=True),
    "gated": Kind("gated", _thresholded, has_threshold=True),
    "topk": Kind("topk", _topk, has_k=True),
    "abstopk": Kind("abstopk", _abstopk, has_k=True),
}


@dataclass(frozen=True)
class Parts:
    """An SAE of a kind of SAELens, on scaled activations: `W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold`, and k."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    k: int  # 0 where the kind has none
    subtracts_b_dec: bool  # from the activations, before the encoder

    def unscaled(self, scale: float) -> dict[str, Tensor]:
        """Return the weights for the model's own activations, which are to be multiplied by `scale` no more."""
        # (scale * x - b_dec) @ W_enc == (x - b_dec / scale) @ (scale * W_enc)
        weights = {
            "W_enc": self.tensors["W_enc"] * scale,
            "b_enc": self.tensors["b_enc"].clone(),
            "W_dec": self.tensors["W_dec"] / scale,
            "b_dec": self.tensors["b_dec"] / scale,
        }
        return weights | ({"threshold": self.tensors["threshold"].clone()} if self.kind.has_threshold else {})


def parts(header: Header, tensors: Mapping[str, Tensor], x: Tensor, latents: Tensor) -> Parts:
    """Return the parts of an SAE of one of SAELens' kinds.

    The encoder's latents `[n, d_sae]` of scaled activations x `[n, d_in]` tell if it subtracts b_dec first. Raises
    GraphError if they do not fit the architecture in the header.
    """
    kind = ARCHITECTURES.get(header.architecture or "")
    required = {"W_enc", "b_enc"} | ({"threshold"} if kind and kind.has_threshold else set())
    if kind is None or not required <= set(tensors):
        raise GraphError(
            f"architecture {header.architecture!r} is not one of {', '.join(ARCHITECTURES)}, or lacks "
            f"{', '.join(sorted(required - set(tensors))) or 'nothing'}; give None if it is not a standard one"
        )
    k = _k(header) if kind.has_k else 0
    found = [Parts(kind, tensors, k, subtracts) for subtracts in (True, False)]
    errors = [_error(each, x, latents) for each in found]
    if min(errors) > 1e-3 * (1e-3 + float(latents.nan_to_num(0, 0, 0).abs().mean())):
        given = "W_enc, b_enc and threshold" if kind.has_threshold else "W_enc and b_enc"
        raise GraphError(
            f"encode is not the {header.architecture} encoder of the {given} given with it"
            f"{f' and K {k}' if k else ''}; correct them, or give the architecture as None"
        )
    return found[errors.index(min(errors))]


def files(header: Header, found: Parts) -> dict[str, str | dict[str, Tensor]]:
    """Return cfg.json and sae_weights.safetensors for an SAE that takes the model's own, unscaled activations."""
    weights = found.unscaled(header.scale)
    if found.kind.name == "gated":
        b_enc, threshold = weights.pop("b_enc"), weights.pop("threshold")
        weights |= {"b_mag": b_enc, "b_gate": b_enc - threshold, "r_mag": torch.zeros_like(b_enc)}
    config: dict[str, Any] = {
        "architecture": found.kind.name,
        "d_in": header.d_in,
        "d_sae": header.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": found.subtracts_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if header.hook_name.endswith("hook_z") else "none",
        "metadata": metadata(header),
    }
    if found.k:
        config |= {"k": found.k, "rescale_acts_by_decoder_norm": False}
    return {"cfg.json": json.dumps(config, indent=2) + "\n", "sae_weights.safetensors": weights}


def metadata(header: Header) -> dict[str, Any]:
    """Return what SAELens' tools read of an SAE beside its weights: whence its activations are, and its training."""
    training = header.training
    known: dict[str, Any] = {
        "model_name": header.model,
        "hook_name": header.hook_name,
        "hook_layer": header.layer,
        "hook_head_index": None,
        "training_tokens": training.tokens,
        "training_architecture": header.architecture,
        "l0": training.final_l0,
        "sae_lens_version": version("sae_lens"),
        "sae_lens_training_version": None,  # it was not trained by SAELens
    }
    if is_world(header.model):
        return known
    return known | {
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},  # as it is trained on the model's own stream
        "context_size": training.context,
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "sequence_separator_token": "eos",
        "disable_concat_sequences": False,
        "dataset_path": match[1] if (match := HUB_DATASET.fullmatch(training.text)) else None,
    }


def _k(header: Header) -> int:
    """Return K of a kind that keeps so many latents of each row. Raises GraphError if the header does not say it."""
    k = header.training.settings.get("K", 0)
    if not isinstance(k, int | float) or k != int(k) or not 0 < k <= header.d_sae:
        raise GraphError(f"K of its settings is {k!r}; a {header.architecture} SAE keeps a whole number of latents")
    return int(k)


def _error(found: Parts, x: Tensor, latents: Tensor) -> float:
    """Return the mean error of the latents `[n, d_sae]` that the parts give of scaled activations x `[n, d_in]`."""
    pre = (x - found.tensors["b_dec"] if found.subtracts_b_dec else x) @ found.tensors["W_enc"]
    expected = found.kind.select(pre + found.tensors["b_enc"], found)
    return float((expected - latents).nan_to_num(0, 0, 0).abs().mean())
