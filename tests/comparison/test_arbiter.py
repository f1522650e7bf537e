"""The test text takes the word back from a run that is better only where it could be fitted."""

import math

import pytest
from builders import STARTED

from agent.comparison.arbiter import OnTest, on_test_split, upholds
from agent.comparison.judgement import Goal, Judgement, for_proposers, judge
from agent.lab.results import Comparison, MetricComparison
from agent.study.events import ScoredOnTest, StudyEnded
from agent.study.records import Baseline
from agent.study.state import State

SCORE, L0_15, L0_16, L0_17 = "ce_loss_score", 15.3, 16.3, 17.3
SEEDS = (1000, 1001, 1002)


def on_curve(l0: float) -> float:
    return 0.9 + 0.02 * math.log(l0)


def compared(difference: float, metric: str = SCORE) -> Comparison:
    """Return a comparison on the development text that nobody could call noise."""
    value = MetricComparison(
        value=0.9 + difference, reference=0.9, noise=0.001, standard_error=0.001, df=4, half_width=0.003, p=1e-6
    )
    return Comparison(levels=[16, 17], seeds=5, metrics={metric: value})


def figures(l0: float, difference: float = 0.0) -> dict[str, float | None]:
    return {"l0": l0, SCORE: on_curve(l0) + difference}


def study(*differences: float, l0: float = 16.8) -> State:
    """Return a study whose run 1 was confirmed and scored on the test text, with these differences there."""
    baselines = [Baseline(k=16, seed=seed, figures=figures(L0_16)) for seed in range(5)]
    baselines += [Baseline(k=17, seed=0, figures=figures(L0_17)), Baseline(k=15, seed=0, figures=figures(L0_15))]
    state = State(STARTED, baselines=baselines)
    state.replicates[1] = {seed: compared(0.02) for seed in SEEDS}
    state.tested[0] = ScoredOnTest(run=0, figures=figures(L0_16, -0.1))
    scored = [each for each in baselines if (each.k, each.seed) != (16, 0) and each.k != 15]
    for each in scored:
        event = ScoredOnTest(run=0, k=each.k, seed=each.seed, figures=figures(each.l0, -0.1))
        state.tested_baselines[each.k, each.seed] = event
    state.tested_seeds[1] = {
        seed: ScoredOnTest(run=1, seed=seed, figures=figures(l0, difference - 0.1))
        for seed, difference in zip(SEEDS, differences, strict=True)
    }
    return state


def outcome(state: State) -> str:
    fresh = {1: list(state.replicates[1].values())}
    return judge({1: compared(0.02)}, Goal.of(STARTED), fresh, {1: on_test_split(1, state)})[1].outcome


@pytest.mark.parametrize("l0", [16.4, 16.8, 17.25])
def test_the_difference_is_read_on_the_test_text_alone_at_the_l0_there(l0: float):
    """Every score is lower by 0.1 there, which is no difference."""
    on_test = on_test_split(1, study(0.01, 0.02, 0.03, l0=l0))
    assert on_test.difference == pytest.approx(0.02, abs=2e-5)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((0.02, 0.02, 0.02), "better"),
        ((0.011, 0.011, 0.011), "better"),
        ((0.009, 0.009, 0.009), "not upheld"),
        ((0.0, 0.0, 0.0), "not upheld"),
        ((-0.02, -0.02, -0.02), "not upheld"),
        ((0.05, 0.0, 0.0), "better"),
    ],
)
def test_a_confirmed_run_needs_the_sign_and_half_the_size(differences: tuple[float, ...], said: str):
    assert outcome(study(*differences)) == said


def test_less_is_better_where_the_metric_says_so():
    assert upholds(-0.02, -0.03)
    assert not upholds(0.02, -0.03)
    assert not upholds(-0.01, -0.03)


def test_before_everything_is_scored_a_winner_is_untested():
    state = study(0.02, 0.02, 0.02)
    del state.tested_seeds[1][1002]
    assert outcome(state) == "untested"
    assert on_test_split(1, state).why_not == ""
    state.ended = StudyEnded(why="the hours are spent").why
    assert on_test_split(1, state).why_not == "the study ended before it was scored there"


def test_a_baseline_without_a_score_leaves_a_winner_untested():
    state = study(0.02, 0.02, 0.02)
    failed = ScoredOnTest(run=0, k=17, seed=0, figures={}, why_not="not_evaluated: still running after 300 s")
    state.tested_baselines[17, 0] = failed
    assert outcome(state) == "untested"
    assert on_test_split(1, state).why_not == (
        "the baseline with K 17, seed 0 has no score there (not_evaluated: still running after 300 s)"
    )


def test_an_l0_that_jumps_on_the_test_text_is_not_compared():
    state = study(0.5, 0.5, 0.5, l0=25.0)
    assert on_test_split(1, state) == OnTest(None, "no baseline matches its L0 there")
    assert outcome(state) == "untested"


def test_the_fresh_seeds_alone_decide_on_a_metric_without_a_second_text():
    metric = "probing_auc_5"
    winner = compared(0.05, metric)
    assert judge({1: winner}, Goal(metric, 0.01), {1: [winner] * 3}, {})[1].outcome == "better"


def test_a_proposer_learns_no_more_than_that_a_run_is_not_confirmed():
    refused, taken_back, upheld = (
        judge({1: compared(0.02)}, Goal.of(STARTED), {1: [compared(seeds)] * 3}, {1: OnTest(on_test)})
        for seeds, on_test in ((0.0, 0.02), (0.02, 0.001), (0.02, 0.017))
    )
    assert (refused[1].outcome, taken_back[1].outcome) == ("not confirmed", "not upheld")
    assert for_proposers(refused) == for_proposers(taken_back)
    assert for_proposers(upheld)[1] == Judgement(
        "better", upheld[1].smallest_detectable, upheld[1].p, upheld[1].confirmation
    )
