"""SAEs of sparsify: a directory of cfg.json and sae.safetensors, named by its hookpoint."""

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.lab.errors import UserError, describe
from agent.lab.foreign import reading
from agent.lab.foreign.encoders import GroupMax, TopK
from agent.lab.foreign.sae import Foreign, Original, checked, record, require_top, size, word

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
PACKAGE = "eai-sparsify"
TRAINING = "config.json"  # in the directory above: of the training of all its hookpoints
HOOKPOINT = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(mlp|attention|attn|self_attn))?")
HOOKS = {None: "hook_resid_post", "mlp": "hook_mlp_out"}  # any other part is an attention
ENCODERS = {"topk": TopK, "groupmax": GroupMax}


def is_one(folder: Path) -> bool:
    """Return whether a folder holds an SAE in this format."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def read(folder: Path, source: str) -> Foreign:
    """Read a directory that sparsify saved. Raises UserError."""
    config = reading.json_object(folder / CONFIG)
    _refuse(config, source)
    d_in, k, activation = size(config, "d_in", source), size(config, "k", source), config.get("activation") or "topk"
    d_sae = config.get("num_latents") or d_in * size(config, "expansion_factor", source)
    require_top(k, d_sae := size({"num_latents": d_sae}, "num_latents", source), source)
    if activation == "groupmax" and d_sae % k:
        raise UserError(f"{source}: its {d_sae:,} latents are not in {k} groups of one size, as groupmax needs")
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    own = checked(reading.safetensors(folder / WEIGHTS), shapes, source)
    training = reading.object_beside(folder.parent / TRAINING)
    library = _installed()
    imported = record(
        source=source,
        format="sparsify",
        architecture=activation,
        declared_l0=k,
        context=training.get("ctx_len"),
        prepend_bos=False,  # its windows are cut out of texts that are joined by the end token
        library=library,
    )
    return Foreign(
        imported,
        ENCODERS[activation](own["encoder.weight"].T.contiguous(), own["encoder.bias"], k, own["b_dec"]),
        own["W_dec"],
        own["b_dec"],
        "topk" if activation == "topk" else None,
        model=word(training, "model", source),
        hook_name=hook_name(folder.name),
        original=_in_sparsify(folder, source) if library else None,
        warnings=() if library else (f"it was not compared with {PACKAGE}, which is not installed",),
    )


def hook_name(hookpoint: str) -> str | None:
    """Return TransformerLens' name of a module's output, or None for one that has none.

    >>> hook_name("layers.3.mlp")
    'blocks.3.hook_mlp_out'
    """
    found = HOOKPOINT.fullmatch(hookpoint)
    return f"blocks.{found[1]}.{HOOKS.get(found[2], 'hook_attn_out')}" if found else None


def _refuse(config: Mapping[str, Any], source: str) -> None:
    if config.get("transcode") or config.get("skip_connection"):
        raise UserError(f"{source} is a transcoder, which is not read: it does not reconstruct what it reads")
    activation = "signed" if config.get("signed") else word(config, "activation", source) or "topk"
    if activation not in ENCODERS:
        raise UserError(f"{source} has the activation {activation[:40]}; {' and '.join(ENCODERS)} are read")


class _Dense:
    """A SparseCoder of sparsify, which encodes to values and indices, with dense latents."""

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def to(self, device: torch.device) -> "_Dense":
        return _Dense(self.coder.to(device))

    def encode(self, x: Tensor) -> Tensor:
        values, indices, _ = self.coder.encode(x)
        return x.new_zeros(len(x), self.coder.num_latents).scatter(-1, indices, values)

    def decode(self, feature_acts: Tensor) -> Tensor:
        values, indices = feature_acts.topk(self.coder.cfg.k, dim=-1)
        return self.coder.decode(values, indices)


def _installed() -> str:
    """Return the name and version of sparsify, or "" if it is not installed."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return ""


def _in_sparsify(folder: Path, source: str) -> Original:
    coder = import_module("sparsify").SparseCoder
    try:
        return _Dense(coder.load_from_disk(folder).float().requires_grad_(False))
    except Exception as error:  # a damaged configuration raises anything
        raise UserError(f"sparsify cannot load {source}: {describe(error)}") from error
