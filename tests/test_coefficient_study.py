"""A study whose baseline's L0 is moved by an L1 coefficient, from the first run to the last figure on the test text."""

import pytest
from standin import Checkout, make_checkout

from agent.audit import audit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study against ReLU + L1 at L0 10: run 1 is better, and run 2, at L0 20, lies beyond the five coefficients."""
    checkout = make_checkout(tmp_path_factory.mktemp("study"))
    checkout.plan("better", "denser", baselines=["batchtopk", "relu"])
    cache = str(checkout.root.parent / "cache")
    ended = checkout.run(2, "--baseline", "relu", "--l1-coefficient", "1.6", SAE_AGENT_CACHE=cache)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return checkout


def test_a_better_run_is_confirmed_at_its_own_l0(checkout: Checkout):
    assert "Better (confirmed): CE-loss score differs by +0.0" in checkout.notes
    assert checkout.state.runs[1].counts
    seeds = checkout.state.replicates[1].values()
    assert [comparison.levels for comparison in seeds] == [[1.02, 1.28, 1.6, 2.0, 2.5]] * 3


def test_a_run_beyond_the_ladder_gets_two_more_coefficients_and_no_other_run_has_them(checkout: Checkout):
    assert {(0.816, 0), (0.653, 0)} < set(checkout.state.baselines_tried)
    first, beyond = (run.info.comparison for run in checkout.study.load_runs(checkout.state)[1:] if run.info)
    assert first
    assert beyond
    assert (first.seeds, beyond.seeds) == (9, 11)
    assert beyond.not_comparable is None
    assert abs(beyond.metrics["ce_loss_score"].difference) < 0.002


def test_every_training_of_the_front_is_scored_on_the_test_text(checkout: Checkout):
    fresh = {(1.6, seed) for seed in (1, 2, 3, 4)}
    assert set(checkout.state.tested_baselines) == fresh | {(k, 0) for k in (1.02, 1.28, 2.0, 2.5)}
    assert "the baseline with L1 coefficient 1.6, seeds 1, 2, 3 and 4; " in checkout.notes


def test_the_notes_say_what_the_baseline_is_and_how_it_is_read(checkout: Checkout):
    for said in (
        "baseline ReLU + L1 with L1 coefficient 1.6;",
        "Baselines were trained at L1 coefficient 0.653, 0.816, 1.02, 1.28, 1.6, 2, 2.5; at L1 coefficient 1.6 with 5",
        "at their own L0, read from a quadratic in log L0 that is fitted to its trainings.",
        "The line is the baseline, a quadratic in log L0 fitted to its trainings",
    ):
        assert said in checkout.notes
    assert audit.audit(checkout.study.notes / "notes.txt", checkout.study.directory)


def test_a_front_over_k_is_refused(checkout: Checkout):
    ended = checkout.run(1, "--baseline", "relu", "--ks", "8,16")
    assert ended.returncode == 2
    why = "ReLU + L1 has no K, but an L1 coefficient; the baseline is trained with five coefficients in every study"
    assert ended.stderr == f"error: --ks 8,16: {why}\n"
