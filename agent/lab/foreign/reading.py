"""The files of SAEs that were trained elsewhere, read as data: JSON, safetensors, and pickles of tensors alone."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agent.lab.errors import UserError, describe
from agent.lab.files import MIB, BadFile, open_plain, read_plain

MOST_CONFIG = MIB
MOST_TENSORS = 2**35  # bytes, as a checkpoint's


def resolved(path: Path) -> Path:
    """Return a path without links, of which the hub's cache is made. Raises UserError if it leads nowhere."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # before Python 3.13 a circle of links is a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "a circle of links"
        raise UserError(f"{path} cannot be read ({reason})") from None


def _file(path: Path) -> Path:
    """Return the path of a regular file, without links. Raises UserError."""
    file = resolved(path)
    if not file.is_file():
        raise UserError(f"{path} is not a regular file, or a link to one")
    return file


def json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises UserError if there is none."""
    try:
        content = json.loads(read_plain(_file(path), MOST_CONFIG))
    except BadFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or was cut short: {describe(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content


def object_beside(path: Path) -> dict[str, Any]:
    """Return a JSON object, or {} if there is no such file. Raises UserError if it is damaged."""
    return json_object(path) if path.exists() else {}


def safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises UserError."""
    try:
        return load_file(_bounded(path))
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or was cut short: {describe(error)}") from None


def pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict that torch.save wrote, by name; no code in it is run. Raises UserError."""
    file = _bounded(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # its readers raise anything
        if "Unsupported" in str(error) or "weights_only" in str(error):
            raise UserError(
                f"{path} holds more than tensors (pickled code or objects), and is not read: save its state_dict()"
            ) from None
        raise UserError(f"{path} is damaged, or was not written by torch.save: {describe(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict of tensors: save the SAE's state_dict()")
    return {str(name): value for name, value in content.items()}


def _bounded(path: Path) -> Path:
    """Return the path of a regular file of bounded size, without links. Raises UserError."""
    path = _file(path)
    with open_plain(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_TENSORS:
            raise UserError(f"{path} has {size:,} bytes; at most {MOST_TENSORS:,} are read")
    return path
