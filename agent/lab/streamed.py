"""A model's rows made as they are read, block by block, where they are too many to be stored.

What is stored is the text as token ids: 2 GB for 500 million tokens. A pass reads its windows in an order that the seed
fixes; the windows of a block go through the model, and the rows of the block are shuffled. Blocks depend on the model,
the text and the seed alone, so the same seed gives the same rows, and any row can be begun at. While a block is read, a
thread makes the next one.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import cache, models, tokens
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
from agent.lab.progress import track
from agent.lab.rows import Manifest, Shard, Signatures, checksum, require_unchanged

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = 1
WINDOWS = "windows.safetensors"
SAMPLE_ROWS = 2**18  # of the text, from which scale and mean are measured: to a 500th of a standard deviation
FIRST_ROWS = 2**14  # in the first block of a pass, so that a training begins soon; each next one has twice as many
BLOCK_ROWS, BLOCK_BYTES = 2**18, 2**30  # of a block, at most; two are in memory, the next one among them
COUNTED_WINDOWS = 2**16  # looked through at once


@torch.no_grad()
def prepare(folder: Path, model_name: str, hook_name: str, text: str, rows: int) -> Manifest:
    """Write the token ids of a pinned text into a folder, for at least `rows` rows or all there are.

    Return the manifest, whose scale and mean are those of a sample. Raises UserError for a full disk, or a text
    without ordinary tokens.
    """
    model = models.load(model_name)
    models.check_hook(model, hook_name)
    cache.require_space(
        folder.parent, 2 * 4 * rows, "token ids"
    )  # int32; corpus.py keeps those of a text of the user's own
    ids = training_windows(model, model_name, text, rows)
    counts = torch.cat([ordinary_mask(model, part).sum(1).cpu() for part in ids.split(COUNTED_WINDOWS)]).cumsum(0)
    ids = ids[: int((counts < rows).sum()) + 1]
    save_file({"windows": ids.int().contiguous()}, folder / WINDOWS)
    if counts[-1] == 0:
        raise UserError(
            f"{model_name} has no activations on the training text: its tokenizer gives only special tokens"
        )
    median = median_norm(model, ids[: tokens.TYPICAL_WINDOWS], hook_name)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(HARVEST_SEED))
    scale, mean = _measure(model, ids[order[: math.ceil(SAMPLE_ROWS / ids.shape[1])]], hook_name, median)
    return Manifest(
        format=FORMAT,
        model=model_name,
        hook_name=hook_name,
        d_in=len(mean),
        rows=int(counts[len(ids) - 1]),
        scale=scale,
        stored_scale=scale,
        mean=mean,
        shards=[],
        windows=Shard(name=WINDOWS, rows=len(ids), sha256=checksum(folder / WINDOWS)),
        text=text,
        documents=sum(tokens.documents_in(model, part) for part in ids.split(COUNTED_WINDOWS)),
        median_norm=median,
        context=ids.shape[1],
    )


def _measure(model: "HookedTransformer", ids: Tensor, hook_name: str, median: float) -> tuple[float, list[float]]:
    """Return the factor that gives the activations on some windows a mean norm of sqrt(d_in), and their scaled mean."""
    width = models.hook_width(model, hook_name)
    total, norms, count = torch.zeros(width, dtype=torch.float64), 0.0, 0
    title = f"measuring {hook_name}"
    for batch in track(ids.split(BATCH_WINDOWS), title, unit="windows", per_item=BATCH_WINDOWS):
        hidden = run_to_hook(model, batch, hook_name)
        kept = hidden[ordinary_mask(model, batch) & ~is_outlier(hidden, median)].float()
        total += kept.sum(0).double().cpu()
        norms += kept.norm(dim=1).sum().item()
        count += len(kept)
    scale = math.sqrt(width) / (norms / count)
    return scale, (total / count * scale).tolist()


@dataclass(frozen=True)
class Block:
    """Rows that are made together and shuffled."""

    windows: Tensor  # their numbers in the text
    seed: int  # of the order of its rows


class Blocks:
    """The blocks of a streamed harvest, made one at a time by a thread that the model belongs to."""

    def __init__(self, folder: Path, manifest: Manifest, model_name: str, checked: Signatures | None = None) -> None:
        """`checked` holds the signature of the token ids when their checksum was compared, if they may change after."""
        self.folder, self.manifest, self.checked = folder, manifest, checked
        self._model = models.load(model_name)
        self._ids = load_file(folder / WINDOWS)["windows"]  # mapped: what is not read takes no memory
        self._thread = ThreadPoolExecutor(1)

    def order(self, seed: int) -> Iterator[Block]:
        """Yield the blocks of one pass after another, each pass in another order."""
        for number in itertools.count():
            windows = torch.randperm(len(self._ids), generator=_generator(seed, number))
            for index, part in enumerate(windows.split(self._sizes())):
                yield Block(part, _derived_seed(seed, number, index))

    def count(self, block: Block) -> int:
        """Return the number of rows of a block: its ordinary tokens."""
        return int(ordinary_mask(self._model, self._ids[block.windows]).sum())

    def make(self, block: Block) -> "Future[Tensor]":
        """Have the rows `[rows, d_in]` of a block made, float16, scaled. The future may raise ChangedShard."""
        return self._thread.submit(self._make, block)

    @torch.no_grad()
    def _make(self, block: Block) -> Tensor:
        ids = self._ids[block.windows]
        require_unchanged(self.folder, WINDOWS, self.checked)  # of what was just copied
        generator, done = torch.Generator().manual_seed(block.seed), 0
        place = torch.randperm(int(ordinary_mask(self._model, ids).sum()), generator=generator)
        rows = torch.empty(len(place), self.manifest.d_in, dtype=torch.float16)
        usual = torch.empty(len(place), dtype=torch.bool)
        for batch in ids.split(BATCH_WINDOWS):
            hidden = run_to_hook(self._model, batch, self.manifest.hook_name)[ordinary_mask(self._model, batch)]
            places = place[done : done + len(hidden)]
            rows[places] = (hidden.float() * self.manifest.scale).half().cpu()
            usual[places] = ~is_outlier(hidden, self.manifest.median_norm or 0.0).cpu()
            done += len(hidden)
        # The number of rows must follow from the tokens alone, or nobody could tell where the n-th one is. So in place
        # of an outlier another row of the block stands twice.
        usual_places = usual.nonzero().flatten()
        if 0 < len(usual_places) < len(rows):
            drawn = torch.randint(len(usual_places), (len(rows) - len(usual_places),), generator=generator)
            rows[~usual] = rows[usual_places[drawn]]
        return rows

    def _sizes(self) -> list[int]:
        """Return the windows of each block of a pass."""
        windows, context = self._ids.shape
        most = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (2 * self.manifest.d_in)) // context)
        sizes, size = [], min(most, max(1, FIRST_ROWS // context))
        while windows > 0:
            sizes.append(min(size, windows))
            windows, size = windows - sizes[-1], min(2 * size, most)
        return sizes


class StreamedRows:
    """The rows of a streamed harvest, one pass over the text after another."""

    def __init__(self, blocks: Blocks, total: int) -> None:
        """No block is made ahead that `total` rows do not need."""
        self._blocks, self._total = blocks, total
        self._next: Future[Tensor] | None = None

    def start(self, seed: int, skip: int = 0) -> None:
        """Begin `skip` rows into the order that the seed fixes; of the blocks before, the tokens are counted."""
        self.close()
        blocks = self._blocks.order(seed)
        block = next(blocks)
        while (count := self._blocks.count(block)) <= skip:
            skip, block = skip - count, next(blocks)
        self._coming, self._skip = itertools.chain([block], blocks), skip
        self._rest, self._wanted = torch.empty(0, self._blocks.manifest.d_in, dtype=torch.float16), self._total

    def take(self, count: int) -> Tensor:
        """Return the next rows `[count, d_in]`, float16, scaled."""
        parts = []
        while count > 0:
            if len(self._rest) == 0:
                self._rest = self._next_block()
            parts.append(self._rest[:count])
            self._rest = self._rest[count:]
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def fill(self, count: int) -> None:
        """Do nothing: the next block is made while this one is read."""

    def close(self) -> None:
        """Give up the block that is to be made next."""
        if self._next:
            self._next.cancel()
        self._next = None

    def _next_block(self) -> Tensor:
        rows = (self._next or self._blocks.make(next(self._coming))).result()[self._skip :]
        self._wanted -= len(rows)
        self._skip, self._next = 0, self._blocks.make(next(self._coming)) if self._wanted > 0 else None
        return rows


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(_derived_seed(*parts))


def _derived_seed(*parts: int) -> int:
    """Return a seed that differs wherever one of the parts does."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
