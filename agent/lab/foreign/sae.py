"""An SAE that was trained elsewhere, as each format's reader returns it; the checks that all formats share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from agent.lab.checkpoint.header import MAX_D_SAE
from agent.lab.errors import UserError
from agent.lab.foreign.encoders import Encoder, MatchingPursuit
from agent.lab.results import Imported

Shapes = Mapping[str, tuple[int, ...]]


class Original(Protocol):
    """The SAE in the class of its own library."""

    def to(self, device: torch.device, /) -> Any: ...

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, feature_acts: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Foreign:
    """An SAE that was trained elsewhere, on the model's own, unscaled activations."""

    imported: Imported
    encoder: Encoder | MatchingPursuit
    W_dec: Tensor  # [d_sae, d_in]
    b_dec: Tensor  # [d_in]
    kind: str | None  # one of checkpoint/sae_lens.py's ARCHITECTURES, or None
    model: str | None = None  # as its files name it
    hook_name: str | None = None  # likewise
    original: Original | None = None
    warnings: tuple[str, ...] = ()

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]


def record(**fields: Any) -> Imported:
    """Return the record of an SAE, of what its files say. Raises UserError if they say what cannot be."""
    try:
        return Imported(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{fields['source']}: {name} is {str(first['input'])[:40]!r}: {first['msg']}") from None


def part(config: Mapping[str, Any], name: str, where: object) -> dict[str, Any]:
    """Return an object in a configuration, {} if it is not there. Raises UserError if it is another thing."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: {name} in its configuration is {str(value)[:40]!r}, and must be an object")
    return value or {}


def word(config: Mapping[str, Any], name: str, where: object) -> str | None:
    """Return a text in a configuration, or None if it is not there or empty. Raises UserError if it is no text."""
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {name} in its configuration is {str(value)[:40]!r}, and must be a text")
    return value or None


def size(config: Mapping[str, Any], name: str, where: object) -> int:
    """Return a width or a k that a configuration declares. Raises UserError if it is none."""
    value = config.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 < value <= MAX_D_SAE:
        raise UserError(f"{where}: {name} is {str(value)[:40]!r}, and must be a whole number up to {MAX_D_SAE:,}")
    return value


def flag(config: Mapping[str, Any], name: str, default: bool, where: object) -> bool:
    """Return what a configuration says is so, or is not. Raises UserError if it says something else."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where}: {name} in its configuration is {str(value)[:40]!r}, and must be true or false")
    return default if value is None else value


def checked(tensors: Mapping[str, Tensor], shapes: Shapes, where: object) -> dict[str, Tensor]:
    """Return the tensors of these shapes in float32.

    Raises UserError if one is missing, of another shape, not finite, or a threshold below zero.
    """
    found = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"{where} holds no {name}: it is another architecture than its configuration says")
        tensor = tensors[name].detach()
        if tuple(tensor.shape) == shape[::-1] != shape:
            raise UserError(f"{where}: {name} is transposed: it is {list(shape[::-1])} and must be {list(shape)}")
        if tuple(tensor.shape) != shape:
            raise UserError(f"{where}: {name} is {list(tensor.shape)}, and by its configuration {list(shape)}")
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {name} holds {tensor.dtype}, not floats")
        found[name] = tensor.to("cpu", torch.float32).contiguous()
        if not bool(found[name].isfinite().all()):
            raise UserError(f"{where}: {name} holds numbers that are not finite: its training broke")
        if name.endswith("threshold") and bool((found[name] < 0).any()):
            raise UserError(
                f"{where}: {name} has values below zero: its training did not set it, or the file is damaged"
            )
    return found


def require_top(k: int, d_sae: int, where: object) -> None:
    """Raise UserError if more latents should fire than there are."""
    if k > d_sae:
        raise UserError(f"{where}: k is {k:,}, and there are {d_sae:,} latents")
