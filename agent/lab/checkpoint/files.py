"""The files of a checkpoint: written whole or not at all, and read as what a hostile program may have left there."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from torch import Tensor

from agent.lab.checkpoint import safe_tensors
from agent.lab.checkpoint.graph import GraphError
from agent.lab.errors import UserError
from agent.lab.files import atomic_path, flush

HEADER, ENCODE, TENSORS = "header.json", "encode.json", "tensors.safetensors"
MAX_BYTES = {HEADER: 2**20, ENCODE: 2**24, TENSORS: 2**35}
DTYPES = frozenset(safe_tensors.DTYPES.values())

Contents = Mapping[str, str | bytes | Mapping[str, Tensor]]  # by a file's name; tensors are written as safetensors


class CheckpointError(UserError):
    """The error of a checkpoint that cannot be saved, or fails a check, which the message names."""


def write(folder: Path, files: Contents) -> None:
    """Write texts, bytes, and tensors as safetensors into a new folder that appears when all of it is on the disk.

    Raises CheckpointError, or OSError (ENOSPC) if the disk is full; either way no part of the folder is left.
    """
    try:
        with atomic_path(folder) as partial:
            partial.mkdir(parents=True)
            for name, content in files.items():
                if isinstance(content, Mapping):
                    safe_tensors.write(partial / name, content)
                else:
                    (partial / name).write_bytes(content.encode() if isinstance(content, str) else content)
        flush(folder.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise CheckpointError(f"cannot write {folder}: {flat_message(error)}") from error


@contextmanager
def reading(folder: Path, names: Iterable[str] = tuple(MAX_BYTES)) -> Iterator[dict[str, bytearray]]:
    """Yield the contents of the named files. A GraphError, here or in the block, becomes a CheckpointError."""
    with _errors_named(folder):
        yield {name: _content(file) for name, file in _opened(folder, names)}


def digests(folder: Path, names: Iterable[str]) -> list[bytes]:
    """Return the sha256 of each of the named files, read block by block. Raises CheckpointError."""
    with _errors_named(folder):
        return [hashlib.file_digest(file, "sha256").digest() for _, file in _opened(folder, names)]


@contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{folder} does not exist: the run left no checkpoint") from None
    except NotADirectoryError:
        raise CheckpointError(f"{folder} is not a directory but a file or a link; a checkpoint is a folder") from None
    except (OSError, GraphError) as error:
        raise CheckpointError(f"bad checkpoint {folder}: {flat_message(error)}") from None


def _opened(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, BufferedReader]]:
    """Yield the named files, one after the other, of a folder that holds those of a checkpoint and no others."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        members = set(os.listdir(directory))
        if missing := set(MAX_BYTES) - members:
            raise GraphError(f"{', '.join(sorted(missing))} is missing")
        if extra := members - set(MAX_BYTES):
            raise GraphError(f"{min(extra)[:60]!r} does not belong in it")
        for name in names:
            with _opened_file(directory, name) as file:
                yield name, file
    finally:
        os.close(directory)


@contextmanager
def _opened_file(directory: int, name: str) -> Iterator[BufferedReader]:
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
        yield file


def _content(file: BufferedReader) -> bytearray:
    content = bytearray(os.fstat(file.fileno()).st_size)
    del content[file.readinto(content) :]  # what a file that was cut short since does not have
    return content


def as_json(content: bytes | bytearray, name: str) -> Any:
    """Parse strict JSON (no NaN, no Infinity). Raises GraphError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise GraphError(f"{name} is not JSON, or was cut short: {flat_message(error)}") from None


def as_tensors(content: bytearray) -> dict[str, Tensor]:
    """Parse safetensors, which hold data alone: the tensors share the content's memory. Raises GraphError."""
    try:
        return safe_tensors.parse(content)
    except GraphError:
        raise
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise GraphError(f"{TENSORS} is not a safetensors file, or was cut short: {flat_message(error)}") from None


def flat_message(error: Exception) -> str:
    """Return the message of an error on one line, at most 300 characters of it."""
    return " ".join(str(error).split())[:300]
