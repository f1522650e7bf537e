"""A model's activations: harvested once, kept shuffled on disk, streamed to every run.

A harvest is a folder of float16 shards with a manifest (sizes, checksums, scaling). The rows of a batch go to random
shards, and a shard is shuffled when it is closed, so reading one shard after another is reading shuffled text.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from agent.lab import cache, corpus, models, tokens, worlds
from agent.lab.defaults import CONTEXT, SMOKE_TOKENS, SOCKET_VARIABLE, is_world
from agent.lab.errors import UserError
from agent.lab.locks import waiting_lock
from agent.lab.progress import notify, track
from agent.lab.rows import Connection, Manifest, Rows, ServedRows, Shard, StoredRows

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = 2
SHARD_ROWS = 131_072
BATCH_WINDOWS = 16
HARVEST_SEED = 0
MAX_HARVEST = 20_000_000  # rows; longer trainings read them again in another order
OUTLIER_RATIO = 10  # to the median norm; dictionary_learning's max_activation_norm_multiple


@dataclass(frozen=True)
class HarvestKey:
    """The key of a harvest: two harvests with the same key are the same."""

    model: str
    identity: str
    hook_name: str
    rows: int
    text: str = ""  # pinned, see corpus.py

    def folder(self) -> Path:
        """Return the folder of the harvest in the cache."""
        world = is_world(self.model)
        dtype = torch.float32 if world else models.device_config().dtype
        context = CONTEXT if world else models.most_context()
        parts = [FORMAT, corpus.version(self.text), HARVEST_SEED, context, str(dtype)]
        digest = hashlib.sha256(json.dumps([self.identity, self.hook_name, self.rows, *parts]).encode())
        model = cache.slug(Path(models.canonical_name(self.model)).name)
        return cache.root() / "activations" / f"{model}-{cache.slug(self.hook_name)}-{digest.hexdigest()[:12]}"


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
    return stored_stream(*ensure_harvest(model, hook_name, tokens, corpus.pin(text)), total, batch, seed, budget)


@functools.cache
def _process_budget(budget: int) -> TokenBudget:
    """Return the one budget of the process: a second pass over the data counts too."""
    return TokenBudget(budget)


@functools.cache
def _connection(descriptor: int) -> Connection:
    """Return the one connection of the process to the server of activations."""
    return Connection(descriptor)


def ensure_harvest(model: str, hook_name: str, tokens: int, text: str = "") -> tuple[Path, Manifest]:
    """Return folder and manifest of a checked harvest; make it if it is missing or damaged. Other processes wait.

    `text` is pinned. Raises UserError.
    """
    if text and is_world(model):
        raise UserError(f"{model} is a synthetic world and has no text: leave out {corpus.source(text)}")
    key = HarvestKey(model, models.identity(model), hook_name, min(tokens, MAX_HARVEST), text)
    folder = key.folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_name(folder.name + ".lock"), "another process harvests the same activations"):
        if folder.exists():
            try:
                return folder, check_harvest(folder)
            except DamagedHarvest as error:
                notify(f"harvested activations are damaged ({error}); harvesting them again")
                shutil.rmtree(folder)
        harvest(key, folder)
        return folder, check_harvest(folder)


class DamagedHarvest(Exception):
    """A harvest that differs from its manifest."""


def check_harvest(folder: Path) -> Manifest:
    """Read the manifest and compare every shard with its checksum. Raises DamagedHarvest."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedHarvest(f"{folder / 'manifest.json'}: {str(error).splitlines()[0]}") from None
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file() or _sha256(path) != shard.sha256:
            raise DamagedHarvest(f"{path} does not have its checksum")
    return manifest


@torch.no_grad()
def harvest(key: HarvestKey, folder: Path) -> None:
    """Run the model over the training text, or draw from the world, and write `folder` whole."""
    partial = folder.with_name(folder.name + ".partial")  # one name, so that the next harvest removes what a kill left
    shutil.rmtree(partial, ignore_errors=True)
    source = _from_world(key) if is_world(key.model) else _from_text(key)
    cache.require_space(folder.parent, 2 * 2 * key.rows * source.width, "activations")
    partial.mkdir(parents=True)
    writer = _Writer(partial, key.rows, source.width)
    for rows in source.batches:
        writer.add(rows)
        if writer.full:
            break
    writer.finish(key, source)
    partial.rename(folder)


@dataclass
class _Source:
    """Where the rows of a harvest come from."""

    width: int
    batches: Iterator[Tensor]  # [rows, width]
    median_norm: float | None = None
    documents: int = 0  # so far


def _from_text(key: HarvestKey) -> _Source:
    """Return a language model's activations at its hook on the training text, without special and outlier tokens."""
    model = models.load(key.model)
    models.check_hook(model, key.hook_name)
    width = models.hook_width(model, key.hook_name)
    ids = training_windows(model, key.model, key.text, key.rows)
    median = median_norm(model, ids[: tokens.TYPICAL_WINDOWS], key.hook_name)
    source = _Source(width, iter(()), median)

    def batches() -> Iterator[Tensor]:
        title = f"harvesting {key.hook_name} of {key.model}"
        for batch in track(ids.split(BATCH_WINDOWS), title, unit="windows", per_item=BATCH_WINDOWS):
            source.documents += tokens.documents_in(model, batch)
            hidden = run_to_hook(model, batch, key.hook_name)
            yield hidden[ordinary_mask(model, batch) & ~is_outlier(hidden, median)]

    source.batches = batches()
    return source


def training_windows(model: "HookedTransformer", name: str, text: str, rows: int) -> Tensor:
    """Return windows `[windows, context]` of a pinned text for at least `rows` activations, or all there are."""
    if text:
        return corpus.train_windows(text, name, lambda: model, rows)
    wanted = tokens.with_some_to_spare(rows)
    return tokens.windows(model, tokens.text_split_for(name, "sae"), models.context_size(model), wanted, HARVEST_SEED)


@torch.no_grad()
def median_norm(model: "HookedTransformer", ids: Tensor, hook_name: str) -> float:
    """Return the median norm of the activations on the ordinary tokens of some windows of the training text.

    It is a property of model and hook alone, so that outlier tokens are the same for every SAE.
    """
    norms = [
        run_to_hook(model, batch, hook_name)[ordinary_mask(model, batch)].float().norm(dim=1)
        for batch in ids.split(BATCH_WINDOWS)
    ]
    return torch.cat(norms).median().item() if norms else 0.0


def is_outlier(hidden: Tensor, median: float) -> Tensor:
    """Return the mask `[...]` of the activations `[..., d_in]` whose norm is above OUTLIER_RATIO times the median.

    A few tokens have huge norms, such as the first ones (Sun et al. 2024, "Massive Activations", arXiv 2402.17762):
    they would decide scale, mean and loss, and SAEs are not meant for them.
    """
    return hidden.float().norm(dim=-1) > (OUTLIER_RATIO * median or math.inf)


def _from_world(key: HarvestKey) -> _Source:
    """Return the activations of a world `[samples, d_in]`."""
    worlds.check_hook(key.model, key.hook_name)
    world = worlds.load(key.model, models.device_config().device)
    return _Source(world.cfg.hidden_dim, (rows for rows, _ in worlds.samples(world, key.rows, "sae")))


def run_to_hook(model: "HookedTransformer", ids: Tensor, hook_name: str) -> Tensor:
    """Return activations `[batch, context, d_in]` at a hook, in the model's dtype, running no layer above it."""
    _, cached = model.run_with_cache(
        ids.to(models.device_config().device),
        names_filter=[hook_name],
        stop_at_layer=models.layer_of(hook_name) + 1,
        prepend_bos=False,
    )
    return cached[hook_name]


def ordinary_mask(model: "HookedTransformer", ids: Tensor) -> Tensor:
    """Return the mask `[batch, context]` of the tokens that are not special."""
    special = torch.tensor(sorted(tokens.special_ids(model)), dtype=ids.dtype)
    return ~torch.isin(ids, special).to(models.device_config().device)


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

    def finish(self, key: HarvestKey, source: _Source) -> None:
        if self.rows == 0 or self.stored_scale is None:
            raise UserError(
                f"{key.model} has no activations on the training text: its tokenizer gives only special tokens"
            )
        shards = [self._close(index) for index in range(self.shards)]
        correction = math.sqrt(self.width) / (self.norm_sum / self.rows)
        manifest = Manifest(
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
        )
        (self.folder / "manifest.json").write_text(manifest.model_dump_json())

    def _close(self, index: int) -> Shard:
        raw = self.folder / f"{index}.raw"
        self.files[index].close()
        data = torch.frombuffer(bytearray(raw.read_bytes()), dtype=torch.float16).view(-1, self.width)
        data = data[torch.randperm(len(data), generator=self.generator)]
        path = self.folder / f"shard_{index:04d}.safetensors"
        save_file({"activations": data.contiguous()}, path)
        raw.unlink()
        return Shard(name=path.name, rows=len(data), sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
