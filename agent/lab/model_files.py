"""The files of a model's directory, as save_pretrained or the hub writes them: what is needed, what is missing."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agent.lab.errors import UserError

CONFIG = "config.json"
# In the order in which transformers looks for them. An index names its shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
LFS_POINTER = b"version https://git-lfs.github.com"
POINTER_BYTES = 200  # at most, in a pointer


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise UserError if it is cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): save the model again, or fetch it again") from error


def read_config(directory: Path) -> dict[str, Any]:
    """Return a model's config.json. Raise UserError if it is missing, cut short, or not a model's."""
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} holds no config.json: a local model is a directory that save_pretrained wrote")
    config = read_json(directory / CONFIG)
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{directory / CONFIG} names no model_type: it is not the config.json of a transformers model")
    return config


def needed(directory: Path) -> list[Path]:
    """Return the files that loading reads: config, weights of one format, tokenizer. Raise UserError without them."""
    read_config(directory)
    weights = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{directory} holds no weights ({' or '.join(WEIGHTS)}): save the model there, or fetch it again"
        )
    shards = sorted(set(read_json(weights)["weight_map"].values())) if weights.suffix == ".json" else []
    if missing := [name for name in shards if not (directory / name).is_file()]:
        raise UserError(
            f"{directory} holds {len(shards) - len(missing)} of its {len(shards)} weight files; {missing[0]} is "
            "missing: fetch the model again"
        )
    tokenizer = [directory / name for name in TOKENIZER if (directory / name).is_file()]
    if not any(path.name in VOCABULARIES for path in tokenizer):
        raise UserError(
            f"{directory} holds no tokenizer ({', '.join(VOCABULARIES[:4])}): save the model's own there with "
            "tokenizer.save_pretrained"
        )
    paths = [directory / CONFIG, weights, *(directory / name for name in shards), *tokenizer]
    for path in paths:
        if path.stat().st_size <= POINTER_BYTES and path.read_bytes().startswith(LFS_POINTER):
            raise UserError(f"{path} is a pointer of Git LFS, not the file: run `git lfs pull` in {directory}")
    return paths


def wanted(names: Iterable[str]) -> list[str]:
    """Return the files to fetch of those that a repository has: the needed ones, with weights of one format."""
    names = set(names)
    weights = next((name for name in WEIGHTS if name in names), "")
    stem, _, suffix = weights.removesuffix(".index.json").rpartition(".")
    is_shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}").fullmatch
    shards: Callable[[str], Any] = is_shard if weights.endswith(".index.json") else lambda _: None
    return sorted(name for name in names if name in (CONFIG, weights, *TOKENIZER) or shards(name))


def hash_files(paths: Iterable[Path]) -> str:
    """Return 16 hex digits that change with the content or the name of a file."""
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)))


@functools.cache
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files, which are read again in the same process only if their size or time has changed."""
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def parameters(directory: Path) -> int:
    """Return the number of a model's parameters, by the headers or the sizes of its files. Raise UserError."""
    bits = 8 * sum(path.stat().st_size for path in needed(directory) if path.suffix == ".bin")
    config = read_config(directory)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    tensors = [tensor for path in needed(directory) if path.suffix == ".safetensors" for tensor in _tensors(path)]
    return sum(math.prod(tensor["shape"]) for tensor in tensors) + bits // int(re.sub(r"\D", "", stored) or 32)


def _tensors(path: Path) -> list[dict[str, Any]]:
    """Return the description of each tensor in a safetensors file: eight bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} cannot be read ({error}): save the model again, or fetch it again") from error
    return [tensor for name, tensor in header.items() if name != "__metadata__"]
