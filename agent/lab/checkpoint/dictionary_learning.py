"""The format of dictionary_learning (Marks, Karvonen and Mueller): ae.pt, a state dict, and config.json.

Its decoders have rows of length 1, so a latent is as large as what it adds to the model's own activations.
"""

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.lab.checkpoint import sae_lens
from agent.lab.checkpoint.graph import GraphError
from agent.lab.checkpoint.header import Header

NOT_SET = -1.0  # the threshold of a TopK that has none

Weights = dict[str, Tensor]


def _linear(weights: Weights) -> Weights:
    """Return encoder and decoder as its modules nn.Linear have them."""
    return {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
    }


def _auto_encoder(weights: Weights) -> Weights:
    return _linear(weights) | {"bias": weights["b_dec"]}


def _gated(weights: Weights) -> Weights:
    state, gate = _linear(weights) | {"decoder_bias": weights["b_dec"]}, sae_lens.gate(weights)
    del state["encoder.bias"]
    return state | {"mag_bias": gate["b_mag"], "gate_bias": gate["b_gate"], "r_mag": gate["r_mag"]}


def _topk(weights: Weights) -> Weights:
    return _linear(weights) | {"b_dec": weights["b_dec"], "k": weights["k"], "threshold": torch.tensor(NOT_SET)}


def _batch_topk(weights: Weights) -> Weights:
    return _topk(weights) | {"threshold": weights["threshold"].mean()}


def _matryoshka(weights: Weights) -> Weights:
    return _jumprelu(weights) | {
        "k": weights["k"],
        "threshold": weights["threshold"].mean(),
        "group_sizes": weights["group_sizes"],
    }


def _jumprelu(weights: Weights) -> Weights:
    return {name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


@dataclass(frozen=True)
class Class:
    """One of its classes: its name, its trainer's, its state dict, and whether it subtracts b_dec first."""

    name: str
    trainer: str
    state: Callable[[Weights], Weights]
    subtracts_b_dec: bool = True


CLASSES = {  # by the words of sae_lens.ARCHITECTURES
    "relu": Class("AutoEncoder", "StandardTrainer", _auto_encoder),
    "gated": Class("GatedAutoEncoder", "GatedSAETrainer", _gated),
    "topk": Class("AutoEncoderTopK", "TopKTrainer", _topk),
    "batchtopk": Class("BatchTopKSAE", "BatchTopKTrainer", _batch_topk),
    "matryoshka": Class("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer", _matryoshka),
    "jumprelu": Class("JumpReluAutoEncoder", "JumpReluTrainer", _jumprelu, subtracts_b_dec=False),
}


def files(header: Header, found: sae_lens.Parts) -> dict[str, str | bytes]:
    """Return ae.pt and config.json. Raises GraphError for an SAE that the format has no place for."""
    if header.hook_name != (only := f"blocks.{header.layer}.hook_resid_post"):
        raise GraphError(f"its files name a layer alone, which is read as {only}, and its hook is {header.hook_name}")
    kind = sae_lens.trained_as(header, found.tensors.get("threshold"))
    if kind not in CLASSES:
        raise GraphError(f"it has no class for {kind}: it has those for {', '.join(CLASSES)}")
    weights = found.of_unit_rows(header.scale)
    if kind in ("batchtopk", "matryoshka") and not sae_lens.is_one_number(weights["threshold"]):
        kind = "jumprelu"  # the same encoder, with room for a threshold of each latent
    its = CLASSES[kind]
    if its.subtracts_b_dec != found.subtracts_b_dec:
        shift = weights["b_dec"] @ weights["W_enc"]
        weights["b_enc"] += shift if its.subtracts_b_dec else -shift
    k = found.k or _k(header)
    weights |= {"k": torch.tensor(k, dtype=torch.int), "group_sizes": torch.tensor(_group_sizes(header))}
    pickled = io.BytesIO()
    torch.save(its.state(weights), pickled)
    return {"ae.pt": pickled.getvalue(), "config.json": json.dumps(_config(header, its, k), indent=4) + "\n"}


def _k(header: Header) -> int:
    """Return the latents per token that it was trained to keep on average, which encoding does not use."""
    known = header.training.settings.get("K") or header.training.final_l0 if header.training else None
    return max(1, round(known)) if isinstance(known, int | float) else 1


def _group_sizes(header: Header) -> list[int]:
    """Return the sizes of the groups that the prefixes of a Matryoshka SAE end with."""
    bounds = sorted({0, header.d_sae, *(bound for group in header.groups.values() for bound in group)})
    return [end - start for start, end in itertools.pairwise(bounds)]


def _config(header: Header, its: Class, k: int) -> dict[str, Any]:
    training, known = header.training, sae_lens.metadata(header, None)
    trainer: dict[str, Any] = {
        "trainer_class": its.trainer,
        "dict_class": its.name,
        "activation_dim": header.d_in,
        "dict_size": header.d_sae,
        "lr": training.learning_rate if training else None,
        "steps": training.steps if training else None,
        "seed": training.seed if training else None,
        "layer": header.layer,
        "lm_name": header.model,
        "submodule_name": f"resid_post_layer_{header.layer}",
        "device": "cpu",
    }
    if "topk" in its.name.lower():
        trainer["k"] = k
    buffer = {
        "d_submodule": header.d_in,
        "io": "out",
        "ctx_len": known.get("context_size"),
        "out_batch_size": training.settings.get("BATCH") if training else None,
        "device": "cpu",
    }
    return {"trainer": trainer, "buffer": buffer}
