"""`agent run --reference`: an SAE from elsewhere stands beside the baseline, whatever becomes of its files."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from standin import Checkout, make_checkout, wait_for

from agent.audit import audit, known_figures
from agent.study.reference_events import ReferenceImported, ReferenceScored


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def make_sae(folder: Path, **changes: Any) -> str:
    """Write what the stand-in reads as an SAE; return its path."""
    folder.mkdir()
    sae = {"architecture": "topk", "d_in": 64, "d_sae": 512, "l0": 16.3, "score": 0.95, "declared_l0": 16}
    (folder / "sae.json").write_text(json.dumps(sae | {"tokens": 4_000_000} | changes))
    return str(folder)


@pytest.mark.slow
def test_a_reference_stands_beside_the_baseline_in_notes_figures_terminal_and_page(checkout: Checkout, tmp_path: Path):
    checkout.plan("fine")
    near, far = make_sae(tmp_path / "near"), make_sae(tmp_path / "far away", l0=40.0, score=0.97, tokens=None)
    ended = checkout.run(1, "--reference", near, "--reference", far)
    assert ended.returncode == 0, ended.stderr
    assert "reference near: topk, read as saelens, d_sae 512, where the study's SAEs have 1,024" in ended.stdout
    text = checkout.notes
    assert "reference near, d_sae 512, 4,000,000 tokens" in text
    assert "reference far-away, d_sae 512, tokens unknown" in text
    assert "Reference near has L0 16.30 (declared 16); it is one SAE, so without intervals: explained" in text
    assert "Reference near differs from the baseline at L0 16.30 by explained variance -0.00" in text
    assert "Reference far-away is not compared with the baseline: no baselines on both sides of L0 40.00" in text
    assert "Warning: reference far-away: its L0 is 40.0 here and 16.0 by its files" in text
    assert "Yellow marks are SAEs that were trained elsewhere: near and far-away." in text
    notes = audit.read(checkout.study.notes / "notes.txt")
    for known in (None, known_figures.from_directory(checkout.study.directory)):
        assert {finding.status for finding in audit.findings(notes, known)} == {"supported"}
    shown = checkout.agent("show", str(checkout.study.directory)).stdout
    assert "-0.00" in next(line for line in shown.splitlines() if "reference near" in line)
    assert checkout.agent("review", str(checkout.study.directory)).returncode == 0
    page = (checkout.study.notes / "review.html").read_text()
    assert 'href="#run-reference-2"' in page
    assert 'data-run="reference-1"' in page


def test_a_reference_that_is_refused_ends_in_a_line_before_anything_is_harvested(checkout: Checkout, tmp_path: Path):
    checkout.plan("fine")
    wide, near = make_sae(tmp_path / "wide", d_in=128), make_sae(tmp_path / "near")
    for arguments, message in (
        ((near, wide), f"error: {wide} has d_in 128, and blocks.1.hook_resid_post of tiny-lm 64\n"),
        ((near, f"{near}/"), f"error: --reference {near}/ is given twice: leave one of them out\n"),
    ):
        ended = checkout.run(1, *(word for sae in arguments for word in ("--reference", sae)))
        assert (ended.returncode, ended.stderr) == (2, message)
        assert "harvesting" not in ended.stdout
    assert not list((checkout.root / "runs").iterdir()), "nothing is left of what was imported"


@pytest.mark.slow
def test_a_reference_outlives_its_source_and_a_killed_driver_and_is_scored_once(checkout: Checkout, tmp_path: Path):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    source = make_sae(tmp_path / "near")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", "--reference", source,
                            SAE_AGENT_STANDIN_HOLD=str(hold))  # fmt: skip
    wait_for(lambda: any((checkout.root / "runs").glob("*/jobs/run_1_attempt_1/try_*/run_1/metrics.jsonl")))
    driver.kill()
    driver.communicate()
    hold.unlink()
    shutil.rmtree(source)
    events = checkout.study.ledger.read_text()
    checkout.study.ledger.write_text("".join(line + "\n" for line in events.splitlines()[:1]))  # killed at once
    assert not checkout.state.references
    resumed = checkout.agent("resume")
    assert resumed.returncode == 0, resumed.stderr
    kinds = [event.event for event in checkout.events if isinstance(event, ReferenceImported | ReferenceScored)]
    assert kinds == ["reference_imported", "reference_scored"]
    assert "Reference near has L0 16.30" in checkout.notes


@pytest.mark.slow
def test_scores_come_from_the_cache_in_the_next_study_and_a_failure_is_told(checkout: Checkout, tmp_path: Path):
    checkout.plan("fine")
    sound, deadly = make_sae(tmp_path / "near"), make_sae(tmp_path / "deadly", deadly=True)
    assert checkout.run(1, "--reference", sound).returncode == 0
    first = checkout.state.references_scored["near"]
    assert first.seconds > 0
    assert "trained elsewhere" in checkout.agent("cache").stdout
    shutil.rmtree(checkout.root / "runs")
    ended = checkout.run(1, "--reference", sound, "--reference", deadly)
    assert ended.returncode == 0, ended.stderr
    again = checkout.state.references_scored["near"]
    assert (again.seconds, again.figures) == (0, first.figures)
    (notes,) = [path for path in (checkout.root / "notes").iterdir() if path.name == checkout.study.name]
    text = (notes / "notes.txt").read_text().replace("\n  ", " ")
    assert "Reference deadly has no result: not_evaluated (error: the evaluator died of it)." in text
    assert {finding.status for finding in audit.findings(audit.read(notes / "notes.txt"))} == {"supported"}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_reference_is_imported_and_scored_on_a_cluster(checkout: Checkout, tmp_path: Path):
    checkout.plan("fine")
    settings = {"PATH": os.environ["PATH"], "SLURM_CONF": os.environ["SLURM_CONF"]}
    on_slurm = ("--executor", "slurm", "--slurm", "partition=main", "--jobs", "3")
    wide, near = make_sae(tmp_path / "wide", d_in=128), make_sae(tmp_path / "near")
    refused = checkout.run(1, *on_slurm, "--reference", wide, **settings)
    assert refused.returncode == 2, refused.stderr
    assert "has d_in 128" in refused.stdout + refused.stderr
    ended = checkout.run(1, *on_slurm, "--reference", near, **settings)
    assert ended.returncode == 0, ended.stderr
    assert checkout.state.references_scored["near"].verdict.ok
