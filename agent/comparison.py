"""A run beside the baseline: at the same L0, against measured noise, and what may be said of the difference.

Reconstruction and CE-loss figures depend on L0 more than on most changes one tries. So a run is compared with what the
baseline has at the run's own L0, read between two baselines, one at or below it and one at or above it, each within
MATCH of it; linear in log L0. The noise of a metric is the standard deviation of the reseeded baselines, their own
differences in L0 taken out; it is taken to be the same at every L0 and for every variant.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction
from agent.lab.results import HEADLINE, METRICS, Compared, Comparison, FinalInfo

MATCH = 0.10  # a baseline further from a run's L0 than this says nothing of it
ALPHA = 0.05
FRESH_SEEDS = 3  # that a winner is confirmed by
SAME_L0 = 0.05  # L0 counts as the same up to this share of the baseline's

Outcome = Literal["better", "unconfirmed", "not confirmed", "worse", "negligible", "within noise", "not comparable"]
Held = Literal["held", "failed", "within noise", "not measured"]


class Baseline(BaseModel):
    """A baseline's K, seed and figures (metric name -> value)."""

    model_config = ConfigDict(frozen=True)

    k: int
    seed: int
    figures: dict[str, float | None]

    @property
    def l0(self) -> float:
        return self.figures["l0"] or math.nan


@dataclass(frozen=True)
class Level:
    """The baselines of one K."""

    k: int
    baselines: tuple[Baseline, ...]

    @property
    def l0(self) -> float:
        """Geometric mean."""
        return math.exp(_mean([math.log(baseline.l0) for baseline in self.baselines]))

    def values(self, metric: str) -> list[float] | None:
        """None where one of them was not measured."""
        values = [value for baseline in self.baselines if (value := baseline.figures.get(metric)) is not None]
        return values if len(values) == len(self.baselines) else None


@dataclass(frozen=True)
class Judgement:
    """What may be said of a run's primary metric, and the figures that say it."""

    outcome: Outcome
    visible: float | None = None  # the smallest difference that could have been seen
    p: float | None = None  # after Holm's correction
    confirmation: Compared | None = None  # the mean of the fresh seeds


def figures(info: FinalInfo) -> dict[str, float | None]:
    """Every metric of a run."""
    return {name: info.metric(name) for name in METRICS}


def levels(baselines: Sequence[Baseline]) -> list[Level]:
    """In the order of L0."""
    ks = sorted({baseline.k for baseline in baselines})
    found = [Level(k, tuple(baseline for baseline in baselines if baseline.k == k)) for k in ks]
    return sorted(found, key=lambda level: level.l0)


def own_level(baselines: Sequence[Baseline]) -> Level:
    """The level that was reseeded, at the baseline's own K."""
    return max(levels(baselines), key=lambda level: len(level.baselines))


def enclosing(l0: float, baselines: Sequence[Baseline]) -> tuple[Level, Level] | None:
    """The nearest levels at or below and at or above an L0, each within MATCH of it."""
    near = [level for level in levels(baselines) if abs(level.l0 / l0 - 1) <= MATCH]
    below = [level for level in near if level.l0 <= l0]
    above = [level for level in near if level.l0 >= l0]
    return (below[-1], above[0]) if below and above else None


def missing_k(l0: float, baselines: Sequence[Baseline]) -> int | None:
    """K of the baseline to train next so that an L0 comes to be enclosed; None when it is, or cannot be."""
    if enclosing(l0, baselines):
        return None
    known = levels(baselines)
    nearest = min(known, key=lambda level: abs(math.log(level.l0 / l0)))
    per_k = nearest.l0 / nearest.k
    ks = {level.k for level in known}
    guess = round(l0 / per_k)
    tried = [level for level in known if abs(level.l0 / l0 - 1) <= MATCH]
    if guess in ks and tried:  # one side is there: step over to the other
        guess = tried[0].k - 1 if tried[0].l0 > l0 else tried[-1].k + 1
    reachable = guess >= 1 and abs(guess * per_k / l0 - 1) <= 1.5 * MATCH  # what it gives is only known afterwards
    return guess if reachable and guess not in ks else None


def compare(info: FinalInfo, baselines: Sequence[Baseline]) -> Comparison:
    """Every headline metric of a run beside the baseline's at the run's L0; L0 itself beside that of the baseline."""
    l0 = info.metric("l0")
    own = own_level(baselines)
    seeds = len(own.baselines)

    def none(why: str) -> Comparison:
        return Comparison(levels=[], seeds=seeds, metrics={}, not_comparable=why)

    if l0 is None:
        return none("its L0 was not measured")
    if seeds < 2:
        return none("the noise between seeds was not measured")
    pair = enclosing(l0, baselines)
    if pair is None:
        return none(f"no baselines on both sides of L0 {l0:.2f} within {MATCH:.0%} of it")
    metrics = {}
    for name in HEADLINE:
        value = info.metric(name)
        reference = (own, own) if name == "l0" else pair
        if value is not None and (compared := _compared(name, value, l0, reference, baselines)):
            metrics[name] = compared
    return Comparison(levels=[level.k for level in pair], seeds=seeds, metrics=metrics)


def _compared(
    name: str, value: float, l0: float, pair: tuple[Level, Level], baselines: Sequence[Baseline]
) -> Compared | None:
    """None where a baseline lacks the metric. The interval is t(n-1) s sqrt(1 + w1^2/n1 + w2^2/n2) to either side."""
    low, high = (level.values(name) for level in pair)
    noise = seed_noise(name, baselines)
    if low is None or high is None or noise is None:
        return None
    weight = 0.0 if pair[0] is pair[1] else math.log(l0 / pair[0].l0) / math.log(pair[1].l0 / pair[0].l0)
    reference = (1 - weight) * _mean(low) + weight * _mean(high)
    variance = (1 - weight) ** 2 / len(low) + weight**2 / len(high)
    error = noise * math.sqrt(1 + variance)
    return _tested(value, reference, noise, error, len(own_level(baselines).baselines) - 1)


def _tested(value: float, reference: float, noise: float, error: float, df: int) -> Compared:
    from scipy.special import stdtr, stdtrit  # here because the driver starts sooner without it

    p = 2 * float(stdtr(df, -abs(value - reference) / error))
    half_width = float(stdtrit(df, 1 - ALPHA / 2)) * error
    return Compared(
        value=value, reference=reference, noise=noise, standard_error=error, half_width=half_width, p=p, df=df
    )


def seed_noise(name: str, baselines: Sequence[Baseline]) -> float | None:
    """Standard deviation of the reseeded baselines about the curve; at least what rounding to the digits shown adds."""
    own = own_level(baselines)
    values = own.values(name)
    if values is None or len(values) < 2:
        return None
    slope = 0.0 if name == "l0" else _slope(name, own, levels(baselines))
    logs = [math.log(baseline.l0) for baseline in own.baselines]
    rests = [value - slope * log for value, log in zip(values, logs, strict=True)]
    spread = math.sqrt(sum((rest - _mean(rests)) ** 2 for rest in rests) / (len(rests) - 1))
    return max(spread, 10 ** -METRICS[name].digits / math.sqrt(12))


def _slope(name: str, own: Level, known: Sequence[Level]) -> float:
    """Change of a metric with log L0 between the nearest levels around the reseeded one; 0 where one is missing."""
    place = [level.k for level in known].index(own.k)
    if not 0 < place < len(known) - 1:
        return 0.0
    low, high = known[place - 1], known[place + 1]
    below, above = low.values(name), high.values(name)
    if below is None or above is None:
        return 0.0
    return (_mean(above) - _mean(below)) / math.log(high.l0 / low.l0)


def judge(
    comparisons: Mapping[int, Comparison],
    primary: str,
    smallest_effect: float,
    fresh: Mapping[int, Sequence[Comparison]],
) -> dict[int, Judgement]:
    """What may be said of each run's primary metric, given all runs of the study and the fresh seeds of winners.

    A difference counts when it is visible after Holm's correction over the runs (Holm 1979, "A simple sequentially
    rejective multiple test procedure") and at least the smallest effect. Better is only said of a run whose fresh
    seeds, without the run itself, show it again.
    """
    compared = {run: each.metrics[primary] for run, each in comparisons.items() if primary in each.metrics}
    corrected = holm({run: each.p for run, each in compared.items()})
    judged = {run: Judgement("not comparable") for run in comparisons}
    for run, each in compared.items():
        visible = smallest_visible(each, len(compared))
        gain = gained(primary, each)
        confirmation = None
        if corrected[run] > ALPHA:
            outcome: Outcome = "within noise"
        elif abs(gain) < smallest_effect:
            outcome = "negligible"
        elif gain < 0:
            outcome = "worse"
        else:
            again = [comparison.metrics[primary] for comparison in fresh.get(run, ()) if primary in comparison.metrics]
            outcome = "unconfirmed"
            if len(fresh.get(run, ())) >= FRESH_SEEDS:
                confirmation = _together(again) if len(again) >= FRESH_SEEDS else None
                outcome = (
                    "better"
                    if confirmation and _confirms(primary, confirmation, smallest_effect)
                    else ("not confirmed")
                )
        judged[run] = Judgement(outcome, visible, corrected[run], confirmation)
    return judged


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """p-values corrected so that the chance of any false finding among them stays what it would be for one."""
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, (run, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[run] = largest
    return corrected


def smallest_visible(compared: Compared, runs: int) -> float:
    """The difference that would have been seen whatever came out of the study's other runs."""
    from scipy.special import stdtrit

    return float(stdtrit(compared.df, 1 - ALPHA / 2 / runs)) * compared.standard_error


def gained(metric: str, compared: Compared) -> float:
    """The difference, positive where it is one for the better."""
    return -compared.difference if METRICS[metric].better == "lower" else compared.difference


def _together(again: Sequence[Compared]) -> Compared:
    """The mean of fresh seeds beside the mean of their references; the wider of the two spreads is their noise."""
    n = len(again)
    value, reference = _mean([each.value for each in again]), _mean([each.reference for each in again])
    own = math.sqrt(sum((each.difference - (value - reference)) ** 2 for each in again) / (n - 1))
    shared = _mean([each.standard_error**2 - each.noise**2 for each in again])  # what the reference adds
    noise = max(own, again[0].noise)
    return _tested(value, reference, noise, math.sqrt(noise**2 / n + shared), again[0].df)


def _confirms(metric: str, mean: Compared, smallest_effect: float) -> bool:
    return mean.p <= ALPHA and gained(metric, mean) >= smallest_effect


def came_out(compared: Compared) -> Direction:
    """Which way a metric went; `same` where the difference is within the noise."""
    if abs(compared.difference) <= compared.half_width:
        return "same"
    return "up" if compared.difference > 0 else "down"


def held(name: str, predicted: Direction, compared: Compared | None) -> Held:
    """How a prediction came out. `same` also holds for a difference that is visible and too small to matter."""
    if compared is None:
        return "not measured"
    way = came_out(compared)
    if predicted == "same":
        worth = SAME_L0 * compared.reference if name == "l0" else METRICS[name].worth
        return "held" if way == "same" or abs(compared.difference) < worth else "failed"
    if way == "same":
        return "within noise"
    return "held" if way == predicted else "failed"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of at least two values."""
    mean = _mean(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
