"""The files of a checkpoint: written whole or not at all, and read as what a hostile program may have left there."""

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agent.lab.checkpoint.graph import GraphError
from agent.lab.errors import UserError
from agent.lab.files import atomic_path, flush

HEADER, ENCODE, TENSORS = "header.json", "encode.json", "tensors.safetensors"
MAX_BYTES = {HEADER: 2**20, ENCODE: 2**24, TENSORS: 2**35}
DTYPES = frozenset({torch.float32, torch.int64, torch.int32, torch.bool})


class CheckpointError(UserError):
    """The error of a checkpoint that cannot be saved, or fails a check, which the message names."""


def write(folder: Path, files: Mapping[str, str | dict[str, Tensor]]) -> None:
    """Write texts, and tensors as safetensors, into a new folder that appears when all of it is on the disk.

    Raises CheckpointError, or OSError (ENOSPC) if the disk is full; either way no part of the folder is left.
    """
    try:
        with atomic_path(folder) as partial:
            partial.mkdir(parents=True)
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else safetensors.torch.save(content)
                (partial / name).write_bytes(data)
        flush(folder.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise CheckpointError(f"cannot write {folder}: {flat_message(error)}") from error


@contextmanager
def reading(folder: Path, names: Iterable[str] = tuple(MAX_BYTES)) -> Iterator[dict[str, bytes]]:
    """Yield the contents of the named files. A GraphError, here or in the block, becomes a CheckpointError."""
    try:
        yield _read_files(folder, names)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} does not exist: the run left no checkpoint") from None
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is not a directory but a file or a link; a checkpoint is a folder") from None
    except (OSError, GraphError) as error:
        raise CheckpointError(f"bad checkpoint {folder}: {flat_message(error)}") from None


def _read_files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        members = set(os.listdir(directory))
        if missing := set(MAX_BYTES) - members:
            raise GraphError(f"{', '.join(sorted(missing))} is missing")
        if extra := members - set(MAX_BYTES):
            raise GraphError(f"{min(extra)[:60]!r} does not belong in it")
        return {name: _read_file(directory, name) for name in names}
    finally:
        os.close(directory)


def _read_file(directory: int, name: str) -> bytes:
    if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        raise GraphError(f"{name} is not a regular file")
    # If it has become a link or a pipe since, it is neither followed nor waited for.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise GraphError(f"{name} is not a regular file")
        if status.st_size > MAX_BYTES[name]:
            raise GraphError(f"{name} has {status.st_size} bytes; at most {MAX_BYTES[name]} are read")
        return file.read(status.st_size)


def as_json(content: bytes, name: str) -> Any:
    """Parse strict JSON (no NaN, no Infinity). Raises GraphError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise GraphError(f"{name} is not JSON, or was cut short: {flat_message(error)}") from None


def as_tensors(content: bytes) -> dict[str, Tensor]:
    """Parse safetensors, which hold data alone. Raises GraphError."""
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise GraphError(f"{TENSORS} is not a safetensors file, or was cut short: {flat_message(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise GraphError(f"tensor {name[:60]!r} is {tensor.dtype}, which is not allowed")
    return tensors


def flat_message(error: Exception) -> str:
    """Return the message of an error on one line, at most 300 characters of it."""
    return " ".join(str(error).split())[:300]
