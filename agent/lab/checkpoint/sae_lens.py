"""The SAELens format, for SAEs of its kinds: `sae_lens.SAE.load_from_disk` opens these files, its tools use them."""

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
from agent.lab.checkpoint.pursuit import matching_pursuit
from agent.lab.defaults import WORLD_HOOK
from agent.lab.results import Imported, Training

CLOSE = 1e-4  # relative, of numbers that are one number but for rounding
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


def _pursued(residual: Tensor, parts: "Parts") -> Tensor:
    return matching_pursuit(residual, parts.tensors["W_dec"], parts.k)


@dataclass(frozen=True)
class Kind:
    """A kind of SAE: what SAELens calls it, and its latents as a function of pre = x @ W_enc + b_enc.

    A tied one has no W_enc and b_enc: its latents are a function of x - b_dec.
    """

    name: str
    select: Callable[[Tensor, "Parts"], Tensor]
    has_threshold: bool = False
    has_k: bool = False
    is_tied: bool = False

    @property
    def required(self) -> set[str]:
        """The names of its encoder's tensors."""
        return (set() if self.is_tied else {"W_enc", "b_enc"}) | ({"threshold"} if self.has_threshold else set())


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
    "matching_pursuit": Kind("matching_pursuit", _pursued, has_k=True, is_tied=True),
}


TRAINED = {"relu": "standard", "matryoshka": "matryoshka_batchtopk"}  # what SAELens calls kinds when they are trained
SETTINGS = {"k": "K", "l1_coefficient": "L1_COEFFICIENT"}  # its names of an experiment's constants
PREFIX = "prefix_"  # with which templates/baselines/matryoshka.py.j2 names its groups


@dataclass(frozen=True)
class Parts:
    """An SAE of a kind of SAELens, on scaled activations: `W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold`, and k."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    k: int  # 0 where the kind has none
    subtracts_b_dec: bool  # from the activations, before the encoder

    def unscaled(self, scale: float) -> dict[str, Tensor]:
        """Return the weights for the model's own activations, which are to be multiplied by `scale` no more.

        The latents stay as they are. Only those of a tied kind, whose decoder cannot make up for what is done to its
        encoder, become 1 / scale of what they were, as what they reconstruct does.
        """
        if self.kind.is_tied:
            return {"W_dec": self.tensors["W_dec"].clone(), "b_dec": self.tensors["b_dec"] / scale}
        # (scale * x - b_dec) @ W_enc == (x - b_dec / scale) @ (scale * W_enc)
        weights = {
            "W_enc": self.tensors["W_enc"] * scale,
            "b_enc": self.tensors["b_enc"].clone(),
            "W_dec": self.tensors["W_dec"] / scale,
            "b_dec": self.tensors["b_dec"] / scale,
        }
        return weights | ({"threshold": self.tensors["threshold"].clone()} if self.kind.has_threshold else {})

    def of_unit_rows(self, scale: float) -> dict[str, Tensor]:
        """Return the weights likewise, with decoder rows of length 1, and their lengths in the latents.

        Raises GraphError if other latents would be kept then.
        """
        weights = self.unscaled(scale)
        lengths = row_lengths(weights["W_dec"])
        if self.kind.has_k and not is_one_number(lengths):
            raise GraphError(
                "its decoder rows have length 1, and these differ: which latents are the largest would change"
            )
        scaled = {name: weights[name] * lengths for name in ("W_enc", "b_enc", "threshold") if name in weights}
        return weights | scaled | {"W_dec": weights["W_dec"] / lengths[:, None]}


def parts(header: Header, tensors: Mapping[str, Tensor], x: Tensor, latents: Tensor) -> Parts:
    """Return the parts of an SAE of one of SAELens' kinds.

    The encoder's latents `[n, d_sae]` of scaled activations x `[n, d_in]` tell if it subtracts b_dec first. Raises
    GraphError if they do not fit the architecture in the header.
    """
    kind = ARCHITECTURES.get(header.architecture or "")
    if kind is None or not kind.required <= set(tensors):
        lacking = sorted(kind.required - set(tensors)) if kind else ["nothing"]
        raise GraphError(
            f"architecture {header.architecture!r} is not one of {', '.join(ARCHITECTURES)}, or lacks "
            f"{', '.join(lacking)}; give None if it is not a standard one"
        )
    k = _k(header) if kind.has_k else 0
    found = [Parts(kind, tensors, k, subtracts) for subtracts in ((True,) if kind.is_tied else (True, False))]
    errors = [_error(each, x, latents) for each in found]
    if min(errors) > 1e-3 * (1e-3 + float(latents.nan_to_num(0, 0, 0).abs().mean())):
        given = "W_enc, b_enc and threshold" if kind.has_threshold else "W_dec" if kind.is_tied else "W_enc and b_enc"
        raise GraphError(
            f"encode is not the {header.architecture} encoder of the {given} given with it"
            f"{f' and K {k}' if k else ''}; correct them, or give the architecture as None"
        )
    return found[errors.index(min(errors))]


def row_lengths(W_dec: Tensor) -> Tensor:
    """Return the lengths `[d_sae]` of a decoder's rows, 1 for one that is zero."""
    lengths = W_dec.norm(dim=1)
    return torch.where(lengths > 0, lengths, 1.0)


def is_one_number(values: Tensor) -> bool:
    """Return True if values are the same but for rounding."""
    return bool(((values - values.mean()).abs() <= CLOSE * values.mean().abs()).all())


def files(header: Header, found: Parts, unit_rows: bool = False) -> dict[str, str | dict[str, Tensor]]:
    """Return cfg.json and sae_weights.safetensors for an SAE that takes the model's own, unscaled activations.

    With `unit_rows` its decoder rows have length 1: `fold_W_dec_norm`, which SAEDashboard calls, leaves it as it is.
    """
    weights = found.of_unit_rows(header.scale) if unit_rows else found.unscaled(header.scale)
    if found.kind.name == "gated":
        weights = {"W_enc": weights["W_enc"], "W_dec": weights["W_dec"], "b_dec": weights["b_dec"], **gate(weights)}
    config: dict[str, Any] = {
        "architecture": found.kind.name,
        "d_in": header.d_in,
        "d_sae": header.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": found.subtracts_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if header.hook_name.endswith("hook_z") else "none",
        "metadata": metadata(header, trained_as(header, found.tensors.get("threshold"))),
    }
    if found.kind.is_tied:
        config |= {"max_iterations": found.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    elif found.k:
        config |= {"k": found.k, "rescale_acts_by_decoder_norm": unit_rows}
    return {"cfg.json": json.dumps(config, indent=2) + "\n", "sae_weights.safetensors": weights}


def gate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the biases of a gated encoder that equals the JumpReLU of b_enc and threshold, all `[d_sae]`.

    Its two paths share W_enc; b_mag and b_gate are theirs, and the logarithm r_mag of how they differ in size is 0.
    """
    b_enc = weights["b_enc"]
    return {"b_mag": b_enc, "b_gate": b_enc - weights["threshold"], "r_mag": torch.zeros_like(b_enc)}


def metadata(header: Header, architecture: str | None) -> dict[str, Any]:
    """Return what SAELens' tools read of an SAE beside its weights: whence its activations are, and its training."""
    known: dict[str, Any] = {
        "model_name": header.model,
        "hook_name": header.hook_name,
        "hook_layer": header.layer,
        "hook_head_index": None,
        "training_architecture": TRAINED.get(architecture or "", architecture),
        "sae_lens_version": version("sae_lens"),
        "sae_lens_training_version": None,  # it was not trained by SAELens
        **(_of_training(header.training) if header.training else {}),
        **(_of_import(header.imported) if header.imported else {}),
    }
    if header.hook_name == WORLD_HOOK:
        return known
    return {
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},  # the stream is as the model has it
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "sequence_separator_token": "eos",
        "disable_concat_sequences": False,
        **known,
    }


def _of_training(training: Training) -> dict[str, Any]:
    dataset = HUB_DATASET.fullmatch(training.text)
    settings = {name: training.settings.get(constant) for name, constant in SETTINGS.items()}
    return {
        "training_architecture_details": {name: value for name, value in settings.items() if value is not None},
        "training_tokens": training.tokens,
        "l0": training.final_l0,
        "context_size": training.context,
        "dataset_path": dataset[1] if dataset else None,
    }


def _of_import(imported: Imported) -> dict[str, Any]:
    return {
        "training_tokens": imported.declared_tokens,
        "l0": imported.declared_l0,
        "context_size": imported.context,
        "prepend_bos": imported.prepend_bos,
    }


def trained_as(header: Header, threshold: Tensor | None) -> str | None:
    """Return the kind of SAE that a checkpoint was trained as, in the words of ARCHITECTURES, or None for another.

    A JumpReLU with the same threshold for all latents is what a BatchTopK leaves (Bussmann et al. 2024, arXiv
    2412.06410), and with groups that are prefixes what a Matryoshka leaves.
    """
    if header.architecture != "jumprelu" or threshold is None or not bool((threshold == threshold[0]).all()):
        return header.architecture
    nested = bool(header.groups) and all(name.startswith(PREFIX) for name in header.groups)
    return "matryoshka" if nested else "batchtopk"


def _k(header: Header) -> int:
    """Return K of a kind that keeps so many latents of each row. Raises GraphError if the header does not say it."""
    k = header.training.settings.get("K") if header.training else header.imported and header.imported.declared_l0
    if not isinstance(k, int | float) or k != int(k) or not 0 < k <= header.d_sae:
        raise GraphError(f"its K is {k!r}; a {header.architecture} SAE keeps a whole number of latents of each token")
    return int(k)


def _error(found: Parts, x: Tensor, latents: Tensor) -> float:
    """Return the mean error of the latents `[n, d_sae]` that the parts give of scaled activations x `[n, d_in]`."""
    pre = x - found.tensors["b_dec"] if found.subtracts_b_dec else x
    if not found.kind.is_tied:
        pre = pre @ found.tensors["W_enc"] + found.tensors["b_enc"]
    expected = found.kind.select(pre, found)
    return float((expected - latents).nan_to_num(0, 0, 0).abs().mean())
