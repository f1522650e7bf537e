"""What may be said of a run beside the baseline: on made-up trainings whose curve and noise are known."""

import math
import random
import runpy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from builders import OK, core
from hypothesis import given
from hypothesis import strategies as st

from agent.comparison.arbiter import OnTest
from agent.comparison.brackets import Brackets, bracketing_levels, missing_k
from agent.comparison.curves import required_baselines
from agent.comparison.judgement import Goal, judge, prediction_outcome
from agent.comparison.matching import all_metrics, compare, levels, reseeded_level
from agent.comparison.significance import holm, smallest_detectable
from agent.ideas import Fixed, render_baseline
from agent.lab.results import Comparison, Core, FamilyScores, FinalInfo, Latents, MetricComparison, Probing
from agent.study.records import Baseline

SCORE, NOISE, WORTH = "ce_loss_score", 0.001, 0.005
STEADY = (-1.2, -0.6, 0.0, 0.6, 1.2)  # five seeds of noise: mean 0, standard deviation 0.95


def on_curve(l0: float) -> float:
    """What the made-up baseline scores at an L0."""
    return 0.6 + 0.1 * math.log(l0)


def measured(l0: float | None = 16.0, **values: float | None) -> FinalInfo:
    """A run with these headline metrics and no others."""
    figures = {name: value for name, value in values.items() if name in Core.model_fields}
    return FinalInfo(
        verdict=OK,
        core=core(None, l0=l0, **figures),
        latents=Latents.model_validate(
            dict.fromkeys(Latents.model_fields) | {"alive_fraction": values.get("alive_fraction")}
        ),
        probing=Probing(
            auc={5: values.get("probing_auc_5")},
            accuracy={},
            random_auc={},
            llm_auc=None,
            llm_accuracy=None,
            datasets=[],
        ),
    )


def baseline(k: float, seed: int = 0, *, l0: float | None = None, error: float = 0.0, **values: float) -> Baseline:
    l0 = l0 or 1.02 * k
    return Baseline(k=k, seed=seed, figures=all_metrics(measured(l0, **{SCORE: on_curve(l0) + error} | values)))


def seeds(errors: Sequence[float] = STEADY, k: int = 16, **values: float) -> list[Baseline]:
    """Seeds of one K, each at an L0 of its own."""
    return [
        baseline(k, seed, l0=1.02 * k * (1 + 0.002 * (seed % 3 - 1)), error=NOISE * error, **values)
        for seed, error in enumerate(errors)
    ]


UPHELD = {0: OnTest(0.1)}  # by the test text

BASELINES = [*seeds(), baseline(15), baseline(17)]


def run_at(l0: float, difference: float = 0.0) -> Comparison:
    return compare(measured(l0, **{SCORE: on_curve(l0) + difference}), Brackets(BASELINES))


def outcome(comparison: Comparison, *fresh: Comparison, others: int = 0, smallest: float = WORTH) -> str:
    """Of a run among others that differ in nothing."""
    all_runs = {0: comparison} | {run: run_at(16.3) for run in range(1, others + 1)}
    return judge(all_runs, Goal(SCORE, smallest), {0: fresh}, UPHELD)[0].outcome


# --- beside the baseline, at the run's own L0


@given(
    a=st.floats(-1, 1),
    b=st.floats(-1, 1),
    spread=st.floats(0, 0.02),
    place=st.floats(0, 1),
)
def test_the_reference_is_exact_on_a_curve_that_is_linear_in_log_l0(a: float, b: float, spread: float, place: float):
    def there(k: int, seed: int) -> Baseline:
        l0 = k * (1 + spread * (seed - 1))
        return Baseline(k=k, seed=seed, figures={"l0": l0, SCORE: a + b * math.log(l0)})

    known = [there(16, seed) for seed in range(5)] + [there(k, 1) for k in (15, 17)]
    l0 = 15 * (17 / 15) ** place
    compared = compare(measured(l0, **{SCORE: 0.0}), Brackets(known)).metrics[SCORE]
    assert compared.reference == pytest.approx(a + b * math.log(l0), abs=1e-9)
    assert compared.noise < 1e-4, "differences in L0 are not noise"


def test_another_l0_is_no_difference():
    plain = on_curve(17.2) - on_curve(16.32)
    assert plain > 5 * NOISE
    assert run_at(17.2).metrics[SCORE].difference == pytest.approx(0, abs=NOISE / 10)
    assert outcome(run_at(17.2)) == "within noise"


def test_a_difference_off_the_curve_is_seen_wherever_it_lies():
    for l0 in (15.5, 16.3, 17.2):
        assert outcome(run_at(l0, 0.01)) == "unconfirmed"
        assert outcome(run_at(l0, -0.01)) == "worse"


def test_the_interval_by_hand():
    """Half way between five seeds and one, in log L0: t(4) s sqrt(1 + (1/2)^2/5 + (1/2)^2/1)."""
    flat = [baseline(16, seed, l0=16.0, error=NOISE * error) for seed, error in enumerate(STEADY)]
    l0 = math.sqrt(16 * 17)
    compared = compare(measured(l0, **{SCORE: 0.9}), Brackets([*flat, baseline(17, l0=17.0)])).metrics[SCORE]
    s = NOISE * math.sqrt(sum(error**2 for error in STEADY) / 4)
    assert compared.noise == pytest.approx(s)
    assert compared.standard_error == pytest.approx(s * math.sqrt(1 + 0.05 + 0.25))
    assert compared.half_width == pytest.approx(2.776445 * compared.standard_error)
    assert compared.df == 4
    assert compared.reference == pytest.approx((on_curve(16) + on_curve(17)) / 2)


def test_l0_itself_stands_beside_the_baselines_own():
    compared = run_at(17.2).metrics["l0"]
    assert compared.reference == pytest.approx(1.02 * 16, rel=1e-3)
    assert compared.difference > compared.half_width


def test_an_l0_equal_to_a_levels_reads_that_level_alone():
    at = baseline(17).figures["l0"]
    assert at
    comparison = run_at(at)
    assert comparison.levels == [17, 17]
    assert comparison.metrics[SCORE].reference == pytest.approx(on_curve(at))


def test_two_levels_of_one_l0():
    twins = [*BASELINES, baseline(18, l0=17.34)]
    comparison = compare(measured(17.34, **{SCORE: on_curve(17.34)}), Brackets(twins))
    assert comparison.metrics[SCORE].difference == pytest.approx(0)


def test_what_a_baseline_lacks_is_not_compared():
    lacking = [*BASELINES[:-1], Baseline(k=17, seed=0, figures=BASELINES[-1].figures | {SCORE: None})]
    assert SCORE not in compare(measured(17.0, **{SCORE: 0.9}), Brackets(lacking)).metrics
    assert SCORE in compare(measured(16.0, **{SCORE: 0.9}), Brackets(lacking)).metrics
    assert "l0" in compare(measured(17.0), Brackets(lacking)).metrics
    one_of_five = [Baseline(k=16, seed=9, figures=BASELINES[0].figures | {SCORE: None}), *BASELINES]
    assert set(compare(measured(16.0, **{SCORE: 0.9}), Brackets(one_of_five)).metrics) == {"l0"}


def test_one_dead_latent_is_no_difference_where_no_seed_had_any():
    whole = {"alive_fraction": 1.0}
    known = [*seeds(**whole), baseline(15, **whole), baseline(17, **whole)]
    for dead, seen in ((0, False), (1, False), (10, True)):
        compared = compare(measured(16.3, alive_fraction=1 - dead / 1024), Brackets(known)).metrics["alive_fraction"]
        assert (abs(compared.difference) > compared.half_width) is seen


@pytest.mark.parametrize(
    ("info", "known", "why"),
    [
        (measured(None), BASELINES, "its L0 was not measured"),
        (measured(20.0), BASELINES, "no baselines on both sides of L0 20.00 within 10% of it"),
        (measured(16.0), [baseline(15), baseline(16), baseline(17)], "the noise between seeds was not measured"),
    ],
)
def test_why_a_run_cannot_be_compared(info: FinalInfo, known: list[Baseline], why: str):
    comparison = compare(info, Brackets(known))
    assert comparison.not_comparable == why
    assert comparison.metrics == {}
    assert outcome(comparison) == "not comparable"


def test_a_baseline_further_than_a_tenth_says_nothing():
    far = [*seeds(), baseline(19, l0=19.0)]
    assert bracketing_levels(17.5, far)
    assert bracketing_levels(17.2, far) is None


# --- the baseline to train next


@given(
    l0=st.floats(1, 200),
    per_k=st.floats(0.3, 3),
    power=st.floats(0.2, 1.2),
    noise=st.floats(0, 0.1),
    seed=st.integers(0, 2**16),
)
def test_asking_for_baselines_ends_and_never_repeats(l0: float, per_k: float, power: float, noise: float, seed: int):
    draw = random.Random(seed)

    def trained(k: float, seed: int = 0) -> Baseline:
        return Baseline(k=k, seed=seed, figures={"l0": per_k * k**power * math.exp(draw.gauss(0, noise))})

    known = [trained(16), trained(16, seed=1)]
    while (k := missing_k(l0, known)) is not None:
        assert k >= 1
        assert k not in {level.k for level in levels(known)}
        known.append(trained(k))
        assert len(known) <= 12


@given(l0=st.floats(1.5, 500), per_k=st.floats(0.9, 1.1), seed=st.integers(0, 2**16))
def test_asking_for_baselines_encloses_what_can_be(l0: float, per_k: float, seed: int):
    draw = random.Random(seed)
    known = [Baseline(k=16, seed=0, figures={"l0": per_k * 16})]
    while (k := missing_k(l0, known)) is not None:
        known.append(Baseline(k=k, seed=0, figures={"l0": per_k * k * math.exp(draw.gauss(0, 0.003))}))
    assert bracketing_levels(l0, known)
    assert len(known) <= 5  # of them one or two for what the noise of L0 put on the wrong side


def test_no_baseline_keeps_less_than_one_latent():
    assert missing_k(1.0, [baseline(1, l0=1.02)]) is None


@pytest.mark.parametrize("l0", [7.6, 7.9, 8.1, 8.4])
def test_a_small_l0_lies_between_baselines_whose_k_is_not_whole(l0: float):
    fixed = Fixed(model="synth2k")
    known = [baseline(k, seed, l0=k) for k, seed in required_baselines(fixed)]
    assert {level.k for level in levels(known)} == {4, 7.5, 8, 8.5, 16}
    assert compare(measured(l0, **{SCORE: 0.7}), Brackets(known)).not_comparable is None


def test_a_k_that_is_not_whole_is_trained_as_it_is():
    assert "\nK = 7.5  #" in render_baseline(Fixed(model="synth2k"), 7.5)


# --- what may be said


def plainly(p_values: Mapping[int, Fraction]) -> dict[int, Fraction]:
    """Holm by closed testing: a hypothesis falls if every set of them that holds it does, by Bonferroni."""
    sets = [each for size in range(1, len(p_values) + 1) for each in combinations(p_values, size)]
    return {
        run: max(min(Fraction(1), len(each) * min(p_values[i] for i in each)) for each in sets if run in each)
        for run in p_values
    }


@given(st.dictionaries(st.integers(0, 20), st.fractions(0, 1, max_denominator=50), max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: dict[int, Fraction]):
    assert holm(p_values) == plainly(p_values)  # type: ignore[arg-type]


def test_more_runs_ask_for_more():
    alone = run_at(16.3, 0.004)
    assert outcome(alone, smallest=0.001) == "unconfirmed"
    assert outcome(alone, others=9, smallest=0.001) == "within noise"
    compared = alone.metrics[SCORE]
    assert smallest_detectable(compared, 1) == pytest.approx(compared.half_width)
    assert smallest_detectable(compared, 1) < 0.004 < smallest_detectable(compared, 10)


def test_what_is_visible_and_too_small_to_matter_is_negligible():
    assert outcome(run_at(16.3, 0.004)) == "negligible"
    assert outcome(run_at(16.3, -0.004)) == "negligible"


def test_a_winner_is_not_better_before_its_fresh_seeds():
    winner = run_at(16.3, 0.01)
    again = [run_at(l0, 0.01) for l0 in (15.9, 16.3, 16.8)]
    assert outcome(winner) == "unconfirmed"
    assert outcome(winner, *again[:2]) == "unconfirmed"
    assert outcome(winner, *again) == "better"


@pytest.mark.parametrize(
    "differences",
    [(0.0, 0.001, -0.001), (0.004, 0.004, 0.004), (-0.01, -0.01, -0.01), (0.0, 0.0, 0.03)],
    ids=["nothing", "too small", "the other way", "one of three"],
)
def test_a_winner_that_its_fresh_seeds_do_not_show_again(differences: tuple[float, ...]):
    fresh = [run_at(16.3, difference) for difference in differences]
    assert outcome(run_at(16.3, 0.01), *fresh) == "not confirmed"


def test_a_fresh_seed_that_cannot_be_compared_confirms_nothing():
    fresh = [run_at(16.3, 0.01), run_at(16.3, 0.01), run_at(30)]
    assert outcome(run_at(16.3, 0.01), *fresh) == "not confirmed"


def test_the_confirmation_by_hand():
    """Three seeds that differ no more than the baselines: t(4), s sqrt(1/3 + what the reference adds)."""
    winner = run_at(16.32, 0.01)
    judged = judge({0: winner}, Goal(SCORE, WORTH), {0: [winner] * 3}, UPHELD)[0]
    assert judged.confirmation
    compared = winner.metrics[SCORE]
    reference = compared.standard_error**2 - compared.noise**2
    assert judged.confirmation.standard_error == pytest.approx(math.sqrt(compared.noise**2 / 3 + reference))
    assert judged.confirmation.df == 4
    wide = [run_at(16.32, difference) for difference in (0.0, 0.01, 0.02)]
    spread = judge({0: winner}, Goal(SCORE, WORTH), {0: wide}, UPHELD)[0].confirmation
    assert spread
    assert spread.noise == pytest.approx(0.01)
    assert spread.df == 2


def test_less_is_better_where_the_metric_says_so():
    known = [
        *[baseline(16, seed, loss_added=0.3 + 0.001 * error) for seed, error in enumerate(STEADY)],
        baseline(15, loss_added=0.3),
        baseline(17, loss_added=0.3),
    ]
    for value, said in ((0.2, "unconfirmed"), (0.4, "worse")):
        comparison = compare(measured(16.3, loss_added=value), Brackets(known))
        assert judge({0: comparison}, Goal("loss_added", 0.03), {}, {})[0].outcome == said


@pytest.mark.parametrize(("uniqueness", "said"), [(0.98, "better"), (0.975, "better"), (0.5, "not better")])
def test_copies_of_one_feature_are_no_better_f1(uniqueness: float, said: str):
    levels = [(k, seed) for seed in range(5) for k in (15, 16, 17)]
    known = [
        Baseline(k=k, seed=s, figures={"l0": k, "f1": 0.7 + 0.001 * s, "uniqueness": 0.98 + 0.001 * s})
        for k, s in levels
    ]
    info = measured(16)
    info.evaluations["synthetic"] = FamilyScores(metrics={"f1": 0.8, "uniqueness": uniqueness})
    winner = compare(info, Brackets(known))
    assert judge({0: winner}, Goal("f1", 0.01), {0: [winner] * 3}, UPHELD)[0].outcome == said


def beside_variance(score: float, variance: float) -> Comparison:
    """Compare a run whose baseline has an explained variance of 0.78 with a noise of 0.001."""
    ks = [(16, seed) for seed in range(5)] + [(15, 0), (17, 0)]
    known = [
        baseline(k, seed, explained_variance_centered=0.78 + NOISE * STEADY[seed], error=NOISE * STEADY[seed])
        for k, seed in ks
    ]
    figures = {SCORE: on_curve(16.32) + score, "explained_variance_centered": 0.78 + variance}
    return compare(measured(16.32, **figures), Brackets(known))


@pytest.mark.parametrize(
    ("variance", "most_lost", "said"),
    [(-0.045, 0.05, "better"), (-0.055, 0.05, "not better"), (-0.27, 0.05, "not better"), (-0.055, 0.06, "better")],
)
def test_a_ce_loss_score_had_without_reconstruction_is_not_better(variance: float, most_lost: float, said: str):
    winner = beside_variance(0.02, variance)
    assert judge({0: winner}, Goal(SCORE, WORTH, most_lost), {0: [winner] * 3}, UPHELD)[0].outcome == said


def test_fresh_seeds_may_lose_no_more_variance_than_the_run():
    winner, lossy = beside_variance(0.02, 0.0), beside_variance(0.02, -0.2)
    assert judge({0: winner}, Goal(SCORE, WORTH), {0: [winner, winner, lossy]}, UPHELD)[0].outcome == "not better"


def test_the_reseeded_level_gives_the_noise():
    assert reseeded_level(BASELINES).k == 16
    assert [level.k for level in levels(BASELINES)] == [15, 16, 17]


# --- predictions


def with_difference(difference: float, half_width: float = 0.002) -> MetricComparison:
    return MetricComparison(
        value=0.9 + difference, reference=0.9, noise=0.001, standard_error=0.001, df=4, half_width=half_width, p=0.5
    )


UP, DOWN, SMALL, HIDDEN = (
    with_difference(0.01),
    with_difference(-0.01),
    with_difference(0.004),
    with_difference(0.01, half_width=0.02),
)


@pytest.mark.parametrize(
    ("compared", "up", "down", "same"),
    [
        (UP, "held", "failed", "failed"),
        (DOWN, "failed", "held", "failed"),
        (SMALL, "held", "failed", "held"),
        (with_difference(0.001), "within noise", "within noise", "held"),
        (HIDDEN, "within noise", "within noise", "within noise"),
        (with_difference(0.001, half_width=0.02), "within noise", "within noise", "within noise"),
        (None, "not measured", "not measured", "not measured"),
    ],
)
def test_how_a_prediction_came_out(compared: MetricComparison | None, up: str, down: str, same: str):
    assert (
        prediction_outcome(SCORE, "up", compared),
        prediction_outcome(SCORE, "down", compared),
        prediction_outcome(SCORE, "same", compared),
    ) == (
        up,
        down,
        same,
    )


def test_an_l0_is_the_same_within_a_twentieth():
    compared = run_at(17.0).metrics["l0"]
    assert prediction_outcome("l0", "same", compared) == "held"
    assert prediction_outcome("l0", "up", compared) == "held"
    assert prediction_outcome("l0", "same", run_at(17.2).metrics["l0"]) == "failed"


# --- how often it errs: the benchmark on made-up trainings

calibration = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "calibration.py"))
NEARLY_ZERO = calibration["NEARLY_ZERO"]


@pytest.fixture(scope="module")
def pool() -> dict[int, list[Baseline]]:
    return calibration["simulated_pool"](random.Random(1), {15: 3, 16: 40, 17: 3})


def test_placebo_studies_claim_nothing(pool: dict[int, list[Baseline]]):
    """Five runs, uncorrected, would look better in one study of ten, and worse in another."""
    studies = 200
    found = calibration["claims"](pool, SCORE, NEARLY_ZERO, studies)
    assert found["better"] <= 0.02 * studies, "confirmed by fresh seeds"
    assert found["first stage"] + found["worse"] <= 0.1 * studies, "corrected over the runs"
    assert found["first stage"] > found["better"]


def test_planted_effects_are_found(pool: dict[int, list[Baseline]]):
    planted, effect, goal = calibration["planted"], calibration["Effect"], Goal(SCORE, WORTH)
    assert planted(pool, goal, effect(10 * NOISE), 50)["better"] >= 45
    assert planted(pool, goal, effect(2 * NOISE), 50)["better"] == 0
    assert planted(pool, goal, effect(10 * NOISE, on_test=0.0), 50)["not upheld"] >= 45


def test_a_comparison_blind_to_l0_is_fooled(pool: dict[int, list[Baseline]]):
    fooled, compared = calibration["higher_k"](pool, SCORE, matched=False, studies=50)
    matched, enclosed = calibration["higher_k"](pool, SCORE, matched=True, studies=50)
    assert fooled > 0.5 * compared
    assert matched < 0.2 * enclosed
