"""`--evals` decides which evaluations score a study's runs and its baselines."""

import re
from pathlib import Path

import pytest
from standin import Checkout, make_checkout

from agent.lab import results
from agent.study.ledger import State, derive, read

pytestmark = pytest.mark.slow

QUICK = {"core", "sparse_probing_sae_probes"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[Path, float]]:
    """Return a checkout with a study of the quick tier, then one of the standard tier, and the times at which the first
    one's baselines were trained."""
    checkout = make_checkout(tmp_path_factory.mktemp("evals"))
    checkout.plan("better")
    assert checkout.run(1).returncode == 0
    trained = {path: path.stat().st_mtime for path in baselines(checkout, "metrics.jsonl")}
    ended = checkout.run(1, "--evals", "standard")
    assert ended.returncode == 0, ended.stderr
    return checkout, trained


def baselines(checkout: Checkout, name: str) -> list[Path]:
    return sorted(checkout.root.parent.glob(f"home/.cache/sae-agent/baselines/*/k*_seed*/{name}"))


def state(directory: Path) -> State:
    return derive(read(directory / "events.jsonl"))


def test_every_run_is_scored_by_the_chosen_families(two: tuple[Checkout, dict[Path, float]]):
    quick, standard = sorted((two[0].root / "runs").iterdir())
    for run in ("run_0", "run_1", "run_1_seed_1000"):
        assert results.read(quick / run).families == QUICK
        assert results.read(standard / run).families == QUICK | {"tpp"}
    assert state(standard).runs[1].comparison.metrics["tpp"].df == 4  # type: ignore[union-attr]
    assert results.read(standard / "run_1", "test_info.json").families == {"core"}


def test_a_family_that_cannot_run_is_left_out_of_a_tier_and_named_in_the_notes(two: tuple[Checkout, dict[Path, float]]):
    checkout, _ = two
    _, standard = sorted((checkout.root / "runs").iterdir())
    assert state(standard).started.evals == ("core", "sparse_probing_sae_probes", "tpp")  # type: ignore[union-attr]
    notes = (checkout.root / "notes" / standard.name / "notes.txt").read_text().replace("\n  ", " ")
    assert "; evaluated by core, sparse_probing_sae_probes, tpp.\n" in notes
    for name in ("sparse_probing", "absorption"):
        assert f"Left out of standard: {name}: it has no stand-in: write one.\n" in notes


def test_an_evaluation_that_never_decides_is_marked_and_its_remark_appears_once(
    two: tuple[Checkout, dict[Path, float]],
):
    checkout, _ = two
    _, standard = sorted((checkout.root / "runs").iterdir())
    notes = (checkout.root / "notes" / standard.name / "notes.txt").read_text()
    assert "'tpp': 0.031" in notes
    assert "\nKnown to be unreliable, so that they never decide: TPP, top 20.\n" in notes
    for text in (notes, checkout.agent("show", str(standard)).stdout):
        assert text.count("tpp: TPP is unreliable at its canonical settings.") == 1
    shown = checkout.agent("show", str(standard / "run_1")).stdout
    assert re.search(r"TPP, top 20 *│ *0.0310 │ *│ never decides", shown)


def test_cached_baselines_are_scored_again_and_not_trained_again(two: tuple[Checkout, dict[Path, float]]):
    checkout, trained = two
    assert {path: path.stat().st_mtime for path in baselines(checkout, "metrics.jsonl")} == trained
    assert len(trained) == 9
    for path in baselines(checkout, "final_info.json"):
        assert results.read(path.parent).families == QUICK | {"tpp"}
    _, standard = sorted((checkout.root / "runs").iterdir())
    assert all(baseline.figures["tpp"] for baseline in state(standard).baselines)


def test_a_study_whose_primary_metric_cannot_be_measured_is_refused(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("better", primary_metric="absorption")
    ended = checkout.run(1, "--evals", "quick")
    assert ended.returncode == 2
    assert ended.stderr == "error: absorption cannot run: it has no stand-in: write one\n"
    assert "harvesting" not in ended.stdout
    assert not list((checkout.root / "runs").iterdir())


def test_a_primary_metric_of_another_kind_of_model_is_replaced_by_the_models_own(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("better", primary_metric="f1")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    (study,) = (checkout.root / "runs").iterdir()
    started = state(study).started
    assert started
    assert (started.primary_metric, "synthetic" in started.evals) == ("ce_loss_score", False)
