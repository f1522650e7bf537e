"""Values of a program as JSON with tensors beside it, and back: of modules and optimizers, all that changes in them."""

import random
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAME = (  # what a training does not change
    *(torch.device, torch.dtype, torch.layout, torch.Size, type, partial),
    *(FunctionType, MethodType, BuiltinFunctionType, ModuleType, PurePath),
)
HAS_STATE = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
OF_EVERY_MODULE = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules", "training"}  # hooks


class Unkeepable(Exception):
    """The error of a value that cannot be kept, or cannot be restored; the message says which."""


class Packer:
    """Packs values that may refer to each other; what stands in several places is kept once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}  # by the names under which the packed values refer to them; on the CPU
        self._known: dict[int, int] = {}  # id of a value -> its number
        self._alive: list[Any] = []  # so that no id is given twice

    def pack(self, value: Any) -> Any:
        """Return a value as JSON. Raise Unkeepable."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, SAME):
            return {"kind": "same"}
        if id(value) in self._known:
            return {"kind": "known", "number": self._known[id(value)]}
        number = self._known[id(value)] = len(self._alive)
        self._alive.append(value)
        return {"number": number} | self._pack_new(value)

    def _pack_new(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Tensor):
            return self._pack_tensor(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return {"kind": "array", "dtype": value.dtype.str, "values": value.tolist()}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "state": self.pack(value.get_state())}
        if isinstance(value, random.Random):
            return {"kind": "random", "state": self.pack(value.getstate())}
        if isinstance(value, HAS_STATE):
            return {"kind": "stateful", "state": self.pack(value.state_dict())}
        if isinstance(value, list | tuple):
            return {"kind": "tuple" if isinstance(value, tuple) else "list", "parts": [self.pack(v) for v in value]}
        if isinstance(value, dict):
            return {"kind": "dict", "parts": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        if hasattr(value, "__dict__") and not isinstance(value, np.ndarray | Enum):
            parts = {name: self.pack(part) for name, part in _attributes(value).items()}
            return {"kind": "object", "type": type(value).__qualname__, "parts": parts}
        raise Unkeepable(f"a {type(value).__name__} among its variables cannot be kept")

    def _pack_tensor(self, value: Tensor) -> dict[str, Any]:
        if value.layout != torch.strided or value.is_complex():
            raise Unkeepable("a sparse or complex tensor among its variables cannot be kept")
        kept, name = value.detach(), str(len(self.tensors))
        self.tensors[name] = kept.to("cpu", copy=True, memory_format=torch.contiguous_format)
        packed = {"kind": "tensor", "name": name, "on_cpu": value.device.type == "cpu"}
        if not kept.is_contiguous() and _is_dense(kept):
            packed["stride"] = list(kept.stride())  # fused optimizers go through memory, not through axes
        if value.is_leaf and value.grad is not None:
            packed["grad"] = self.pack(value.grad)
        return packed


class Restorer:
    """Restores packed values: parameters, modules and optimizers in place, so that what refers to them sees it."""

    def __init__(self, tensor: Callable[[str], Tensor], device: torch.device) -> None:
        """`tensor` returns a tensor by its name; `device` is for those that were not on the CPU."""
        self._tensor, self._device = tensor, device
        self._known: dict[int, Any] = {}

    def restore(self, packed: Any, now: Any = None) -> Any:
        """Return a value; `now` is what stands in its place. Raise Unkeepable if that cannot become it."""
        if not isinstance(packed, dict):
            return packed
        if packed["kind"] == "same":
            return now
        if packed["kind"] == "known":
            return self._known[packed["number"]]
        value = getattr(self, f"_restore_{packed['kind']}")(packed, now)
        self._known[packed["number"]] = value
        return value

    def _restore_tensor(self, packed: dict[str, Any], now: Any) -> Tensor:
        kept = self._tensor(packed["name"])
        device = torch.device("cpu") if packed["on_cpu"] else self._device
        if isinstance(now, Tensor) and now.is_leaf and (now.requires_grad or isinstance(now, nn.Parameter)):
            _fill(now, kept)
            now.grad = self.restore(packed["grad"]) if "grad" in packed else None
            return now
        stride = packed.get("stride", kept.stride())
        return torch.empty_strided(kept.shape, stride, dtype=kept.dtype, device=device).copy_(kept)

    def _restore_array(self, packed: dict[str, Any], _: Any) -> Any:
        return np.array(packed["values"], dtype=packed["dtype"])

    def _restore_generator(self, packed: dict[str, Any], now: Any) -> Any:
        _same_type(now, torch.Generator).set_state(self.restore(packed["state"]))
        return now

    def _restore_random(self, packed: dict[str, Any], now: Any) -> Any:
        _same_type(now, random.Random).setstate(self.restore(packed["state"]))
        return now

    def _restore_stateful(self, packed: dict[str, Any], now: Any) -> Any:
        _same_type(now, HAS_STATE).load_state_dict(self.restore(packed["state"]))
        return now

    def _restore_list(self, packed: dict[str, Any], now: Any) -> list[Any]:
        value = now if isinstance(now, list) else []
        value[:] = self._restore_parts(packed, now)
        return value

    def _restore_tuple(self, packed: dict[str, Any], now: Any) -> tuple[Any, ...]:
        return tuple(self._restore_parts(packed, now))

    def _restore_parts(self, packed: dict[str, Any], now: Any) -> list[Any]:
        parts = packed["parts"]
        standing = now if isinstance(now, list | tuple) and len(now) == len(parts) else [None] * len(parts)
        return [self.restore(part, there) for part, there in zip(parts, standing, strict=True)]

    def _restore_dict(self, packed: dict[str, Any], now: Any) -> dict[Any, Any]:
        value = now if isinstance(now, dict) else {}
        parts = [(self.restore(key), part) for key, part in packed["parts"]]
        restored = {key: self.restore(part, value.get(key)) for key, part in parts}
        value.clear()
        value.update(restored)
        return value

    def _restore_object(self, packed: dict[str, Any], now: Any) -> Any:
        if type(now).__qualname__ != packed["type"]:
            raise Unkeepable(f"a {packed['type']} that was made during the training cannot be made again")
        self._known[packed["number"]] = now  # which its own parts may refer to
        standing = vars(now)
        for name in _attributes(now).keys() - packed["parts"].keys():
            del standing[name]
        for name, part in packed["parts"].items():
            standing[name] = self.restore(part, standing.get(name))
        return now


def _attributes(value: Any) -> dict[str, Any]:
    """Return what may change of an object: of a module its tensors, its parts, and every other attribute."""
    left_out = OF_EVERY_MODULE if isinstance(value, nn.Module) else ()
    return {name: part for name, part in vars(value).items() if name not in left_out}


def _is_dense(tensor: Tensor) -> bool:
    """Return True if the tensor fills its memory without gaps, in whatever order of its axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size if size > 1 else 1
    return True


@torch.no_grad()
def _fill(parameter: Tensor, kept: Tensor) -> None:
    """Copy saved values into a parameter. Raise Unkeepable unless they have its shape and are finite."""
    if parameter.shape != kept.shape or parameter.dtype != kept.dtype:
        raise Unkeepable(f"a parameter has the shape {list(parameter.shape)}, the saved one {list(kept.shape)}")
    if not bool(kept.isfinite().all()):
        raise Unkeepable("a saved parameter is not finite")
    parameter.copy_(kept)


def _same_type(now: Any, kind: Any) -> Any:
    if not isinstance(now, kind):
        raise Unkeepable(f"there is a {type(now).__name__} where the saved state has something else")
    return now
