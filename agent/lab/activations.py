"""A model's activations: harvested once, kept shuffled on disk, streamed to every run.

A harvest is a folder of float16 shards with a manifest (sizes, checksums, scaling). The rows of a batch go to random
shards, and a shard is shuffled when it is closed, so reading one shard after another is reading shuffled text.
"""

import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from agent.lab import cache, corpus, files, models, streamed, tokens, worlds
from agent.lab.defaults import (
    CONTEXT,
    MAX_HARVEST,
    SMOKE_TOKENS,
    SOCKET_VARIABLE,
    STREAMED_VARIABLE,
    is_streamed,
    is_world,
)
from agent.lab.errors import UserError
from agent.lab.forward import (
    BATCH_WINDOWS,
    HARVEST_SEED,
    is_outlier,
    median_norm,
    ordinary_mask,
    run_to_hook,
    training_windows,
)
from agent.lab.locks import waiting_lock
from agent.lab.progress import notify, track
from agent.lab.rows import Connection, Manifest, Rows, ServedRows, Shard, StoredRows, checksum, seal
from agent.lab.streamed import Blocks, StreamedRows

FORMAT = 2
SHARD_ROWS = 131_072
SEAL = "seal"  # the file in a harvest with what rows.seal gave when its checksums were last compared


@dataclass(frozen=True)
class HarvestKey:
    """The key of a harvest: two harvests with the same key are the same."""

    model: str
    identity: str
    hook_name: str
    rows: int
    text: str = ""  # pinned, see corpus.py
    streamed: bool = False  # the text is kept, as tokens, and the rows are made as they are read (streamed.py)

    def folder(self) -> Path:
        """Return the folder of the harvest in the cache."""
        world = is_world(self.model)
        dtype = torch.float32 if world else models.device_config().dtype
        context = CONTEXT if world else models.most_context()
        parts = [FORMAT, corpus.version(self.text), HARVEST_SEED, context, str(dtype)]
        if self.streamed:
            parts += ["streamed", streamed.FORMAT]
        if not tokens.begins():
            parts.append("no beginning token")
        digest = hashlib.sha256(json.dumps([self.identity, self.hook_name, self.rows, *parts]).encode())
        model = cache.slug(Path(models.canonical_name(self.model)).name)
        return cache.root() / "activations" / f"{model}-{cache.slug(self.hook_name)}-{digest.hexdigest()[:12]}"


def harvest_key(model: str, hook_name: str, tokens: int, text: str = "", streamed: bool = False) -> HarvestKey:
    """Return the key of the harvest for a training of so many tokens; `text` is pinned. Raises UserError."""
    rows = tokens if streamed else min(tokens, MAX_HARVEST)
    return HarvestKey(model, models.identity(model), hook_name, rows, text, streamed)


@dataclass
class TokenBudget:
    """A budget of tokens, with the number that was served of it."""

    total: int = sys.maxsize
    served: int = 0

    @property
    def left(self) -> int:
        return self.total - self.served


class Stream:
    """Batches `[batch, d_in]` (float32, scaled) of a harvest, shuffled by the seed.

    It ends after `total` tokens, or when the budget is spent; the last batch may be shorter.
    """

    def __init__(
        self, rows: Rows, manifest: Manifest, total: int, batch: int, seed: int, budget: TokenBudget | None = None
    ) -> None:
        self.budget = budget or TokenBudget()
        self.manifest, self.batch, self.seed = manifest, batch, seed
        self.total = total = min(total, self.budget.left)
        self.device = torch.device(models.device_config().device)
        self.steps = math.ceil(total / batch)
        self.mean = torch.tensor(manifest.mean, device=self.device)
        self.position = 0  # rows of this pass that were handed out
        self.skip = 0  # rows that a training had before it was cut short
        self.before_batch: Callable[[], None] = lambda: None  # called between two steps
        self._rows = rows

    @property
    def d_in(self) -> int:
        return self.manifest.d_in

    def __iter__(self) -> Iterator[Tensor]:
        correction = self.manifest.scale / self.manifest.stored_scale
        self.position, self.skip = self.skip, 0
        self.budget.served += self.position
        self._rows.start(self.seed, self.position)
        while (take := min(self.batch, self.total - self.position, self.budget.left)) > 0:
            self.before_batch()
            self.budget.served += take
            self.position += take
            yield self._rows.take(take).to(self.device).float() * correction

    def note_saved(self) -> None:
        """Tell the process that serves the rows, if one does, that a state was saved after those so far."""
        if isinstance(self._rows, ServedRows):
            self._rows.note_saved()


def stored_stream(
    folder: Path, manifest: Manifest, total: int, batch: int, seed: int, budget: TokenBudget | None = None
) -> Stream:
    """Return a stream that reads the harvest's files itself."""
    rows = StoredRows(folder, manifest, torch.device(models.device_config().device))
    return Stream(rows, manifest, total, batch, seed, budget)


def stream(model: str, hook_name: str, *, text: str = "", tokens: int, batch: int, seed: int) -> Stream:
    """Return the training stream of a run, `tokens` activations in batches, harvesting them first if need be.

    `text` is "" for the text that comes with the installation, a file, a folder, or a hub dataset (see corpus.py).
    In a study (SAE_AGENT_FIXED) model, hook, text and tokens are the study's, the tokens are one budget for all streams
    of the process, and the driver's server hands out the rows (SAE_AGENT_STREAM). Raises UserError for an unknown
    model, hook or text, one that is not the study's, or a full disk.
    """
    if tokens < 1 or batch < 1:
        raise UserError(f"tokens and batch must be positive, not {tokens} and {batch}")
    fixed = json.loads(os.environ.get("SAE_AGENT_FIXED", "null"))
    if fixed:
        for constant, actual, expected in (
            ("MODEL", models.canonical_name(model), models.canonical_name(fixed["model"])),
            ("HOOK_NAME", hook_name, fixed["hook_name"]),
            ("TEXT", text, fixed["text"]),
        ):
            if actual != expected:
                raise UserError(f"{constant} is {actual!r} but the study fixes it to {expected!r}: restore it")
        tokens = fixed["tokens"]
    total = min(tokens, SMOKE_TOKENS) if os.environ.get("SAE_AGENT_SMOKE") else tokens
    budget = _process_budget(total) if fixed else None
    if descriptor := os.environ.get(SOCKET_VARIABLE):
        server = _connection(int(descriptor))
        return Stream(ServedRows(server), server.manifest, total, batch, seed, budget)
    made = fixed.get("stream", False) if fixed else is_streamed(model, tokens, STREAMED_VARIABLE in os.environ)
    folder, manifest = ensure_harvest(model, hook_name, tokens, corpus.pin(text), streamed=made)
    if not made:
        return stored_stream(folder, manifest, total, batch, seed, budget)
    return Stream(StreamedRows(Blocks(folder, manifest, model), total), manifest, total, batch, seed, budget)


@functools.cache
def _process_budget(budget: int) -> TokenBudget:
    """Return the one budget of the process: a second pass over the data counts too."""
    return TokenBudget(budget)


@functools.cache
def _connection(descriptor: int) -> Connection:
    """Return the one connection of the process to the server of activations."""
    return Connection(descriptor)


def ensure_harvest(
    model: str, hook_name: str, tokens: int, text: str = "", sealed: str | None = None, streamed: bool = False
) -> tuple[Path, Manifest]:
    """Return folder and manifest of a checked harvest; make it if it is missing or damaged. Other processes wait.

    `text` is pinned. A harvest with the seal `sealed`, or by default the one that lies in it, is not hashed again.
    One that is `streamed` has the text as tokens. Raises UserError.
    """
    if is_world(model) and (text or streamed):
        raise UserError(f"{model} is a synthetic world and has no text: leave out {corpus.source(text) or '--stream'}")
    key = harvest_key(model, hook_name, tokens, text, streamed)
    folder = key.folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache.mark_used(folder)
    with waiting_lock(folder.with_name(folder.name + ".lock"), "another process harvests the same activations"):
        if folder.exists():
            try:
                return folder, check_harvest(folder, kept_seal(folder) if sealed is None else sealed)
            except DamagedHarvest as error:
                notify(f"harvested activations are damaged ({error}); harvesting them again")
                files.remove(folder)
        harvest(key, folder)
        return folder, check_harvest(folder, kept_seal(folder))


class DamagedHarvest(Exception):
    """A harvest that differs from its manifest."""


def check_harvest(folder: Path, sealed: str = "") -> Manifest:
    """Read the manifest and compare every file with its checksum, unless the harvest has the seal `sealed`.

    Raises DamagedHarvest.
    """
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedHarvest(f"{folder / 'manifest.json'}: {str(error).splitlines()[0]}") from None
    if missing := [file.name for file in manifest.files if not (folder / file.name).is_file()]:
        raise DamagedHarvest(f"{folder / missing[0]} is missing")
    found = seal(folder, manifest)  # before the contents are read, so that what changes meanwhile differs from it
    if found == sealed:
        return manifest
    for file in manifest.files:
        if checksum(folder / file.name) != file.sha256:
            raise DamagedHarvest(f"{folder / file.name} does not have its checksum")
    files.write_atomically(folder / SEAL, found)
    return manifest


def kept_seal(folder: Path) -> str:
    """Return the seal that the last check left in a harvest, or "" if there is none."""
    try:
        return files.read_plain_text(folder / SEAL)
    except (FileNotFoundError, files.BadFile):
        return ""


@torch.no_grad()
def harvest(key: HarvestKey, folder: Path) -> None:
    """Run the model over the training text, or draw from the world, and write `folder` whole or not at all."""
    with files.atomic_path(folder) as partial:
        partial.mkdir(parents=True)
        if key.streamed:
            manifest = streamed.prepare(partial, key.model, key.hook_name, key.text, key.rows)
        else:
            manifest = _store(key, partial)
        (partial / "manifest.json").write_text(manifest.model_dump_json())
        (partial / SEAL).write_text(seal(partial, manifest))


def _store(key: HarvestKey, folder: Path) -> Manifest:
    """Write all rows to shards in a folder."""
    source = _from_world(key) if is_world(key.model) else _from_text(key)
    writer = _Writer(folder, key.rows, source.width)
    for rows in source.batches:
        writer.add(rows)
        if writer.full:
            break
    return writer.finish(key, source)


def _require_room(key: HarvestKey, width: int, otherwise: str = "") -> None:
    """Raise UserError unless the disk has room for all rows, in float16, and one shard twice."""
    needed = 2 * (key.rows + SHARD_ROWS) * width
    cache.require_space(key.folder().parent, needed, "activations", otherwise)


@dataclass
class _Source:
    """Where the rows of a harvest come from."""

    width: int
    batches: Iterator[Tensor]  # [rows, width]
    median_norm: float | None = None
    documents: int = 0  # so far
    context: int | None = None


def _from_text(key: HarvestKey) -> _Source:
    """Return a language model's activations at its hook on the training text, without special and outlier tokens."""
    model = models.load(key.model)
    models.check_hook(model, key.hook_name)
    width = models.hook_width(model, key.hook_name)
    _require_room(key, width, ", or give --stream")
    ids = training_windows(model, key.model, key.text, key.rows)
    median = median_norm(model, ids[: tokens.TYPICAL_WINDOWS], key.hook_name)
    source = _Source(width, iter(()), median, context=ids.shape[1])

    def batches() -> Iterator[Tensor]:
        title = f"harvesting {key.hook_name} of {key.model}"
        for batch in track(ids.split(BATCH_WINDOWS), title, unit="windows", per_item=BATCH_WINDOWS):
            source.documents += tokens.documents_in(model, batch)
            hidden = run_to_hook(model, batch, key.hook_name)
            yield hidden[ordinary_mask(model, batch) & ~is_outlier(hidden, median)]

    source.batches = batches()
    return source


def _from_world(key: HarvestKey) -> _Source:
    """Return the activations of a world `[samples, d_in]`."""
    worlds.check_hook(key.model, key.hook_name)
    world = worlds.load(key.model, models.device_config().device)
    _require_room(key, world.cfg.hidden_dim)
    return _Source(world.cfg.hidden_dim, (rows for rows, _ in worlds.samples(world, key.rows, "sae")))


class _Writer:
    """A writer that deals rows to shards at random, and closes the shards shuffled, with checksums."""

    def __init__(self, folder: Path, rows: int, width: int) -> None:
        self.folder, self.target, self.width = folder, rows, width
        self.shards = math.ceil(rows / SHARD_ROWS)
        self.files = [(folder / f"{i}.raw").open("wb") for i in range(self.shards)]
        self.generator = torch.Generator().manual_seed(HARVEST_SEED)
        self.rows, self.norm_sum, self.sum = 0, 0.0, torch.zeros(width, dtype=torch.float64)
        self.stored_scale: float | None = None

    @property
    def full(self) -> bool:
        return self.rows >= self.target

    def add(self, rows: Tensor) -> None:
        rows = rows.float().cpu()[: self.target - self.rows]
        if len(rows) == 0:  # special tokens and outliers alone
            return
        if self.stored_scale is None:
            self.stored_scale = math.sqrt(self.width) / rows.norm(dim=1).mean().item()
        rows = rows * self.stored_scale
        self.rows += len(rows)
        self.norm_sum += rows.norm(dim=1).double().sum().item()
        self.sum += rows.double().sum(0)
        owner = torch.randint(self.shards, (len(rows),), generator=self.generator)
        for index, file in enumerate(self.files):
            file.write(rows[owner == index].half().numpy().tobytes())

    def finish(self, key: HarvestKey, source: _Source) -> Manifest:
        """Close the shards one by one, so that one of them at a time is on the disk twice."""
        if self.rows == 0 or self.stored_scale is None:
            raise UserError(
                f"{key.model} has no activations on the training text: its tokenizer gives only special tokens"
            )
        shards = [self._close(index) for index in range(self.shards)]
        correction = math.sqrt(self.width) / (self.norm_sum / self.rows)
        return Manifest(
            format=FORMAT,
            model=key.model,
            hook_name=key.hook_name,
            d_in=self.width,
            rows=self.rows,
            scale=self.stored_scale * correction,
            stored_scale=self.stored_scale,
            mean=(self.sum / self.rows * correction).tolist(),
            shards=[shard for shard in shards if shard.rows],
            text=key.text,
            documents=source.documents,
            median_norm=source.median_norm,
            context=source.context,
        )

    def _close(self, index: int) -> Shard:
        raw = self.folder / f"{index}.raw"
        self.files[index].close()
        data = torch.frombuffer(bytearray(raw.read_bytes()), dtype=torch.float16).view(-1, self.width)
        data = data[torch.randperm(len(data), generator=self.generator)]
        path = self.folder / f"shard_{index:04d}.safetensors"
        save_file({"activations": data.contiguous()}, path)
        raw.unlink()
        return Shard(name=path.name, rows=len(data), sha256=checksum(path))
