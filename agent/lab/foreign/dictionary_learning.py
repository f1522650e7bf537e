"""SAEs of dictionary_learning: a directory of ae.pt and config.json, as its trainings leave it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.lab.errors import UserError
from agent.lab.foreign import reading, sae_bench
from agent.lab.foreign.sae import Foreign, part, record, size, word

CONFIG, WEIGHTS, RESULTS = "config.json", "ae.pt", "eval_results.json"
KINDS = {  # its classes -> what they are here
    "AutoEncoder": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}
NAMES = {  # its names of tensors -> SAE-Bench's
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "mag_bias": "b_mag",
}
SUBMODULE = re.compile(r"(resid_post|attention_out|mlp_out)_layer_(\d+)")
HOOKS = {"resid_post": "hook_resid_post", "attention_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}


def is_one(folder: Path) -> bool:
    """Return whether a folder holds an SAE in this format."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def read(folder: Path, source: str) -> Foreign:
    """Read a directory of a dictionary_learning training. Raises UserError."""
    config = reading.json_object(folder / CONFIG)
    trainer, buffer = (part(config, name, source) for name in ("trainer", "buffer"))
    if (architecture := word(trainer, "dict_class", source)) not in KINDS:
        raise UserError(
            f"{source}: its {CONFIG} has the dict_class {str(architecture)[:40]}; one of {', '.join(KINDS)} is read"
        )
    kind, tensors = KINDS[architecture], _renamed(reading.pickled(folder / WEIGHTS))
    if kind == "relu":
        tensors = _with_unit_decoder(tensors, source)
    evaluated = reading.object_beside(folder / RESULTS).get("l0")
    declared_l0 = trainer.get("k") or trainer.get("target_l0") or evaluated
    steps, batch = trainer.get("steps"), buffer.get("out_batch_size")
    imported = record(
        source=source,
        format="dictionary_learning",
        architecture=architecture,
        declared_l0=declared_l0 if isinstance(declared_l0, int | float) else None,
        declared_tokens=steps * batch if isinstance(steps, int) and isinstance(batch, int) else None,
        context=buffer.get("ctx_len"),
        prepend_bos=not buffer.get("remove_bos"),
    )
    sizes = {
        "d_in": size(trainer, "activation_dim", source),
        "d_sae": size(trainer, "dict_size", source),
        "k": trainer.get("k"),
    }
    hook_name = _hook_name(trainer, source)
    return sae_bench.convert(
        imported, kind, tensors, sizes, model=word(trainer, "lm_name", source), hook_name=hook_name
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by SAE-Bench's names; weights of linear layers are the transposes."""
    return {
        NAMES.get(name, name): tensor.T if name in ("encoder.weight", "decoder.weight") else tensor
        for name, tensor in tensors.items()
    }


def _with_unit_decoder(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the same SAE with decoder rows of norm 1, as this library and SAE-Bench do when they load one."""
    if not {"W_enc", "W_dec", "b_enc"} <= tensors.keys() or tensors["W_dec"].ndim != 2:
        return tensors  # refused later, by name
    norms = tensors["W_dec"].float().norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return tensors
    if bool((norms == 0).any()):
        raise UserError(f"{source}: {int((norms == 0).sum())} rows of its decoder are zero, which cannot be normalised")
    if tensors["W_enc"].shape[1:] != norms.shape or tensors["b_enc"].shape != norms.shape:
        return tensors
    return tensors | {
        "W_dec": tensors["W_dec"].float() / norms[:, None],
        "W_enc": tensors["W_enc"].float() * norms,
        "b_enc": tensors["b_enc"].float() * norms,
    }


def _hook_name(trainer: Mapping[str, Any], source: str) -> str | None:
    """Return TransformerLens' name of the submodule, by default a layer's residual stream, as in SAE-Bench.

    Raises UserError if the submodule is of another layer.
    """
    layer, submodule = trainer.get("layer"), word(trainer, "submodule_name", source)
    if found := SUBMODULE.fullmatch(submodule or ""):
        if layer is not None and str(layer) != found[2]:
            contradiction = f"the layer {str(layer)[:40]} and the submodule {submodule}"
            raise UserError(f"{source}: its {CONFIG} has {contradiction}: correct it")
        return f"blocks.{found[2]}.{HOOKS[found[1]]}"
    return f"blocks.{layer}.hook_resid_post" if isinstance(layer, int) and not submodule else None
