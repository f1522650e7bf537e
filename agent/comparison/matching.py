"""Compare a run with the baseline at the run's own L0, against measured noise.

Reconstruction and CE-loss figures depend on L0 more than on most changes one tries. So the baseline is read at the
run's own L0, linearly in log L0 between two baselines, one at or below it and one at or above it, each within MATCH.
The noise of a metric is the standard deviation of the reseeded baselines, corrected for their own differences in L0; it
is taken to be the same at every L0 and for every variant. Every run and baseline here has the verdict ok, and so an L0.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.comparison.significance import compare_to_reference, mean, standard_deviation
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Comparison, FinalInfo
from agent.study.records import Baseline

MATCH = 0.10  # a baseline whose L0 differs by more than this share says nothing about a run
NO_NOISE = "the noise between seeds was not measured"
ONE_SEED = "one baseline seed: no interval, so nothing is said to be better or worse"
LEAST_NOISE = {"alive_fraction": 0.001}  # one dead latent in a thousand; for other metrics, their rounding


@dataclass(frozen=True)
class Level:
    """The baselines of one K."""

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
        values = [value for baseline in self.baselines if (value := baseline.figures.get(metric)) is not None]
        return values if len(values) == len(self.baselines) else None


def all_metrics(info: FinalInfo) -> dict[str, float | None]:
    """Return every metric of a run by name."""
    return {name: info.metric(name) for name in METRICS}


def levels(baselines: Sequence[Baseline]) -> list[Level]:
    """Group baselines by K, in the order of L0."""
    ks = sorted({baseline.k for baseline in baselines})
    groups = [Level(k, tuple(baseline for baseline in baselines if baseline.k == k)) for k in ks]
    return sorted(groups, key=lambda level: level.log_l0)


def reseeded_level(baselines: Sequence[Baseline]) -> Level:
    """Return the level with the most seeds, at the baseline's own K."""
    return max(levels(baselines), key=lambda level: len(level.baselines))


def bracketing_levels(l0: float, baselines: Sequence[Baseline]) -> tuple[Level, Level] | None:
    """Return the nearest levels at or below and at or above an L0, each within MATCH, or None."""
    near = [level for level in levels(baselines) if abs(level.l0 / l0 - 1) <= MATCH]
    below = [level for level in near if level.log_l0 <= math.log(l0)]
    above = [level for level in near if level.log_l0 >= math.log(l0)]
    return (below[-1], above[0]) if below and above else None


def k_step(k: float) -> float:
    """Return the step between neighbouring K of baselines: 1, and below 16 a power of 1/2, at most a sixteenth of K.

    BatchTopK keeps the K * batch largest of a batch, so K need not be whole. At small L0 whole ones would lie further
    apart than MATCH, and the runs between them could not be compared.

    >>> [k_step(k) for k in (32, 16, 8, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return min(1.0, 2.0 ** math.floor(math.log2(k / 16)))


def missing_k(l0: float, baselines: Sequence[Baseline]) -> float | None:
    """Return the K of the baseline to train next so that an L0 is bracketed; None if it is, or cannot be.

    Never a K that was trained, and none beyond twice the L0 either way, so asking and training comes to an end.
    """
    if bracketing_levels(l0, baselines):
        return None
    trained = levels(baselines)
    taken = {level.k for level in trained}
    nearest = min(trained, key=lambda level: abs(level.log_l0 - math.log(l0)))
    per_k = nearest.l0 / nearest.k
    unit = k_step(l0 / per_k)
    k = round(l0 / per_k / unit) * unit
    stride = unit * max(1, round(k * MATCH / 3 / unit))  # well beyond the noise of an L0
    while k in taken:  # that side is bracketed: look on the other
        k += stride if nearest.l0 < l0 else -stride
    likely = abs(k * per_k / l0 - 1) <= 1.5 * MATCH  # the L0 it has is only known once it is trained
    return k if likely and max(1, l0 / 2) <= k <= 2 * l0 else None


def bracket(
    l0: float, baselines: Sequence[Baseline], tried: Container[float], more: Mapping[float, Baseline]
) -> tuple[list[Baseline], float | None]:
    """Return the baselines that a run with this L0 is compared with, and the K of one that is missing, or None.

    They are the `baselines` that every study has, and those of `more` (by K) that bracket the L0: what was trained for
    another run is left out, so that a comparison does not depend on which run came first. `tried` are all K so far.
    """
    used = list(baselines)
    while len(used) > 1 and (k := missing_k(l0, used)) is not None:
        if k not in tried:
            return used, k
        if k not in more:  # its training failed
            break
        used.append(more[k])
    return sorted(used, key=lambda each: (each.k, each.seed)), None


def compare(info: FinalInfo, baselines: Sequence[Baseline]) -> Comparison:
    """Compare every headline metric of a run with the baseline at the run's L0, and L0 itself with the baseline's."""
    if not baselines:
        return not_comparable(NO_NOISE)
    l0 = info.metric("l0")
    trained, reseeded = levels(baselines), reseeded_level(baselines)
    seeds = len(reseeded.baselines)

    if l0 is None:
        return not_comparable("its L0 was not measured", seeds)
    if seeds < 2:
        return not_comparable(NO_NOISE, seeds)
    pair = bracketing_levels(l0, baselines)
    if pair is None:
        return not_comparable(f"no baselines on both sides of L0 {l0:.2f} within {MATCH:.0%} of it", seeds)
    metrics = {}
    for name in HEADLINE:
        value, noise = info.metric(name), _noise(name, reseeded, trained)
        reference = reference_at(name, l0, *((reseeded, reseeded) if name == "l0" else pair))
        if value is not None and noise is not None and reference is not None:
            expected, variance = reference
            error = noise * math.sqrt(1 + variance)
            metrics[name] = compare_to_reference(value, expected, noise, error, seeds - 1)
    return Comparison(levels=[level.k for level in pair], seeds=seeds, metrics=metrics)


def not_comparable(reason: str, seeds: int = 0) -> Comparison:
    """Return the comparison of a run that no baseline matches."""
    return Comparison(levels=[], seeds=seeds, metrics={}, not_comparable=reason)


def seed_noise(name: str, baselines: Sequence[Baseline]) -> float | None:
    """Return the standard deviation of one training, or None if there is no second seed or a seed lacks the metric."""
    reseeded = reseeded_level(baselines)
    return _noise(name, reseeded, levels(baselines)) if len(reseeded.baselines) > 1 else None


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of at least two values."""
    return mean(values), standard_deviation(values)


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


def _noise(name: str, reseeded: Level, trained: Sequence[Level]) -> float | None:
    """Return the standard deviation of the reseeded baselines about the curve; None if one of them lacks the metric.

    At least LEAST_NOISE: that no seed differed does not mean that none ever will.
    """
    values = reseeded.values(name)
    if values is None:
        return None
    slope = 0.0 if name == "l0" else _slope(name, reseeded, trained)
    rests = [value - slope * math.log(baseline.l0) for value, baseline in zip(values, reseeded.baselines, strict=True)]
    rounding = 10.0 ** -METRICS[name].digits / math.sqrt(12)
    return max(standard_deviation(rests), LEAST_NOISE.get(name, rounding))


def _slope(name: str, reseeded: Level, trained: Sequence[Level]) -> float:
    """Return the change of a metric with log L0 around the reseeded level; 0 if unknown, which widens the noise."""
    place = trained.index(reseeded)
    low, high = trained[max(place - 1, 0)], trained[min(place + 1, len(trained) - 1)]
    below, above = low.values(name), high.values(name)
    if low.log_l0 == high.log_l0 or below is None or above is None:
        return 0.0
    return (mean(above) - mean(below)) / (high.log_l0 - low.log_l0)
