"""What may be said of a run: Holm's correction, outcomes, replicates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.comparison.matching import ALPHA, _mean, _spread, _tested
from agent.ideas import Direction
from agent.lab.metrics import METRICS
from agent.lab.results import Compared, Comparison
from agent.study.runs import Run
from agent.study.state import State

FRESH_SEEDS = 3  # that a winner is confirmed by


SAME_L0 = 0.05  # L0 counts as the same up to this share of the baseline's


Outcome = Literal[
    "better", "unconfirmed", "not confirmed", "not better", "worse", "negligible", "within noise", "not comparable"
]


PredictionOutcome = Literal["held", "failed", "within noise", "not measured"]


@dataclass(frozen=True)
class Judgement:
    """What may be said of a run's primary metric, and the figures that say it."""

    outcome: Outcome
    smallest_detectable: float | None = None  # the smallest difference that could have been seen
    p: float | None = None  # after Holm's correction
    confirmation: Compared | None = None  # the mean of the fresh seeds


def judge(
    comparisons: Mapping[int, Comparison],
    primary: str,
    smallest_effect: float,
    fresh: Mapping[int, Sequence[Comparison]],
) -> dict[int, Judgement]:
    """What may be said of each run's primary metric, given all runs of the study and the fresh seeds of winners.

    A difference counts when it is visible after Holm's correction over the runs (Holm 1979, "A simple sequentially
    rejective multiple test procedure") and at least the smallest effect. Better is only said of a run whose fresh
    seeds, without the run itself, show it again, and of none whose gain is hollow.
    """
    compared = {run: each.metrics[primary] for run, each in comparisons.items() if primary in each.metrics}
    corrected = holm({run: each.p for run, each in compared.items()})
    judged = {run: Judgement("not comparable") for run in comparisons}
    for run, each in compared.items():
        outcome, confirmation = _seen(primary, each, corrected[run], smallest_effect), None
        if outcome == "unconfirmed" and companion_metric_worsened(primary, comparisons[run]):
            outcome = "not better"
        seeds = fresh.get(run, ())
        if outcome == "unconfirmed" and len(seeds) >= FRESH_SEEDS:
            outcome = "not confirmed"
            if all(primary in seed.metrics for seed in seeds):
                confirmation = pool_fresh_seeds([seed.metrics[primary] for seed in seeds])
                if _seen(primary, confirmation, confirmation.p, smallest_effect) == "unconfirmed":
                    outcome = "better"
        judged[run] = Judgement(outcome, smallest_detectable(each, len(compared)), corrected[run], confirmation)
    return judged


def _seen(primary: str, compared: Compared, p: float, smallest_effect: float) -> Outcome:
    """What one difference says by itself: at best `unconfirmed`."""
    gain = improvement(primary, compared)
    if p > ALPHA:
        return "within noise"
    if abs(gain) < smallest_effect:
        return "negligible"
    return "unconfirmed" if gain > 0 else "worse"


def companion_metric_worsened(primary: str, found: Comparison) -> bool:
    """Whether the metric that a metric must be read beside is visibly worse: copies of one feature raise F1."""
    compared = found.metrics.get(METRICS[primary].companion)
    if compared is None or observed_direction(compared) == "same":
        return False
    return improvement(METRICS[primary].companion, compared) <= -METRICS[METRICS[primary].companion].worth


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """p-values corrected so that the chance of any false finding among them stays what it would be for one."""
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, (run, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[run] = largest
    return corrected


def smallest_detectable(compared: Compared, runs: int) -> float:
    """The difference that would have been seen whatever came out of the study's other runs."""
    from scipy.special import stdtrit

    return float(stdtrit(compared.df, 1 - ALPHA / 2 / runs)) * compared.standard_error


def improvement(metric: str, compared: Compared) -> float:
    """The difference, positive where it is one for the better."""
    return -compared.difference if METRICS[metric].better == "lower" else compared.difference


def pool_fresh_seeds(again: Sequence[Compared]) -> Compared:
    """The mean of fresh seeds beside the mean of their references; the wider of the two spreads is their noise.

    The references rest on the same baselines, so their error does not shrink with the number of seeds.
    """
    n = len(again)
    value, reference = _mean([each.value for each in again]), _mean([each.reference for each in again])
    shared = _mean([each.standard_error**2 - each.noise**2 for each in again])
    noise, df = max((_spread([each.difference for each in again]), n - 1), (again[0].noise, again[0].df))
    return _tested(value, reference, noise, math.sqrt(noise**2 / n + shared), df)


def observed_direction(compared: Compared) -> Direction:
    """Which way a metric went; `same` where the difference is within the noise."""
    if abs(compared.difference) <= compared.half_width:
        return "same"
    return "up" if compared.difference > 0 else "down"


def prediction_outcome(name: str, predicted: Direction, compared: Compared | None) -> PredictionOutcome:
    """How a prediction came out. `same` holds where a difference was seen that is too small to matter, or where even
    the end of the interval would be."""
    if compared is None:
        return "not measured"
    way, size = observed_direction(compared), abs(compared.difference)
    if predicted == "same":
        worth = SAME_L0 * compared.reference if name == "l0" else METRICS[name].worth
        if way == "same":
            return "held" if size + compared.half_width < worth else "within noise"
        return "held" if size < worth else "failed"
    if way == "same":
        return "within noise"
    return "held" if way == predicted else "failed"


def judgements(runs: list[Run], state: State) -> dict[int, Judgement]:
    """What may be said of each run that counts."""
    assert state.started
    compared = {run.number: run.info.comparison for run in runs if run.counts and run.info and run.info.comparison}
    fresh = {run: list(by_seed.values()) for run, by_seed in state.replicates.items()}
    return judge(compared, state.started.primary_metric, state.started.smallest_effect, fresh)
