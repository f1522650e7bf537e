"""Files of safetensors, written and read without a second copy of the tensors, which may fill the memory."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.lab.checkpoint.graph import GraphError

DTYPES = {"I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "BOOL": torch.bool}  # as the format sorts them
MOST_HEADER = 2**20  # bytes
_LENGTH = struct.Struct("<Q")  # of the header that follows it
_ALIGNED = 8  # bytes: where the data start


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors on the CPU to a new file, byte for byte as `safetensors.torch.save_file` does. Raises OSError."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    ranks = list(names)
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (ranks.index(item[1].dtype), item[0])):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("xb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name in header:
            file.write(tensors[name].contiguous().numpy().data)


def parse(content: bytearray) -> dict[str, Tensor]:
    """Return the tensors in a file's content, whose memory they share. Raises GraphError, ValueError, TypeError."""
    if len(content) < _LENGTH.size:
        raise ValueError("it has no header")
    (length,) = _LENGTH.unpack_from(content)
    first = _LENGTH.size + length
    if length > MOST_HEADER or first > len(content):
        raise ValueError("its header is longer than the file, or than any that is read")
    header = json.loads(content[_LENGTH.size : first])
    if not isinstance(header, dict):
        raise TypeError("its header is not an object")
    header.pop("__metadata__", None)
    tensors, end = {}, first
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        start, stop = (first + offset for offset in _offsets(entry))
        if start != end:
            raise ValueError("its tensors overlap or leave gaps")
        tensors[name], end = _tensor(name, entry, content, start, stop), stop
    if end != len(content):
        raise ValueError("its tensors do not fill it")
    return tensors


def _offsets(entry: Any) -> tuple[int, int]:
    """Return where a tensor starts and ends in the data. Raises ValueError."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("an entry is not of dtype, shape and data_offsets")
    if len(_sizes(entry["data_offsets"])) != 2:
        raise ValueError("data_offsets are not two")
    return tuple(entry["data_offsets"])


def _sizes(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ValueError("shape and data_offsets are not lists of sizes")
    return values


def _tensor(name: str, entry: dict[str, Any], content: bytearray, start: int, stop: int) -> Tensor:
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise GraphError(f"tensor {name[:60]!r} is {str(entry['dtype'])[:20]}, which is not allowed")
    shape, size = _sizes(entry["shape"]), dtype.itemsize
    if math.prod(shape) * size != stop - start or start % size or stop > len(content):
        raise ValueError(f"tensor {name[:60]!r} does not lie where its shape says")
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=(stop - start) // size, offset=start).reshape(shape)
