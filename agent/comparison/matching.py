"""Compare a run with the baseline at the run's own L0, against measured noise.

Reconstruction and CE-loss figures depend on L0 more than on most changes one tries. So the baseline is a curve over L0,
made of its trainings, and is read at the run's own L0. There are two kinds of curve (curves.py): where a K sets the L0,
what lies between two levels (brackets.py); where a coefficient does, a front fitted to all trainings (fitted_front.py).
The noise of a metric is the standard deviation of the trainings about the curve; it is taken to be the same at every L0
and for every variant. Every run and baseline here has the verdict ok, and so an L0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

from agent.comparison.significance import compare_to_reference, mean
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Comparison, FinalInfo
from agent.study.records import Baseline

DRAWN = 300  # points of a curve's line
MATCH = 0.10  # a baseline whose L0 differs by more than this share says nothing about a run
NO_NOISE = "the noise between seeds was not measured"
ONE_SEED = "one baseline seed: no interval, so nothing is said to be better or worse"
LEAST_NOISE = {"alive_fraction": 0.001}  # one dead latent in a thousand; for other metrics, their rounding


@dataclass(frozen=True)
class Level:
    """The baselines of one knob: of one K, or of one coefficient."""

    k: float
    baselines: tuple[Baseline, ...]

    @cached_property
    def log_l0(self) -> float:
        """The mean of log L0."""
        return mean([math.log(baseline.l0) for baseline in self.baselines])

    @property
    def l0(self) -> float:
        """The geometric mean of L0."""
        return math.exp(self.log_l0)

    def values(self, metric: str) -> list[float] | None:
        """Return a metric of each baseline, or None if one of them lacks it."""
        return values_of(metric, self.baselines)


@dataclass(frozen=True)
class Reading:
    """A metric of the baseline at an L0, and how far a training there may lie from it by chance."""

    value: float
    noise: float  # the standard deviation of one training
    error: float  # the standard error of a training's difference from `value`
    df: int  # degrees of freedom of the noise


@dataclass(frozen=True)
class Drawn:
    """A curve for a figure: its trainings or their means, and a line with the half width of its band, by L0."""

    points: list[tuple[float, float]]
    line: list[tuple[float, float, float | None]]  # no band where the noise is not measured

    @property
    def has_band(self) -> bool:
        """True if the noise is measured."""
        return any(half_width for _, _, half_width in self.line)


class Curve(Protocol):
    """The baseline as a function of L0, made of its trainings."""

    read_in_words: ClassVar[str]  # how a metric is read from it: "the baseline at its L0, ..."
    line_in_words: ClassVar[str]  # what Drawn.line is: "the line is the baseline, ..."
    points_in_words: ClassVar[str]  # and Drawn.points

    @property
    def baselines(self) -> Sequence[Baseline]:
        """The trainings that it is made of."""
        ...

    @property
    def seeds(self) -> int:
        """The number of trainings behind the noise."""
        ...

    def why_not(self, l0: float) -> str:
        """Return why nothing can be compared at an L0, or an empty string."""
        ...

    def knobs(self, l0: float) -> list[float]:
        """Return the knobs of the trainings that are read at an L0 where something can be compared."""
        ...

    def read(self, name: str, l0: float) -> Reading | None:
        """Read a metric at an L0 where something can be compared, or L0 itself as the baseline's own knob has it.

        None if a training lacks the metric.
        """
        ...

    def read_near(self, name: str, l0: float) -> float | None:
        """Return a metric at an L0 that may lie a little beyond that of the trainings, as on another text.

        None if it lies further, or if a training lacks the metric.
        """
        ...

    def missing(self, l0: float) -> float | None:
        """Return the knob of the baseline to train next so that an L0 can be compared; None if it can be, or cannot."""
        ...

    def drawn(self, name: str) -> Drawn | None:
        """Return what a figure of a metric shows, or None if no training has it."""
        ...


def all_metrics(info: FinalInfo) -> dict[str, float | None]:
    """Return every metric of a run by name."""
    return {name: info.metric(name) for name in METRICS}


def levels(baselines: Sequence[Baseline]) -> list[Level]:
    """Group baselines by their knob, in the order of L0."""
    ks = sorted({baseline.k for baseline in baselines})
    groups = [Level(k, tuple(baseline for baseline in baselines if baseline.k == k)) for k in ks]
    return sorted(groups, key=lambda level: level.log_l0)


def reseeded_level(baselines: Sequence[Baseline]) -> Level:
    """Return the level with the most seeds, at the baseline's own knob."""
    return max(levels(baselines), key=lambda level: len(level.baselines))


def values_of(metric: str, baselines: Sequence[Baseline]) -> list[float] | None:
    """Return a metric of each baseline, or None if one of them lacks it."""
    values = [value for baseline in baselines if (value := baseline.figures.get(metric)) is not None]
    return values if len(values) == len(baselines) else None


def compare(info: FinalInfo, curve: Curve) -> Comparison:
    """Compare every headline metric of a run with the baseline at the run's L0, and L0 itself with the baseline's."""
    if not curve.baselines:
        return not_comparable(NO_NOISE)
    l0 = info.metric("l0")
    if l0 is None:
        return not_comparable("its L0 was not measured", curve.seeds)
    if reason := curve.why_not(l0):
        return not_comparable(reason, curve.seeds)
    metrics = {}
    for name in HEADLINE:
        value, there = info.metric(name), curve.read(name, l0)
        if value is not None and there is not None:
            metrics[name] = compare_to_reference(value, there.value, there.noise, there.error, there.df)
    return Comparison(levels=curve.knobs(l0), seeds=curve.seeds, metrics=metrics)


def not_comparable(reason: str, seeds: int = 0) -> Comparison:
    """Return the comparison of a run that no baseline matches."""
    return Comparison(levels=[], seeds=seeds, metrics={}, not_comparable=reason)


def at_least_rounding(name: str, deviation: float) -> float:
    """Return the noise of a metric, LEAST_NOISE at least: that no seed differed does not mean that none ever will."""
    return max(deviation, LEAST_NOISE.get(name, 10.0 ** -METRICS[name].digits / math.sqrt(12)))
