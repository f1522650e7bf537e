"""What may be said of a run's difference from the baseline: outcomes, fresh seeds, predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from agent.comparison.arbiter import OnTest, has_test_split, on_test_split, upholds
from agent.comparison.significance import (
    ALPHA,
    compare_to_reference,
    holm,
    mean,
    smallest_detectable,
    standard_deviation,
)
from agent.hypothesis import Outcome
from agent.ideas import MOST_VARIANCE_LOST, Direction
from agent.lab.metrics import METRICS
from agent.lab.results import Comparison, MetricComparison
from agent.study.events import StudyStarted
from agent.study.runs import Run
from agent.study.state import State

FRESH_SEEDS = 3  # that confirm a winner
SAME_L0 = 0.05  # L0 counts as the same up to this share of the baseline's

PredictionOutcome = Literal["held", "failed", "within noise", "not measured"]


@dataclass(frozen=True)
class Goal:
    """The primary metric of a study, and what a difference in it must and may not come with to be better."""

    primary: str
    smallest_effect: float
    most_variance_lost: float = MOST_VARIANCE_LOST

    @classmethod
    def of(cls, started: StudyStarted) -> Self:
        """Return the goal that a study began with."""
        return cls(started.primary_metric, started.smallest_effect, started.most_variance_lost)

    @property
    def most_lost(self) -> float:
        """The most that the companion of the primary metric may lose."""
        companion = METRICS[self.primary].companion
        if companion == "explained_variance_centered":
            return self.most_variance_lost
        return METRICS[companion].worth if companion else math.inf


@dataclass(frozen=True)
class Judgement:
    """The outcome of a run's primary metric, and the figures behind it."""

    outcome: Outcome
    smallest_detectable: float | None = None  # difference, in the metric's units
    p: float | None = None  # after Holm's correction
    confirmation: MetricComparison | None = None  # the mean of the fresh seeds
    on_test: OnTest | None = None  # what these show on the test split


def judgements(runs: list[Run], state: State) -> dict[int, Judgement]:
    """Judge every run of a study that counts and was compared, by run number."""
    compared = {run.number: run.info.comparison for run in runs if run.counts and run.info and run.info.comparison}
    fresh = {run: list(by_seed.values()) for run, by_seed in state.replicates.items()}
    return judge(compared, Goal.of(state.started), fresh, {run: on_test_split(run, state) for run in fresh})


def judge(
    comparisons: Mapping[int, Comparison],
    goal: Goal,
    fresh: Mapping[int, Sequence[Comparison]],
    on_test: Mapping[int, OnTest],
) -> dict[int, Judgement]:
    """Judge each run's primary metric, given all runs of the study, and winners' fresh seeds and their test split.

    A difference counts if it is detected after Holm's correction over the runs and is at least the smallest effect.
    `better` is only said of a run whose fresh seeds, without the run itself, show it again, on the test split too if
    the metric has one, and never of one whose companion metric lost more than it may, in the run or in a fresh seed.
    """
    primary = goal.primary
    on_primary = {
        run: comparison.metrics[primary] for run, comparison in comparisons.items() if primary in comparison.metrics
    }
    corrected = holm({run: comparison.p for run, comparison in on_primary.items()})
    judged = {run: Judgement("not comparable") for run in comparisons}
    for run, comparison in on_primary.items():
        outcome, confirmation = _outcome(goal, comparison, corrected[run]), None
        seeds, test = fresh.get(run, ()), on_test.get(run) if has_test_split(primary) else None
        if outcome == "unconfirmed" and any(
            companion_loss(primary, c) > goal.most_lost for c in (comparisons[run], *seeds)
        ):
            outcome = "not better"
        if outcome == "unconfirmed" and len(seeds) >= FRESH_SEEDS:
            if all(primary in seed.metrics for seed in seeds):
                confirmation = pool_fresh_seeds([seed.metrics[primary] for seed in seeds])
            outcome = _outcome_of_winner(goal, confirmation, test)
        detectable = smallest_detectable(comparison, len(on_primary))
        judged[run] = Judgement(outcome, detectable, corrected[run], confirmation, test)
    return judged


def for_proposers(judged: Mapping[int, Judgement]) -> dict[int, Judgement]:
    """Return judgements without what the test split showed: whatever reads them could be fitted to it.

    That a run is not confirmed is all that is left, whether its fresh seeds or the test split did not show it again.
    """
    return {
        run: Judgement("not confirmed", each.smallest_detectable, each.p)
        if each.outcome in ("not upheld", "not confirmed")
        else replace(each, on_test=None)
        for run, each in judged.items()
    }


def _outcome_of_winner(goal: Goal, confirmation: MetricComparison | None, test: OnTest | None) -> Outcome:
    """Return what fresh seeds, and then the test split, leave of a difference for the better."""
    if confirmation is None or _outcome(goal, confirmation, confirmation.p) != "unconfirmed":
        return "not confirmed"
    if not has_test_split(goal.primary):
        return "better"
    if test is None or test.difference is None:
        return "untested"
    return "better" if upholds(test.difference, confirmation.difference) else "not upheld"


def _outcome(goal: Goal, comparison: MetricComparison, p: float) -> Outcome:
    """Return what one difference says by itself: at best `unconfirmed`."""
    gain = improvement(goal.primary, comparison)
    if p > ALPHA:
        return "within noise"
    if abs(gain) < goal.smallest_effect:
        return "negligible"
    return "unconfirmed" if gain > 0 else "worse"


def companion_loss(primary: str, comparison: Comparison) -> float:
    """Return how much worse the metric is that `primary` must be read with, or 0 if that was not detected.

    Copied features raise F1 and lower uniqueness; an encoder that writes the next token raises the CE-loss score and
    lowers explained variance.
    """
    companion = METRICS[primary].companion
    compared = comparison.metrics.get(companion)
    if compared is None or observed_direction(compared) == "same":
        return 0.0
    return max(0.0, -improvement(companion, compared))


def improvement(metric: str, comparison: MetricComparison) -> float:
    """Return the difference, positive if it is for the better."""
    return -comparison.difference if METRICS[metric].better == "lower" else comparison.difference


def pool_fresh_seeds(seeds: Sequence[MetricComparison]) -> MetricComparison:
    """Compare the mean of fresh seeds with the mean of their references; the wider of the two spreads is the noise.

    The references rest on the same baselines, so their error does not shrink with the number of seeds.
    """
    n = len(seeds)
    value, reference = mean([seed.value for seed in seeds]), mean([seed.reference for seed in seeds])
    shared = mean([seed.standard_error**2 - seed.noise**2 for seed in seeds])
    spread = standard_deviation([seed.difference for seed in seeds])
    noise, df = max((spread, n - 1), (seeds[0].noise, seeds[0].df))
    return compare_to_reference(value, reference, noise, math.sqrt(noise**2 / n + shared), df)


def between_runs(run: MetricComparison, other: MetricComparison) -> MetricComparison:
    """Compare the differences of two runs from the baseline, each at its own L0, with each other.

    Both rest on the same baselines, whose error nearly cancels; the noise of one training is on both sides.
    """
    error = math.hypot(run.noise, other.noise)
    return compare_to_reference(run.difference, other.difference, run.noise, error, min(run.df, other.df))


def ranked(runs: Sequence[Run], judged: Mapping[int, Judgement], outcome: Outcome, primary: str) -> list[Run]:
    """Return the runs that were judged so, the greatest improvement of the primary metric first."""

    def gain(run: Run) -> float:
        assert run.info
        assert run.info.comparison
        return improvement(primary, run.info.comparison.metrics[primary])

    matches = [run for run in runs if run.number in judged and judged[run.number].outcome == outcome]
    return sorted(matches, key=gain, reverse=True)


def observed_direction(comparison: MetricComparison) -> Direction:
    """Return which way a metric went; `same` if the difference is within the noise."""
    if abs(comparison.difference) <= comparison.half_width:
        return "same"
    return "up" if comparison.difference > 0 else "down"


def prediction_outcome(name: str, predicted: Direction, comparison: MetricComparison | None) -> PredictionOutcome:
    """Return whether a prediction held.

    `same` holds if a difference was detected that is too small to matter, or if even the end of its interval would be.
    """
    if comparison is None:
        return "not measured"
    direction, size = observed_direction(comparison), abs(comparison.difference)
    if predicted == "same":
        worth = SAME_L0 * comparison.reference if name == "l0" else METRICS[name].worth
        if direction == "same":
            return "held" if size + comparison.half_width < worth else "within noise"
        return "held" if size < worth else "failed"
    if direction == "same":
        return "within noise"
    return "held" if direction == predicted else "failed"
