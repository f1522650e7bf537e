"""The rows of a harvest in an order that the seed fixes: read from its files, or received from the process that serves
them to an experiment under the driver (serve.py). For rows that a model makes as they are read, see streamed.py."""

import hashlib
import json
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol
from weakref import WeakValueDictionary

import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor

from agent.lab.errors import UserError

CHUNK_ROWS = 16_384  # gathered from a shard at once
RESIDENT_SHARE = 1 / 4  # of a GPU's free memory, for the shards of all readers; the rest is the training's


class Shard(BaseModel):
    """A file of a harvest."""

    name: str
    rows: int
    sha256: str


class Manifest(BaseModel):
    """The description of a harvest: its shards and their scaling."""

    format: int
    model: str
    hook_name: str
    d_in: int
    rows: int
    scale: float  # model activations times this have mean norm sqrt(d_in)
    stored_scale: float  # the first batch's estimate of it, already applied to the stored rows
    mean: list[float]  # [d_in], of the scaled activations
    shards: list[Shard]
    text: str = ""  # pinned, see corpus.py; "" for the installation's own
    documents: int = 0  # that end in the text of these rows; 0 for a world
    median_norm: float | None = None  # of an activation, unscaled; rows far above it were left out. None: a world
    context: int | None = None  # tokens in a window of text. None: a world's, or a harvest of before it was recorded
    windows: Shard | None = None  # token ids, in place of shards, where the model makes the rows as they are read

    @property
    def files(self) -> list[Shard]:
        """The files that the manifest has checksums of."""
        return self.shards if self.windows is None else [self.windows]

    def passes(self, tokens: int) -> float:
        """Return how often a training of so many tokens sees each row, on average."""
        return tokens / self.rows


class ChangedShard(Exception):
    """The error of a file of a harvest that was changed while it was served."""


# By name of a shard. Writing to a file changes its ctime, which no program can set back.
Signatures = dict[str, tuple[int, ...]]


def signatures(folder: Path, manifest: Manifest) -> Signatures:
    """Return inode, size and times of each file. Raises FileNotFoundError."""
    return {file.name: signature(folder / file.name) for file in manifest.files}


def checksum(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signature(path: Path) -> tuple[int, ...]:
    """Return inode, size and times of a file. Raises FileNotFoundError."""
    status = path.lstat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def seal(folder: Path, manifest: Manifest) -> str:
    """Return a digest of the manifest and of the signatures of its files: while it is the same, so are their contents.

    Raises FileNotFoundError.
    """
    content = [manifest.model_dump_json(), signatures(folder, manifest)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def require_unchanged(folder: Path, name: str, checked: Signatures | None) -> None:
    """Raise ChangedShard if a file has another signature than when its checksum was compared; None: it may."""
    if checked and signature(folder / name) != checked[name]:
        raise ChangedShard(f"{folder / name} was changed after its checksum was compared")


class Rows(Protocol):
    """A source of shuffled rows without an end."""

    def start(self, seed: int, skip: int = 0) -> None:
        """Begin `skip` rows into the order that the seed fixes."""
        ...

    def take(self, count: int) -> Tensor:
        """Return the next rows `[count, d_in]`, float16, as they are stored."""
        ...


def may_stay(size: int, resident: int, free: int) -> bool:
    """Return whether a shard of `size` bytes may stay on a GPU with `free` bytes free, `resident` being of shards."""
    return resident + size <= RESIDENT_SHARE * (resident + free)


class StoredRows:
    """The rows of a harvest's files: shards in random order, each shuffled, again and again."""

    on_gpu: ClassVar["WeakValueDictionary[Path, Tensor]"] = WeakValueDictionary()  # the shards of all readers

    def __init__(
        self, folder: Path, manifest: Manifest, device: torch.device, checked: Signatures | None = None
    ) -> None:
        """`checked` holds the signatures of the files when their checksums were compared, if they may change after."""
        self.folder, self.shards, self.device, self.checked = folder, manifest.shards, device, checked
        self._empty = torch.empty(0, manifest.d_in, dtype=torch.float16, device=device)
        self._resident: dict[str, Tensor] = {}  # shards that stay on the GPU while this reader is there

    def start(self, seed: int, skip: int = 0) -> None:
        self._rest, self._chunks = self._empty, self._shuffled(seed, skip)

    def take(self, count: int) -> Tensor:
        self.fill(count)
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def fill(self, count: int) -> None:
        """Gather the next `count` rows, so that `take` need not wait for them."""
        while len(self._rest) < count:
            self._rest = torch.cat([self._rest, next(self._chunks)])

    def _shuffled(self, seed: int, skip: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self.shards), generator=generator).tolist():
                order = torch.randperm(self.shards[index].rows, generator=generator)  # drawn for skipped shards too
                order, skip = order[skip:], max(0, skip - len(order))
                if len(order) == 0:
                    continue
                stored = self._shard(self.shards[index].name)
                for chunk in order.split(CHUNK_ROWS):
                    yield stored[chunk.to(stored.device)].to(self.device)

    def _shard(self, name: str) -> Tensor:
        """Return the rows `[rows, d_in]` of a shard, which stays on a GPU that has room to spare."""
        path = self.folder / name
        if (stored := self.on_gpu.get(path)) is not None:
            self._resident[name] = stored
            return stored
        require_unchanged(self.folder, name, self.checked)
        stored = load_file(path)["activations"]
        if self.device.type == "cuda":
            resident = sum(shard.nbytes for shard in self.on_gpu.values())
            if may_stay(stored.nbytes, resident, torch.cuda.mem_get_info(self.device)[0]):
                self._resident[name] = self.on_gpu[path] = stored = stored.to(self.device)
        return stored


class Connection:
    """A connection to serve.py, by an inherited socket: it puts rows into memory shared with this process."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        _, (shared, *_), _, _ = socket.recv_fds(self._socket, 1, 1)
        with os.fdopen(shared, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self._answers = self._socket.makefile("rb")
        self.manifest = Manifest.model_validate_json(self._answers.readline())
        self.readers = 0

    def ask(self, **request: int) -> int:
        """Return the number of rows that the server has put into the memory. Raises UserError if there are none."""
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = self._answers.readline()
        if not answer:
            raise UserError("the process that serves activations has ended; stream.log of the study holds its reason")
        return int(answer)


class ServedRows:
    """The rows that the server hands out, in an order of their own."""

    def __init__(self, server: Connection) -> None:
        self._server, self._reader = server, server.readers
        server.readers += 1

    def start(self, seed: int, skip: int = 0) -> None:
        self._server.ask(reader=self._reader, seed=seed, skip=skip)

    def note_saved(self) -> None:
        """Have the server tell the driver how many rows have led to the state that was just saved."""
        self._server.ask(reader=self._reader, saved=1)

    def take(self, count: int) -> Tensor:
        parts, width = [], self._server.manifest.d_in
        while count > 0:
            rows = self._server.ask(reader=self._reader, rows=count)
            if rows == 0:
                raise UserError("the tokens of the study are spent: end the training when its stream ends")
            values = torch.frombuffer(self._server.memory, dtype=torch.float16, count=rows * width)
            parts.append(values.view(rows, width).clone())  # the memory is written again at the next request
            count -= rows
        return parts[0] if len(parts) == 1 else torch.cat(parts)
