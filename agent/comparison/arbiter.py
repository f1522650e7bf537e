"""The test split as arbiter: what a run that fresh seeds confirmed shows on text that no choice was based on.

The difference on the test split is read as on the development split: each fresh seed against the baselines that it was
compared with there, at its own L0. For a front these are all of its trainings. The trainings on both sides are the same
on the two splits, so their noise is shared, and what is left is the text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from agent.comparison.curves import curve_of
from agent.comparison.matching import Curve
from agent.comparison.significance import mean
from agent.lab.metrics import family_of
from agent.lab.results import Comparison
from agent.study.events import ScoredOnTest
from agent.study.records import Baseline
from agent.study.state import State

TEST_FAMILIES = {"core", "synthetic"}  # the families that have a test split
Figures = Mapping[str, float | None]  # by metric
LEAST_SHARE = 0.5  # of the difference on the development split, that the one on the test split must have


@dataclass(frozen=True)
class OnTest:
    """The mean difference of a run's fresh seeds from the baseline on the test split, or why there is none."""

    difference: float | None
    why_not: str = ""


def has_test_split(metric: str) -> bool:
    """Return True if a metric can be measured on the test split."""
    return family_of(metric) in TEST_FAMILIES


def upholds(on_test: float, on_dev: float) -> bool:
    """Return True if a difference on the test split has the sign and enough of the size of the other one."""
    return on_test * on_dev > 0 and abs(on_test) >= LEAST_SHARE * abs(on_dev)


def baselines_to_score(seeds: Sequence[Comparison], baselines: Sequence[Baseline]) -> list[Baseline]:
    """Return the baselines that fresh seeds were compared with; no others are scored on the test split."""
    ks = {k for seed in seeds for k in seed.levels}
    return [baseline for baseline in baselines if baseline.k in ks]


def score_of_baseline(baseline: Baseline, state: State) -> ScoredOnTest | None:
    """Return a baseline's score on the test split, or None; run 0 is one of the baselines."""
    if is_run_0(baseline, state):
        return state.tested.get(0)
    return state.tested_baselines.get((baseline.k, baseline.seed))


def is_run_0(baseline: Baseline, state: State) -> bool:
    """Return True if a baseline is the study's own, run 0."""
    fixed = state.started.fixed
    return (baseline.k, baseline.seed) == (fixed.knob, fixed.seed)


def on_test_split(run: int, state: State) -> OnTest:
    """Return the difference of a run's fresh seeds on the test split, or why there is none."""
    seeds, scores = state.replicates.get(run, {}), state.tested_seeds.get(run, {})
    needed = baselines_to_score(list(seeds.values()), state.baselines)
    scored = {(each.k, each.seed): score_of_baseline(each, state) for each in needed}
    for event in (*(scores.get(seed) for seed in seeds), *scored.values()):
        if event is None:
            return OnTest(None, "the study ended before it was scored there" if state.ended else "")
        if not event.figures:
            name = event.named(state.started.fixed.architecture)
            return OnTest(None, f"{name} has no score there ({event.why_not})")
    known = [
        Baseline(k=k, seed=seed, figures=event.figures) for (k, seed), event in scored.items() if event is not None
    ]
    primary = state.started.primary_metric
    figures = {seed: scores[seed].figures for seed in seeds}
    compared = [(figures[seed], comparison) for seed, comparison in seeds.items()]
    return mean_difference(primary, compared, known, partial(curve_of, state.started.fixed))


def mean_difference(
    metric: str,
    seeds: Sequence[tuple[Figures, Comparison]],
    baselines: Sequence[Baseline],
    curve_of: Callable[[Sequence[Baseline]], Curve],
) -> OnTest:
    """Return the mean difference of seeds on the test split.

    Each seed has its figures there and its comparison on the development split; the baselines have theirs there.
    """

    def difference(figures: Figures, on_dev: Comparison) -> float | None:
        """None without figures, or if the L0 is far away."""
        value, l0 = figures.get(metric), figures.get("l0")
        same = [baseline for baseline in baselines if baseline.k in on_dev.levels]
        expected = curve_of(same).read_near(metric, l0) if l0 and same else None
        return None if value is None or expected is None else value - expected

    measured = [each for seed in seeds if (each := difference(*seed)) is not None]
    if len(measured) < len(seeds):
        return OnTest(None, "no baseline matches its L0 there")
    return OnTest(mean(measured))
