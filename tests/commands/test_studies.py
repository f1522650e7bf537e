"""`agent studies` lists every study, also those that cannot be read; `agent show STUDY --run N` tells of one run."""

import re
import shutil
from pathlib import Path

import pytest
from standin import Checkout, make_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_checkout(tmp_path_factory.mktemp("studies"))
    checkout.plan("fine", "denser")
    assert checkout.run(2).returncode == 0
    return checkout


def test_a_checkout_without_studies_says_how_to_start_one(tmp_path: Path):
    result = make_checkout(tmp_path).agent("studies")
    assert result.returncode == 0
    assert result.stdout.endswith(": start one with `agent run`\n")


def test_each_study_has_a_line_with_its_best_outcome(checkout: Checkout):
    name = checkout.study.name
    broken = checkout.root / "runs" / "20200101_000000_broken"
    shutil.copytree(checkout.study.directory, broken)
    ledger = (broken / "events.jsonl").read_text()
    (broken / "events.jsonl").write_text(ledger.replace('"event":"run_committed"', '"event":"run_vanished"'))
    shown = checkout.agent("studies").stdout
    shutil.rmtree(broken)
    (row,) = [re.split(r" {2,}", line.strip()) for line in shown.splitlines() if line.startswith(name)]
    assert row[1:4] == ["stand_in", "tiny-lm", "2 of 2"]
    assert re.fullmatch(r"[a-z ]+ \(run [12]\)", row[4])
    assert row[5] == "ended"
    assert "20200101_000000_broken cannot be read: " in shown


def test_a_run_of_a_study_is_shown_with_its_reasons_and_its_change(checkout: Checkout):
    shown = checkout.agent("show", str(checkout.study.directory), "--run", "2").stdout
    for part in ("run 2: Step 2 that is denser", "what changed: ", "why: ", "  - CE-loss score: 0.9599, baseline "):
        assert part in shown
    assert '+BEHAVIOUR = "denser"' in shown
    assert "the code, from that of run 0:" in shown


def test_a_run_that_is_not_there_is_the_users_mistake(checkout: Checkout):
    result = checkout.agent("show", str(checkout.study.directory), "--run", "9")
    assert result.returncode == 2
    assert result.stderr == f"error: {checkout.study.name} has no run 9: it has runs 0 to 2\n"
    result = checkout.agent("show", str(checkout.study.run_dir(1)), "--run", "1")
    assert result.returncode == 2
    assert "--run is for a study" in result.stderr
