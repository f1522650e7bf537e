"""A baseline whose L1 coefficient moves its L0, read from a front: a quadratic in log L0, fitted to all its trainings.

Seeds at one coefficient differ in L0, so there are no levels to read between. By least squares each metric is a
quadratic in log L0, and the noise of the metric is the standard deviation of the trainings about it.
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
    Reading,
    at_least_rounding,
    reseeded_level,
    values_of,
)
from agent.comparison.significance import half_width_per_error, mean, standard_deviation
from agent.study.records import Baseline

# Between the coefficients of the ladder. With 1.5 a quadratic cannot follow the baseline over the range of L0, and its
# misfit widens the intervals several times (docs/calibration.md); what lies beyond is trained where a run is.
STEP = 1.25
LADDER = (1 / STEP**2, 1 / STEP, 1.0, STEP, STEP**2)  # of the baseline's own coefficient
OUTWARD = 2  # further coefficients to either side, for runs whose L0 is beyond the ladder's
TERMS = 3  # of a quadratic
LEAST_LEVELS = TERMS + 1  # so that at least one is not on the curve because it must be


def coefficient(own: float, factor: float) -> float:
    """Return another coefficient, in three digits, so that its name is the coefficient itself.

    >>> [coefficient(5.0, factor) for factor in LADDER]
    [3.2, 4.0, 5.0, 6.25, 7.81]
    """
    return own if factor == 1 else float(f"{own * factor:.3g}")


@dataclass(frozen=True)
class Quadratic:
    """Quadratics of a variable, as sums of three terms that are orthogonal over the points they are fitted to."""

    points: Sequence[float]

    @cached_property
    def _moments(self) -> tuple[float, float, float]:
        """The mean, the mean square about it, and the mean cube over that."""
        center = mean(self.points)
        apart = [point - center for point in self.points]
        square = mean([u**2 for u in apart])
        return center, square, mean([u**3 for u in apart]) / square

    def terms(self, x: float) -> tuple[float, float, float]:
        """Return the values of the three terms."""
        center, square, skew = self._moments
        u = x - center
        return 1.0, u, u * u - skew * u - square

    @cached_property
    def _norms(self) -> list[float]:
        return [sum(value**2 for value in term) for term in zip(*map(self.terms, self.points), strict=True)]

    def leverage(self, x: float) -> float:
        """Return the variance of a fitted curve at x, in units of one point's: x'(X'X)^-1 x."""
        return sum(value**2 / norm for value, norm in zip(self.terms(x), self._norms, strict=True))

    def fit(self, values: Sequence[float]) -> list[float]:
        """Return the coefficients of the terms, by least squares."""
        rows = [self.terms(point) for point in self.points]
        sums = [
            sum(value * term for value, term in zip(values, terms, strict=True)) for terms in zip(*rows, strict=True)
        ]
        return [total / norm for total, norm in zip(sums, self._norms, strict=True)]

    def at(self, x: float, fitted: Sequence[float]) -> float:
        """Return a fitted curve's value at x."""
        return sum(weight * term for weight, term in zip(fitted, self.terms(x), strict=True))


@dataclass(frozen=True)
class FittedFront:
    """The trainings of a baseline, by L1 coefficient, and the front that is fitted to them."""

    baselines: Sequence[Baseline]

    read_in_words: ClassVar[str] = "read from a quadratic in log L0 that is fitted to its trainings"
    line_in_words: ClassVar[str] = "a quadratic in log L0 fitted to its trainings"
    points_in_words: ClassVar[str] = "the baseline's trainings"

    @property
    def seeds(self) -> int:
        """The number of trainings that the front is fitted to."""
        return len(self.baselines)

    @cached_property
    def range(self) -> tuple[float, float]:
        """The least and the greatest L0 of the trainings."""
        l0s = [each.l0 for each in self.baselines]
        return min(l0s), max(l0s)

    def why_not(self, l0: float) -> str:
        """Return why nothing can be compared at an L0, or an empty string."""
        if not self._is_fitted:
            found = len({each.k for each in self.baselines})
            return f"the front takes trainings with {LEAST_LEVELS} L1 coefficients, and there are {found}; {NO_NOISE}"
        low, high = self.range
        if not low <= l0 <= high:
            return f"L0 {l0:.2f} is not between {low:.2f} and {high:.2f}, the L0 of the baselines"
        return ""

    def knobs(self, l0: float) -> list[float]:
        """Return all coefficients, where an L0 can be compared: each training is part of the front."""
        return [] if self.why_not(l0) else sorted({each.k for each in self.baselines})

    def read(self, name: str, l0: float) -> Reading | None:
        """Read a metric from the front at an L0, or L0 itself at the baseline's own coefficient."""
        if name == "l0":
            return self._own_l0()
        values = values_of(name, self.baselines)
        if values is None or not self._is_fitted:
            return None
        fitted, x = self._basis.fit(values), math.log(l0)
        noise = self._noise(name, values, fitted)
        error = noise * math.sqrt(1 + self._basis.leverage(x))
        return Reading(self._basis.at(x, fitted), noise, error, self._df)

    def read_near(self, name: str, l0: float) -> float | None:
        """Return a metric from the front at an L0 at most MATCH beyond the trainings'."""
        (low, high), values = self.range, values_of(name, self.baselines)
        if values is None or not self._is_fitted or not low / (1 + MATCH) <= l0 <= high * (1 + MATCH):
            return None
        return self._basis.at(math.log(l0), self._basis.fit(values))

    def missing(self, l0: float) -> float | None:
        """Return the next coefficient outward on the side where an L0 lies beyond the trainings', or None.

        L0 falls with the coefficient. None if it is within, or more than OUTWARD steps beyond the ladder.
        """
        low, high = self.range
        if low <= l0 <= high:
            return None
        ks = [each.k for each in self.baselines]
        further = coefficient(min(ks), 1 / STEP) if l0 > high else coefficient(max(ks), STEP)
        most = max(LADDER) * STEP ** (OUTWARD + 0.5)  # half a step more, since coefficients are rounded
        own = reseeded_level(self.baselines).k
        return further if own / most < further < own * most else None

    def drawn(self, name: str) -> Drawn | None:
        """Return the trainings, and the front with the interval of trainings around it."""
        measured = [(each.l0, value) for each in self.baselines if (value := each.figures.get(name)) is not None]
        if not measured:
            return None
        low, high = self.range
        fine = [low * (high / low) ** (i / (DRAWN - 1)) for i in range(DRAWN)]
        read = [(l0, there) for l0 in fine if (there := self.read(name, l0))]
        return Drawn(measured, [(l0, each.value, half_width_per_error(each.df) * each.error) for l0, each in read])

    @cached_property
    def _basis(self) -> Quadratic:
        return Quadratic([math.log(each.l0) for each in self.baselines])

    @property
    def _df(self) -> int:
        return len(self.baselines) - TERMS

    @cached_property
    def _is_fitted(self) -> bool:
        """True if there are trainings enough for a front, and for the noise about it."""
        coefficients, l0s = ({getattr(each, name) for each in self.baselines} for name in ("k", "l0"))
        return min(len(coefficients), len(l0s)) >= LEAST_LEVELS

    def _noise(self, name: str, values: Sequence[float], fitted: Sequence[float]) -> float:
        """Return the standard deviation of the trainings about the front."""
        points = self._basis.points
        rests = [value - self._basis.at(x, fitted) for x, value in zip(points, values, strict=True)]
        return at_least_rounding(name, math.sqrt(sum(rest**2 for rest in rests) / self._df))

    def _own_l0(self) -> Reading | None:
        """Return the mean L0 at the baseline's own coefficient; None without a second seed there."""
        own = reseeded_level(self.baselines)
        n = len(own.baselines)
        if n < 2:
            return None
        l0s = [each.l0 for each in own.baselines]
        noise = at_least_rounding("l0", standard_deviation(l0s))
        return Reading(mean(l0s), noise, noise * math.sqrt(1 + 1 / n), n - 1)
