"""A baseline with an L1 coefficient is read from a front: on made-up trainings whose curve and noise are known."""

import math
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from builders import STARTED, run, scored
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.comparison.arbiter import on_test_split
from agent.comparison.brackets import Brackets
from agent.comparison.curves import beside, curve_of, half_width_per_noise, required_baselines
from agent.comparison.fitted_front import LADDER, FittedFront
from agent.comparison.matching import all_metrics, compare
from agent.ideas import Fixed
from agent.report import plots
from agent.study.events import ScoredOnTest
from agent.study.records import Baseline
from agent.study.state import State

SCORE, NOISE = "ce_loss_score", 0.001
RELU = Fixed(baseline="relu", l1_coefficient=5)
OWN_L0 = 16.0  # at coefficient 5; it falls with the coefficient to the power 1.2


def on_front(l0: float) -> float:
    """What the made-up baseline scores at an L0: curved in log L0."""
    return 0.9 + 0.05 * math.log(l0 / OWN_L0) - 0.02 * math.log(l0 / OWN_L0) ** 2


def l0_at(coefficient: float, shift: float = 0.0) -> float:
    return OWN_L0 * (coefficient / 5) ** -1.2 * math.exp(shift)


def trained(
    coefficient: float, seed: int, noise: float = NOISE, score: Callable[[float], float] = on_front
) -> Baseline:
    draw = random.Random(f"{coefficient} {seed}")
    l0 = l0_at(coefficient, draw.gauss(0, 0.02))
    return Baseline(k=coefficient, seed=seed, figures=all_metrics(scored(l0, score(l0) + draw.gauss(0, noise))))


LADDERED = [trained(k, seed) for k, seed in required_baselines(RELU)]


def test_the_ladder_of_a_coefficient():
    own, fresh, *others = required_baselines(RELU)
    assert (own, fresh) == ((5.0, 0), (5.0, 1))
    assert {k for k, _ in others} == {3.2, 4.0, 5.0, 6.25, 7.81}
    assert [seed for k, seed in [own, fresh, *others] if k == 5] == [0, 1, 2, 3, 4]
    one = required_baselines(RELU.model_copy(update={"baseline_seeds": 1}))
    assert sorted(one) == [(3.2, 0), (4.0, 0), (5.0, 0), (6.25, 0), (7.81, 0)]


@settings(deadline=None)  # a busy machine may stop for longer
@given(a=st.floats(-1, 1), b=st.floats(-1, 1), c=st.floats(-1, 1), place=st.floats(0, 1))
def test_the_reference_is_exact_on_a_quadratic_in_log_l0(a: float, b: float, c: float, place: float):
    def quadratic(l0: float) -> float:
        return a + b * math.log(l0) + c * math.log(l0) ** 2

    known = FittedFront([trained(k, seed, 0.0, quadratic) for k, seed in required_baselines(RELU)])
    low, high = known.range
    l0 = low * (high / low) ** place
    assert (there := known.read(SCORE, l0))
    assert there.value == pytest.approx(quadratic(l0), abs=1e-9)
    assert there.noise < 1e-4, "differences in L0 are not noise"


def test_the_interval_is_that_of_least_squares():
    """Student's t with n - 3 degrees of freedom, times s sqrt(1 + x'(X'X)^-1 x)."""
    x = np.array([math.log(each.l0) for each in LADDERED])
    y = np.array([each.figures[SCORE] for each in LADDERED], dtype=float)
    design, at = np.vander(x, 3), np.vander([math.log(11.0)], 3)[0]
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    s = math.sqrt(((y - design @ weights) ** 2).sum() / (len(y) - 3))
    error = s * math.sqrt(1 + at @ np.linalg.inv(design.T @ design) @ at)
    compared = compare(scored(11.0, 0.95), FittedFront(LADDERED)).metrics[SCORE]
    assert (compared.df, len(y)) == (6, 9)
    assert compared.reference == pytest.approx(at @ weights)
    assert compared.noise == pytest.approx(s)
    assert compared.standard_error == pytest.approx(error)
    assert compared.half_width == pytest.approx(2.446912 * error)


@pytest.mark.parametrize("l0", [10.0, 15.8, 20.0, 26.0])
def test_a_difference_off_the_front_is_seen_wherever_it_lies_and_another_l0_is_none(l0: float):
    for difference, seen in ((0.0, False), (8 * NOISE, True), (-8 * NOISE, True)):
        comparison = compare(scored(l0, on_front(l0) + difference), FittedFront(LADDERED))
        compared = comparison.metrics[SCORE]
        assert (abs(compared.difference) > compared.half_width) is seen
        assert comparison.levels == [3.2, 4.0, 5.0, 6.25, 7.81]
        assert comparison.seeds == 9


def test_l0_itself_stands_beside_the_coefficients_own():
    compared = compare(scored(22.0, 0.9), FittedFront(LADDERED)).metrics["l0"]
    own = [each.l0 for each in LADDERED if each.k == 5]
    assert compared.reference == pytest.approx(sum(own) / 5)
    assert (compared.df, compared.difference > compared.half_width) == (4, True)


@pytest.mark.parametrize(
    ("l0", "known", "why"),
    [
        (60.0, LADDERED, r"L0 60\.00 is not between \d\.\d\d and 2\d\.\d\d, the L0 of the baselines"),
        (5.0, LADDERED, r"L0 5\.00 is not between \d\.\d\d and 2\d\.\d\d, the L0 of the baselines"),
        (
            16.0,
            [each for each in LADDERED if each.k > 4.5],
            r"the front takes trainings with 4 L1 coefficients, and there are 3; the noise .* was not measured",
        ),
        (None, LADDERED, "its L0 was not measured"),
    ],
)
def test_why_a_run_cannot_be_compared(l0: float | None, known: list[Baseline], why: str):
    comparison = compare(scored(l0, 0.9), FittedFront(known))
    assert comparison.not_comparable
    assert re.fullmatch(why, comparison.not_comparable)
    assert not comparison.metrics


def asked(l0: float) -> tuple[list[float], set[float]]:
    """Return the coefficients that are trained for a run, and those that it is then compared with."""
    more: dict[float, Baseline] = {}
    known = {each.k for each in LADDERED}
    while (found := beside(l0, RELU, LADDERED, known | set(more), more))[1] is not None:
        more[found[1]] = trained(found[1], 0)
    return list(more), {each.k for each in found[0]}


def test_a_run_beyond_the_ladder_has_at_most_two_more_coefficients_on_its_side():
    ladder = {3.2, 4.0, 5.0, 6.25, 7.81}
    assert asked(20.0) == ([], ladder)
    assert asked(33.0) == ([2.56], ladder | {2.56})
    assert asked(42.0) == ([2.56, 2.05], ladder | {2.56, 2.05})
    assert asked(500.0) == ([2.56, 2.05], ladder | {2.56, 2.05})
    assert asked(8.0) == ([9.76], ladder | {9.76})
    assert asked(0.5) == ([9.76, 12.2], ladder | {9.76, 12.2})


def test_what_was_trained_for_a_run_beyond_is_not_part_of_anothers_front():
    more = {k: trained(k, 0) for k in (2.56, 2.05)}
    used, missing = beside(20.0, RELU, LADDERED, {2.56, 2.05}, more)
    assert (missing, {each.k for each in used} & set(more)) == (None, set())


def test_a_coefficient_whose_training_failed_is_not_asked_for_again():
    used, missing = beside(42.0, RELU, LADDERED, {2.56}, {})
    assert (len(used), missing) == (9, None)


def test_without_the_last_coefficient_of_the_ladder_there_is_a_front_and_nothing_beyond_it():
    known = [each for each in LADDERED if each.k < 7]
    assert compare(scored(20.0, 0.9), FittedFront(known)).seeds == 8
    assert beside(9.5, RELU, known, {each.k for each in LADDERED}, {})[1] is None
    assert compare(scored(9.5, 0.9), FittedFront(known)).not_comparable


def test_one_run_in_twenty_lies_outside_of_its_interval_by_chance():
    draw, studies, outside = random.Random(0), 400, 0
    for study in range(studies):
        front = FittedFront([trained(k, 10 * study + seed) for k, seed in required_baselines(RELU)])
        low, high = front.range
        l0 = low * (high / low) ** draw.random()
        compared = compare(scored(l0, on_front(l0) + draw.gauss(0, NOISE)), front).metrics[SCORE]
        outside += abs(compared.difference) > compared.half_width
    assert 0.03 < outside / studies < 0.08


def test_notes_say_how_much_wider_the_intervals_of_fewer_seeds_are():
    two, five = (half_width_per_noise(RELU.model_copy(update={"baseline_seeds": seeds})) for seeds in (2, 5))
    x = np.log([*LADDER, 1.0])
    design = np.vander(x, 3)
    assert two == pytest.approx(3.182446 * math.sqrt(1 + np.linalg.inv(design.T @ design)[2, 2]))
    assert 1.3 < two / five < 1.6


def study_on_test(difference: float) -> State:
    """Return a study whose run 1 has three fresh seeds that were scored on the test text, all lower by 0.1 there."""
    state, seeds = State(STARTED.model_copy(update={"fixed": RELU}), baselines=LADDERED), (1000, 1001, 1002)
    for seed in seeds:
        info = scored(12.0 + seed % 3, on_front(12.0 + seed % 3) + 0.02)
        state.replicates.setdefault(1, {})[seed] = compare(info, FittedFront(LADDERED))
        there = {"l0": info.metric("l0"), SCORE: on_front(12.0 + seed % 3) + difference - 0.1}
        state.tested_seeds.setdefault(1, {})[seed] = ScoredOnTest(run=1, seed=seed, figures=there)
    for each in LADDERED:
        event = ScoredOnTest(run=0, figures=each.figures | {SCORE: (each.figures[SCORE] or 0) - 0.1})
        if (each.k, each.seed) == (5.0, 0):
            state.tested[0] = event
        else:
            state.tested_baselines[each.k, each.seed] = event.model_copy(update={"k": each.k, "seed": each.seed})
    return state


def test_the_test_text_is_read_from_the_front_of_the_same_baselines_there():
    assert on_test_split(1, study_on_test(0.01)).difference == pytest.approx(0.01, abs=3 * NOISE)
    state = study_on_test(0.01)
    failed = ScoredOnTest(run=0, k=7.81, seed=0, figures={}, why_not="killed")
    state.tested_baselines[7.81, 0] = failed
    said = "the baseline with L1 coefficient 7.81, seed 0 has no score there (killed)"
    assert on_test_split(1, state).why_not == said


def test_the_figure_shows_each_training_and_the_front(tmp_path: Path):
    drawn = FittedFront(LADDERED).drawn(SCORE)
    assert drawn
    assert (len(drawn.points), drawn.has_band) == (9, True)
    for l0, value, half_width in drawn.line:
        assert half_width
        assert abs(value - on_front(l0)) < half_width < 6 * NOISE
    (figure,) = plots.draw_study([run(tmp_path, 1, "Mine", scored(20, 0.92))], FittedFront(LADDERED), {}, SCORE, 0.005)
    line = "The line is the baseline, a quadratic in log L0 fitted to its trainings, the band where 95% of its"
    assert line in figure.description


# --- a K that can only be whole


@pytest.mark.parametrize(("k", "ks"), [(8, {4, 7, 8, 9, 16}), (7, {3, 6, 7, 8, 14}), (1, {1, 2})])
def test_a_whole_k_has_whole_neighbours(k: float, ks: set[float]):
    assert {knob for knob, _ in required_baselines(Fixed(baseline="topk", k=k))} == ks


@pytest.mark.parametrize("l0", [7.1, 7.5, 7.95, 8.0, 8.9])
def test_runs_between_whole_ks_are_compared_however_small_these_are(l0: float):
    topk = Fixed(baseline="topk", k=8)
    known = [Baseline(k=k, seed=seed, figures={"l0": k, SCORE: 0.9}) for k, seed in required_baselines(topk)]
    assert compare(scored(l0, 0.9), curve_of(topk, known)).not_comparable is None
    assert compare(scored(7.95, 0.9), Brackets(known)).not_comparable


def test_a_target_that_l0_misses_is_bracketed_all_the_same():
    """A JumpReLU baseline whose L0 is a fifth below its K."""
    jumprelu, draw = Fixed(baseline="jumprelu"), random.Random(0)

    def measured(k: float, seed: int = 0) -> Baseline:
        return Baseline(k=k, seed=seed, figures={"l0": 0.8 * k * math.exp(draw.gauss(0, 0.01)), SCORE: 0.9})

    known, more = [measured(*each) for each in required_baselines(jumprelu)], {}
    ask = partial(beside, fixed=jumprelu, baselines=known, more=more)
    for l0 in (9.0, 12.8, 16.0, 24.0):
        while (found := ask(l0, tried={each.k for each in known} | set(more)))[1] is not None:
            more[found[1]] = measured(found[1])
        assert compare(scored(l0, 0.9), curve_of(jumprelu, found[0])).not_comparable is None
    assert len(more) <= 9
