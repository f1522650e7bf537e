"""A run beside the baseline: at the same L0, against measured noise, and what may be said of the difference.

Reconstruction and CE-loss figures depend on L0 more than on most changes one tries. So a run is compared with what the
baseline has at the run's own L0, read between two baselines, one at or below it and one at or above it, each within
MATCH of it; linear in log L0. The noise of a metric is the standard deviation of the reseeded baselines, their own
differences in L0 taken out; it is taken to be the same at every L0 and for every variant. Only runs and baselines whose
verdict is ok come here, so each has an L0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Compared, Comparison, FinalInfo
from agent.study.records import Baseline

MATCH = 0.10  # a baseline further from a run's L0 than this says nothing of it
ALPHA = 0.05
UNKNOWN_NOISE = "the noise between seeds was not measured"
FINEST = {"alive_fraction": 0.001}  # the least noise believed, where rounding is not it: one dead latent in a thousand


@dataclass(frozen=True)
class Level:
    """The baselines of one K."""

    k: float
    baselines: tuple[Baseline, ...]

    @cached_property
    def log_l0(self) -> float:
        return _mean([math.log(baseline.l0) for baseline in self.baselines])

    @property
    def l0(self) -> float:
        """Geometric mean."""
        return math.exp(self.log_l0)

    def values(self, metric: str) -> list[float] | None:
        """None where one of them was not measured."""
        values = [value for baseline in self.baselines if (value := baseline.figures.get(metric)) is not None]
        return values if len(values) == len(self.baselines) else None


def all_metrics(info: FinalInfo) -> dict[str, float | None]:
    """Every metric of a run."""
    return {name: info.metric(name) for name in METRICS}


def levels(baselines: Sequence[Baseline]) -> list[Level]:
    """In the order of L0."""
    ks = sorted({baseline.k for baseline in baselines})
    found = [Level(k, tuple(baseline for baseline in baselines if baseline.k == k)) for k in ks]
    return sorted(found, key=lambda level: level.log_l0)


def reseeded_level(baselines: Sequence[Baseline]) -> Level:
    """The level that was reseeded, at the baseline's own K."""
    return max(levels(baselines), key=lambda level: len(level.baselines))


def bracketing_levels(l0: float, baselines: Sequence[Baseline]) -> tuple[Level, Level] | None:
    """The nearest levels at or below and at or above an L0, each within MATCH of it."""
    near = [level for level in levels(baselines) if abs(level.l0 / l0 - 1) <= MATCH]
    below = [level for level in near if level.log_l0 <= math.log(l0)]
    above = [level for level in near if level.log_l0 >= math.log(l0)]
    return (below[-1], above[0]) if below and above else None


def k_step(k: float) -> float:
    """What lies between two neighbouring K of baselines: 1, and below 16 a power of 1/2, at most a sixteenth of K.

    BatchTopK keeps the K * batch largest of a batch, so K need not be whole. At small L0 whole ones would lie further
    apart than MATCH, and the runs between them could not be compared.
    """
    return min(1.0, 2.0 ** math.floor(math.log2(k / 16)))


def missing_k(l0: float, baselines: Sequence[Baseline]) -> float | None:
    """K of the baseline to train next so that an L0 comes to be enclosed; None when it is, or cannot be.

    Never a K that is there already, and none beyond twice the L0 either way, so asking and training comes to an end.
    """
    if bracketing_levels(l0, baselines):
        return None
    known = levels(baselines)
    taken = {level.k for level in known}
    nearest = min(known, key=lambda level: abs(level.log_l0 - math.log(l0)))
    per_k = nearest.l0 / nearest.k
    fine = k_step(l0 / per_k)
    k = round(l0 / per_k / fine) * fine
    step = fine * max(1, round(k * MATCH / 3 / fine))  # well beyond the noise of an L0
    while k in taken:  # one side is there: over to the other
        k += step if nearest.l0 < l0 else -step
    likely = abs(k * per_k / l0 - 1) <= 1.5 * MATCH  # what it gives is only known afterwards
    return k if likely and max(1, l0 / 2) <= k <= 2 * l0 else None


def compare(info: FinalInfo, baselines: Sequence[Baseline]) -> Comparison:
    """Every headline metric of a run beside the baseline's at the run's L0; L0 itself beside that of the baseline."""
    if not baselines:
        return not_comparable(UNKNOWN_NOISE)
    l0 = info.metric("l0")
    known, own = levels(baselines), reseeded_level(baselines)
    seeds = len(own.baselines)

    if l0 is None:
        return not_comparable("its L0 was not measured", seeds)
    if seeds < 2:
        return not_comparable(UNKNOWN_NOISE, seeds)
    pair = bracketing_levels(l0, baselines)
    if pair is None:
        return not_comparable(f"no baselines on both sides of L0 {l0:.2f} within {MATCH:.0%} of it", seeds)
    metrics = {}
    for name in HEADLINE:
        value, noise = info.metric(name), _noise(name, own, known)
        reference = _reference(name, l0, *((own, own) if name == "l0" else pair))
        if value is not None and noise is not None and reference is not None:
            expected, variance = reference
            metrics[name] = _tested(value, expected, noise, noise * math.sqrt(1 + variance), seeds - 1)
    return Comparison(levels=[level.k for level in pair], seeds=seeds, metrics=metrics)


def not_comparable(why: str, seeds: int = 0) -> Comparison:
    """Of a run beside which no baseline can be put."""
    return Comparison(levels=[], seeds=seeds, metrics={}, not_comparable=why)


def _reference(name: str, l0: float, low: Level, high: Level) -> tuple[float, float] | None:
    """A metric at an L0 between two levels, and its variance in units of one training's.

    With weights w1 and w2 of levels of n1 and n2 baselines, the variance is w1^2/n1 + w2^2/n2; that of a run's
    difference from it adds the run's own 1. None where a baseline lacks the metric.
    """
    below, above = low.values(name), high.values(name)
    if below is None or above is None:
        return None
    width = high.log_l0 - low.log_l0
    weight = (math.log(l0) - low.log_l0) / width if width else 0.0
    variance = (1 - weight) ** 2 / len(below) + weight**2 / len(above)
    return (1 - weight) * _mean(below) + weight * _mean(above), variance


def _tested(value: float, reference: float, noise: float, error: float, df: int) -> Compared:
    from scipy.special import stdtr, stdtrit  # here because the driver starts sooner without it

    p = 2 * float(stdtr(df, -abs(value - reference) / error))
    half_width = float(stdtrit(df, 1 - ALPHA / 2)) * error
    return Compared(
        value=value, reference=reference, noise=noise, standard_error=error, half_width=half_width, p=p, df=df
    )


def _noise(name: str, own: Level, known: Sequence[Level]) -> float | None:
    """Standard deviation of the reseeded baselines about the curve; None where one of them lacks the metric.

    At least FINEST of the metric: that no seed differed does not mean that none ever will.
    """
    values = own.values(name)
    if values is None:
        return None
    slope = 0.0 if name == "l0" else _slope(name, own, known)
    rests = [value - slope * math.log(baseline.l0) for value, baseline in zip(values, own.baselines, strict=True)]
    return max(_spread(rests), FINEST.get(name, 10.0 ** -METRICS[name].digits / math.sqrt(12)))


def _slope(name: str, own: Level, known: Sequence[Level]) -> float:
    """Change of a metric with log L0 around the reseeded level; 0 where there is no telling, which widens the noise."""
    place = known.index(own)
    low, high = known[max(place - 1, 0)], known[min(place + 1, len(known) - 1)]
    below, above = low.values(name), high.values(name)
    if low.log_l0 == high.log_l0 or below is None or above is None:
        return 0.0
    return (_mean(above) - _mean(below)) / (high.log_l0 - low.log_l0)


def seed_noise(name: str, baselines: Sequence[Baseline]) -> float | None:
    """Standard deviation of one training; None without a second seed, or where a reseeded baseline lacks the metric."""
    own = reseeded_level(baselines)
    return _noise(name, own, levels(baselines)) if len(own.baselines) > 1 else None


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of at least two values."""
    return _mean(values), _spread(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation of the population they were drawn from."""
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
