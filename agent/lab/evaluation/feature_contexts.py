"""The contexts that stand for a latent: its strongest, and a spread of weaker ones. No two show the same text."""

from collections.abc import Iterable

import numpy as np

from agent.lab.evaluation.feature_collector import Places
from agent.lab.evaluation.feature_text import FeatureText
from agent.lab.features import Context

TOP = 10  # contexts
BINS, OF_A_BIN = 5, 2  # of the weaker activations, by quantile, and the contexts of one
TRIED = 200  # places at most, for so many contexts that differ
BEFORE, AFTER = 20, 11  # tokens around the one that a context is chosen for


class Contexts:
    """Chooses contexts of one latent, none of which overlaps another or has its tokens."""

    def __init__(self, text: FeatureText, fires: Places) -> None:
        self.text, self.fires = text, fires
        self._taken: set[tuple[int, ...]] = set()
        self._stretches: list[range] = []

    def top(self) -> list[Context]:
        """Return the contexts of the strongest activations, the strongest first."""
        return self._choose(self._by_strength[:TRIED], TOP)

    def spread(self) -> list[Context]:
        """Return a few contexts of each quantile bin of the activations, from the strongest bin to the weakest."""
        generator, found = np.random.default_rng(0), list[Context]()
        for bin in np.array_split(self._by_strength, BINS):
            drawn = generator.permutation(bin)[:TRIED]
            of_bin = self._choose(drawn, OF_A_BIN)
            found += sorted(of_bin, key=lambda context: -context.activations[context.peak])
        return found

    @property
    def _by_strength(self) -> np.ndarray:
        return np.argsort(-self.fires.values, kind="stable")

    def _choose(self, candidates: Iterable[int], most: int) -> list[Context]:
        found: list[Context] = []
        for candidate in candidates:
            if len(found) == most:
                break
            if context := self._context(int(self.fires.places[candidate])):
                found.append(context)
        return found

    def _context(self, place: int) -> Context | None:
        """Return the context of a place, or None if it overlaps one that was chosen, or has the same tokens."""
        window, position = divmod(place, self.text.context)
        start, end = max(0, position - BEFORE), min(self.text.context, position + AFTER + 1)
        first = window * self.text.context
        stretch = range(first + start, first + end)
        ids = tuple(self.text.ids[window, start:end].tolist())
        overlaps = any(stretch.start < other.stop and other.start < stretch.stop for other in self._stretches)
        if overlaps or (not self.text.is_world and ids in self._taken):
            return None
        self._stretches.append(stretch)
        self._taken.add(ids)
        activations = np.zeros(len(stretch))
        low, high = np.searchsorted(self.fires.places, [stretch.start, stretch.stop])
        activations[self.fires.places[low:high] - stretch.start] = self.fires.values[low:high]
        tokens = [f"sample {place:,}"] if self.text.is_world else self.text.strings(list(ids))
        return Context(tokens=tokens, activations=[rounded(a) for a in activations.tolist()], peak=position - start)


def rounded(value: float) -> float:
    """Return a figure to four significant digits, as it is kept."""
    return float(f"{value:.4g}")
