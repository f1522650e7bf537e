"""A baseline whose K sets its L0, read linearly in log L0 between two levels that bracket the run's.

The levels lie at or below and at or above the run's L0, each within MATCH. The noise of a metric is the standard
deviation of the reseeded baselines, corrected for their own differences in L0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from agent.comparison.matching import (
    DRAWN,
    MATCH,
    NO_NOISE,
    Drawn,
    Level,
    Reading,
    at_least_rounding,
    levels,
    reseeded_level,
)
from agent.comparison.significance import half_width_per_error, mean, standard_deviation
from agent.study.records import Baseline


@dataclass(frozen=True)
class Brackets:
    """The levels of a baseline, by K; `whole`: of a kind whose K can only be a whole number."""

    baselines: Sequence[Baseline]
    whole: bool = False

    read_in_words: ClassVar[str] = f"interpolated within {MATCH:.0%} of it"
    line_in_words: ClassVar[str] = "linear in log L0 between its levels"
    points_in_words: ClassVar[str] = "the baseline's levels"

    @cached_property
    def levels(self) -> list[Level]:
        """The levels in the order of L0."""
        return levels(self.baselines)

    @cached_property
    def reseeded(self) -> Level:
        """The level of the baseline's own K."""
        return reseeded_level(self.baselines)

    @property
    def seeds(self) -> int:
        """The number of seeds of the baseline's own K."""
        return len(self.reseeded.baselines)

    def why_not(self, l0: float) -> str:
        """Return why nothing can be compared at an L0, or an empty string."""
        if self.seeds < 2:
            return NO_NOISE
        if self._pair(l0) is None:
            return f"no baselines on both sides of L0 {l0:.2f} within {reach(l0, self.whole):.0%} of it"
        return ""

    def knobs(self, l0: float) -> list[float]:
        """Return the K of the two levels that are read at an L0."""
        return [level.k for level in self._pair(l0) or ()]

    def read(self, name: str, l0: float) -> Reading | None:
        """Read a metric between the two levels around an L0, or L0 itself at the baseline's own K."""
        noise = self._noise(name)
        pair = (self.reseeded, self.reseeded) if name == "l0" else self._pair(l0)
        between = reference_at(name, l0, *pair) if pair else None
        if noise is None or between is None:
            return None
        value, variance = between
        return Reading(value, noise, noise * math.sqrt(1 + variance), self.seeds - 1)

    def read_near(self, name: str, l0: float) -> float | None:
        """Return a metric on the line through the outermost levels, at an L0 within MATCH of one of them."""
        low, high = self.levels[0], self.levels[-1]
        if min(abs(level.l0 / l0 - 1) for level in (low, high)) > reach(l0, self.whole):
            return None
        between = reference_at(name, l0, low, high)
        return between[0] if between else None

    def missing(self, l0: float) -> float | None:
        """Return the K of the baseline to train next, as `missing_k` does."""
        return missing_k(l0, self.baselines, self.whole) if len(self.baselines) > 1 else None

    def drawn(self, name: str) -> Drawn | None:
        """Return the means of the levels and the line between them, with the interval of trainings at their own K."""
        measured = [(level.l0, mean(values)) for level in self.levels if (values := level.values(name))]
        if not measured:
            return None
        noise = self._noise(name) if self.seeds > 1 else None
        half_width = None if noise is None else half_width_per_noise(self.seeds) * noise
        line = [(l0, value, half_width) for l0, value in _interpolated(measured)] if len(measured) > 1 else []
        return Drawn(measured, line)

    def _pair(self, l0: float) -> tuple[Level, Level] | None:
        return bracketing_levels(l0, self.baselines, self.whole)

    def _noise(self, name: str) -> float | None:
        """Return the standard deviation of the reseeded baselines about the curve; None if one of them lacks it."""
        values = self.reseeded.values(name)
        if values is None:
            return None
        slope = 0.0 if name == "l0" else self._slope(name)
        trained = zip(values, self.reseeded.baselines, strict=True)
        return at_least_rounding(
            name, standard_deviation([value - slope * math.log(baseline.l0) for value, baseline in trained])
        )

    def _slope(self, name: str) -> float:
        """Return the change of a metric with log L0 around the own K; 0 if unknown, which widens the noise."""
        place = self.levels.index(self.reseeded)
        low, high = self.levels[max(place - 1, 0)], self.levels[min(place + 1, len(self.levels) - 1)]
        below, above = low.values(name), high.values(name)
        if low.log_l0 == high.log_l0 or below is None or above is None:
            return 0.0
        return (mean(above) - mean(below)) / (high.log_l0 - low.log_l0)


def half_width_per_noise(seeds: int) -> float:
    """Return the half width of the interval of a training at the own K, in standard deviations of one."""
    return half_width_per_error(seeds - 1) * math.sqrt(1 + 1 / seeds)


def reach(l0: float, whole: bool) -> float:
    """Return how far a level may lie from an L0 that is read beside it, as a share: MATCH, or a step of a whole K.

    >>> reach(16, whole=True), reach(8, whole=True)
    (0.1, 0.125)
    """
    return max(MATCH, 1 / l0) if whole else MATCH


def bracketing_levels(l0: float, baselines: Sequence[Baseline], whole: bool = False) -> tuple[Level, Level] | None:
    """Return the nearest levels at or below and at or above an L0, each within reach, or None."""
    near = [level for level in levels(baselines) if abs(level.l0 / l0 - 1) <= reach(l0, whole)]
    below = [level for level in near if level.log_l0 <= math.log(l0)]
    above = [level for level in near if level.log_l0 >= math.log(l0)]
    return (below[-1], above[0]) if below and above else None


def k_step(k: float, whole: bool = False) -> float:
    """Return the step between neighbouring K of baselines: 1, and below 16 a power of 1/2, at most a sixteenth of K.

    BatchTopK keeps the K * batch largest of a batch, so K need not be whole. At small L0 whole ones would lie further
    apart than MATCH, and the runs between them could not be compared. A `whole` K has no other step than 1.

    >>> [k_step(k) for k in (32, 16, 8, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return 1.0 if whole else min(1.0, 2.0 ** math.floor(math.log2(k / 16)))


def required_ks(k: float, seeds: int, largest: float, whole: bool) -> tuple[list[float], list[float]]:
    """Return the K beside the baseline's own that every study needs: neighbours, and those of the L0 curve.

    Runs at the baseline's L0 are read between the neighbours; with one seed no run is judged, so there are none.
    """
    step = k_step(k, whole)
    half = k // 2 if whole else k / 2
    neighbours = [other for other in (k - step, k + step) if other > 0] if seeds > 1 else []
    return neighbours, [other for other in (half, 2 * k) if 0 < other <= largest and other not in neighbours]


def missing_k(l0: float, baselines: Sequence[Baseline], whole: bool = False) -> float | None:
    """Return the K of the baseline to train next so that an L0 is bracketed; None if it is, or cannot be.

    Never a K that was trained, and none beyond twice or half of the one that has this L0 by the baseline's own level,
    so asking and training comes to an end. L0 need not be K: a loss that steers to it may miss it by a fifth.
    """
    if bracketing_levels(l0, baselines, whole):
        return None
    trained, own = levels(baselines), reseeded_level(baselines)
    taken = {level.k for level in trained}
    nearest = min(trained, key=lambda level: abs(level.log_l0 - math.log(l0)))
    per_k, expected = nearest.l0 / nearest.k, l0 * own.k / own.l0
    unit = k_step(l0 / per_k, whole)
    k = round(l0 / per_k / unit) * unit
    stride = unit * max(1, round(k * MATCH / 3 / unit))  # well beyond the noise of an L0
    while k in taken:  # that side is bracketed: look on the other
        k += stride if nearest.l0 < l0 else -stride
    likely = abs(k * per_k / l0 - 1) <= 1.5 * reach(l0, whole)  # the L0 it has is only known once it is trained
    return k if likely and max(1, expected / 2) <= k <= 2 * expected else None


def reference_at(name: str, l0: float, low: Level, high: Level) -> tuple[float, float] | None:
    """Return a metric read at an L0 between two levels, and its variance in units of one training's.

    With weights w1 and w2 of levels of n1 and n2 baselines, the variance is w1^2/n1 + w2^2/n2; a run's difference from
    it adds the run's own 1. None if a baseline lacks the metric.
    """
    below, above = low.values(name), high.values(name)
    if below is None or above is None:
        return None
    width = high.log_l0 - low.log_l0
    weight = (math.log(l0) - low.log_l0) / width if width else 0.0
    variance = (1 - weight) ** 2 / len(below) + weight**2 / len(above)
    return (1 - weight) * mean(below) + weight * mean(above), variance


def _interpolated(measured: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points of the line between levels, linear in log L0."""
    import numpy as np  # here because the driver starts sooner without it

    l0s, values = zip(*measured, strict=True)
    fine = np.geomspace(l0s[0], l0s[-1], DRAWN)
    return list(zip(fine.tolist(), np.interp(np.log(fine), np.log(l0s), values).tolist(), strict=True))
