"""SAE-Bench's custom SAEs: a directory of cfg.json (`sae.cfg.to_dict()`) and sae.pt (`sae.state_dict()`)."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_bench.custom_saes import batch_topk_sae, gated_sae, jumprelu_sae, relu_sae, topk_sae
from torch import Tensor

from agent.lab.errors import UserError
from agent.lab.foreign import reading
from agent.lab.foreign.encoders import Encoder, JumpReLU, ReLU, TopK, gated
from agent.lab.foreign.sae import Foreign, Original, checked, record, require_top, size, word
from agent.lab.results import Imported

CONFIG, WEIGHTS = "cfg.json", "sae.pt"
LIBRARY = f"sae_bench {version('sae_bench')}"
KINDS = {  # SAE-Bench's words, which its classes' own loaders write into cfg.architecture -> a checkpoint's
    "standard": "relu",
    "standard_april_update": "relu",
    "p_anneal": "relu",
    "topk": "topk",
    "batch_topk": "batchtopk",
    "matryoshka_batch_topk": "matryoshka",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
THRESHOLDED = ("batchtopk", "matryoshka")  # by one threshold for all latents


def is_one(folder: Path) -> bool:
    """Return whether a folder holds an SAE in this format."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def read(folder: Path, source: str) -> Foreign:
    """Read a directory with an SAE of one of SAE-Bench's classes. Raises UserError."""
    config = reading.json_object(folder / CONFIG)
    if (architecture := word(config, "architecture", source)) not in KINDS:
        raise UserError(
            f"{source}: its {CONFIG} has the architecture {(architecture or '')[:40]!r}, and an SAE here is of one "
            f"of SAE-Bench's classes: set it to one of {', '.join(KINDS)} if it is that"
        )
    tensors = reading.pickled(folder / WEIGHTS)
    k = tensors["k"].item() if "k" in tensors and tensors["k"].numel() == 1 else None
    tokens = config.get("training_tokens")  # below 0: not known
    imported = record(
        source=source,
        format="sae_bench",
        architecture=architecture,
        declared_l0=k,
        declared_tokens=tokens if isinstance(tokens, int) and tokens > 0 else None,
        context=config.get("context_size"),
        prepend_bos=config.get("prepend_bos") is not False,
    )
    sizes = {"d_in": size(config, "d_in", source), "d_sae": size(config, "d_sae", source), "k": k}
    subject = {"model": word(config, "model_name", source), "hook_name": word(config, "hook_name", source)}
    return convert(imported, KINDS[architecture], tensors, sizes, **subject)


def convert(
    imported: Imported,
    kind: str,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    *,
    model: str | None,
    hook_name: str | None,
) -> Foreign:
    """Return an SAE of SAE-Bench's classes, by the names of their tensors. Raises UserError.

    `sizes` are d_in, d_sae, and k where the kind has one.
    """
    source, d_in, d_sae = imported.source, sizes["d_in"], sizes["d_sae"]
    own = checked(tensors, _shapes(kind, d_in, d_sae), source)
    if kind == "topk":
        require_top(k := size(sizes, "k", source), d_sae, source)
        sizes = {**sizes, "k": k}
    return Foreign(
        imported.model_copy(update={"library": LIBRARY}),
        _encoder(kind, own, sizes),
        own["W_dec"],
        own["b_dec"],
        kind,
        model=model,
        hook_name=hook_name,
        original=_in_sae_bench(kind, own, sizes),
    )


def _encoder(kind: str, own: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> Encoder:
    W_enc, b_dec = own["W_enc"], own["b_dec"]
    if kind == "relu":
        return ReLU(W_enc, own["b_enc"], b_dec)
    if kind == "topk":
        return TopK(W_enc, own["b_enc"], sizes["k"], b_dec)
    if kind == "gated":
        return gated(W_enc, own["gate_bias"], own["r_mag"], own["b_mag"], b_dec)
    subtracted = b_dec if kind in THRESHOLDED else None
    return JumpReLU(W_enc, own["b_enc"], own["threshold"].expand(sizes["d_sae"]).contiguous(), subtracted)


def _shapes(kind: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if kind == "gated":
        return shapes | dict.fromkeys(("gate_bias", "r_mag", "b_mag"), (d_sae,))
    shapes["b_enc"] = (d_sae,)
    if kind == "jumprelu":
        shapes["threshold"] = (d_sae,)
    return shapes | ({"threshold": ()} if kind in THRESHOLDED else {})


def _in_sae_bench(kind: str, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> Original:
    """Return an SAE in SAE-Bench's class."""
    classes: dict[str, Callable[..., Any]] = {
        "relu": relu_sae.ReluSAE,
        "topk": topk_sae.TopKSAE,
        "jumprelu": jumprelu_sae.JumpReluSAE,
        "gated": gated_sae.GatedSAE,
    } | dict.fromkeys(THRESHOLDED, batch_topk_sae.BatchTopKSAE)
    shape = {"d_in": sizes["d_in"], "d_sae": sizes["d_sae"], "dtype": torch.float32, "device": torch.device("cpu")}
    k = {"k": sizes["k"]} if kind == "topk" else dict.fromkeys(["k"], 1) if kind in THRESHOLDED else {}
    sae = classes[kind](**shape, **k, model_name="", hook_layer=0)
    sae.load_state_dict(dict(tensors), strict=False)  # k is set, and not used beside a threshold
    return sae.requires_grad_(False)
