"""`agent show`: tables of a run and of a study."""

import json
import re
from pathlib import Path

import pytest
from standin import Checkout, make_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_checkout(tmp_path_factory.mktemp("show"))
    checkout.plan("killed", "denser")
    assert checkout.run(2).returncode == 0
    return checkout


@pytest.mark.slow
def test_a_run_is_shown_with_healthy_ranges_and_probing(checkout: Checkout):
    shown = checkout.agent("show", str(checkout.study.run_dir(0))).stdout
    for group in ("training", "sparsity", "reconstruction", "model preservation", "probing"):
        assert f"│ {group} " in shown
    score, alive = (next(line for line in shown.splitlines() if name in line) for name in ("CE-loss score", "alive"))
    assert [cell.strip() for cell in score.split("│")[3:6]] == ["0.9562", "", "0.8 to 1"]
    assert "0.9 to 1: outside" in alive
    news = next(line for line in shown.splitlines() if "news" in line)
    assert [cell.strip() for cell in news.split("│")[1:-1]] == ["news", "0.610", "0.671", "0.600", "0.672", "0.800"]
    assert "verdict: ok (above the floor)" in shown
    assert "warning: only 40% of the latents are alive" in shown


def test_a_failed_run_is_shown_with_its_verdict(checkout: Checkout):
    result = checkout.agent("show", str(checkout.study.run_dir(1)))
    assert result.returncode == 0
    assert "verdict: killed (killed by SIGKILL)" in result.stdout


@pytest.mark.parametrize("of", ["directory", "notes"])
def test_a_study_is_shown_with_a_row_per_run(checkout: Checkout, of: str):
    shown = checkout.agent("show", str(getattr(checkout.study, of))).stdout
    rows = [re.split(r" {2,}", line.strip()) for line in shown.splitlines()]
    numbered = {row[0]: row for row in rows if row[0].isdigit()}
    assert list(numbered) == ["0", "1", "2"]
    assert numbered["0"] == ["0", "Baseline", "16.29", "0.9562", "one of 5 seeds", "0.8562", "0.6710"]
    assert numbered["1"][2:] == ["killed"]
    assert numbered["2"][1:4] == ["Step 2 that is denser", "20.35", "0.9599"]
    assert "question: " in shown
    assert "Not decided: the idea declares no rules for its hypothesis" in shown
    assert "cost: 2 runs of 2, " in shown
    assert "failed: run 1: killed (killed by SIGKILL)" in shown
    assert "run 1 does not count: killed (killed by SIGKILL)" in shown
    assert "ended: the budget of 2 runs is spent" in shown


def test_a_run_without_results_says_how_to_get_them(checkout: Checkout, tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    result = checkout.agent("show", str(tmp_path))
    assert result.returncode == 2
    assert "python -P -m agent.lab.evaluation" in result.stderr


def test_damaged_results_are_one_line(checkout: Checkout, tmp_path: Path):
    (tmp_path / "final_info.json").write_text(json.dumps({"format_version": 2}))
    result = checkout.agent("show", str(tmp_path))
    assert result.returncode == 2
    assert "is not a version 1 result file" in result.stderr
    assert result.stderr.count("\n") == 1
