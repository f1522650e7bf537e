"""One pass over the text with one SAE: how often each latent fires, and where and how strongly those that are kept do.

Nothing of the size [tokens, d_sae] is held: a batch is encoded, counted and let go.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.evaluation.feature_text import FeatureText, Part

SAMPLE = 128  # latents that fired, drawn at random
SAMPLE_SEED = 0
COUNTED = 2**16  # tokens, the first ones, on which firing together and the latents of other SAEs are counted
MOST_PLACES = 50_000  # of a latent, after which no more parts are looked at for where it fires
BATCH_VALUES, LEAST_BATCH = 2**21, 256  # tokens times d_sae of a batch, and its tokens at least


@dataclass(frozen=True)
class Places:
    """Where one latent fires, in the order of the text."""

    places: np.ndarray  # [n], in the text
    values: np.ndarray  # [n], its activations there


class Collector:
    """What was seen of an SAE's latents. `always` are kept, and a seeded sample of those that fire."""

    def __init__(self, sae: Checkpoint, always: Iterable[int]) -> None:
        self.sae, d_sae = sae, sae.header.d_sae
        generator = torch.Generator().manual_seed(SAMPLE_SEED)
        self._order = torch.randperm(d_sae, generator=generator).to(sae.device)
        self.tokens = self.tokens_of_dev = self.counted = 0
        self._columns: list[int] = sorted(set(always))  # those that may be kept; they only grow
        self._fired = torch.zeros(d_sae, device=sae.device, dtype=torch.float64)
        self._fired_of_counted = self._fired
        self._together = torch.zeros(len(self._columns), d_sae, device=sae.device)
        self._firings: list[tuple[Tensor, Tensor, Tensor]] = []  # place, column and activation, part by part
        self._always = set(self._columns)
        size = max(LEAST_BATCH, BATCH_VALUES // d_sae)
        self._active = torch.empty(size, d_sae, device=sae.device)  # written anew for each batch: new memory costs time

    @torch.no_grad()
    def look_at(self, text: FeatureText, seconds: float) -> None:
        """Encode the text, as far as it comes in the time."""
        for part in text.parts(seconds):
            self._add(part, text)
            self.tokens_of_dev += int((part.places < text.dev_places).sum())

    @property
    def sampled(self) -> list[int]:
        """The sample: of the latents that fired those that come first in a seeded order."""
        fired = self._order[self._fired[self._order] > 0]
        return sorted(fired[:SAMPLE].tolist())

    @property
    def kept(self) -> list[int]:
        """The sample, and what is always kept."""
        return sorted(self._always | set(self.sampled))

    @property
    def fired(self) -> Tensor:
        """Tokens on which each latent is active, `[d_sae]`."""
        return self._fired.long().cpu()

    @property
    def fired_of_counted(self) -> Tensor:
        """The same of the first COUNTED tokens alone."""
        return self._fired_of_counted.long().cpu()

    def places(self, latent: int) -> Places:
        """Return where a kept latent fires. Of one that fires on more than MOST_PLACES tokens it is where it did until
        it had, to the end of that part."""
        column = self._columns.index(latent)
        places, columns, values = self._joined
        start, end = np.searchsorted(columns, [column, column + 1])
        return Places(places[start:end], values[start:end])

    def correlations(self, latents: Sequence[int]) -> Tensor:
        """Return the phi coefficients of the firing of some latents with all, `[latents, d_sae]`: the correlation of
        two that are 0 or 1. It is 0 where one never or always fires on the first COUNTED tokens."""
        rows = [self._columns.index(latent) for latent in latents]
        n, own = self.counted, self._fired_of_counted
        covariance = n * self._together[rows].double() - own[list(latents), None] * own
        spread = (own * (n - own)).sqrt()
        scale = spread[list(latents), None] * spread
        return torch.where(scale > 0, covariance / scale.clamp_min(1e-9), 0.0)

    def _add(self, part: Part, text: FeatureText) -> None:
        own = torch.tensor(
            [self._count(column) < MOST_PLACES for column in range(len(self._columns))], dtype=torch.bool
        )
        size = len(self._active)
        for rows, places in zip(part.rows.split(size), part.places.split(size), strict=True):
            latents = self.sae.encode(text.unscaled(rows))
            active = torch.ne(latents, 0, out=self._active[: len(rows)])
            self._fired = self._fired + active.sum(0)
            self.tokens += len(rows)
            own = self._grow(own)
            if self.tokens <= COUNTED or not self.counted:
                self._together += active[:, self._columns].T @ active
                self._fired_of_counted, self.counted = self._fired, self.tokens
            chosen = own.nonzero().flatten()
            values = latents[:, torch.tensor(self._columns)[chosen].to(latents.device)]
            where = values.nonzero()
            self._firings.append(
                (places[where[:, 0].cpu()].int(), chosen[where[:, 1].cpu()].int(), values[where.unbind(1)].cpu())
            )

    def _grow(self, own: Tensor) -> Tensor:
        """Admit the latents of the sample that fire for the first time, so that nothing of them was missed."""
        new = sorted(set(self.sampled) - set(self._columns))
        if not new:
            return own
        self._columns += new
        self._together = torch.cat([self._together, self._together.new_zeros(len(new), self._together.shape[1])])
        return torch.cat([own, torch.ones(len(new), dtype=torch.bool)])

    def _count(self, column: int) -> int:
        return int(self._fired[self._columns[column]])

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places, columns and activations, by column and then by place."""
        places, columns, values = (torch.cat(each).numpy() for each in zip(*self._firings, strict=True))
        self._firings = []
        order = np.argsort(columns.astype(np.int16 if len(self._columns) < 2**15 else np.int32), kind="stable")
        return places[order], columns[order], values[order]


@torch.no_grad()
def count_firings(sae: Checkpoint, text: FeatureText, seconds: float) -> Tensor:
    """Return on how many of the first COUNTED tokens each latent of an SAE is active, `[d_sae]`."""
    fired, tokens = torch.zeros(sae.header.d_sae, dtype=torch.long), 0
    size = max(LEAST_BATCH, BATCH_VALUES // sae.header.d_sae)
    for part in text.parts(seconds):
        for rows in part.rows.split(size):
            if tokens + len(rows) > COUNTED and tokens:
                return fired
            fired += (sae.encode(text.unscaled(rows)) != 0).sum(0).cpu()
            tokens += len(rows)
    return fired
