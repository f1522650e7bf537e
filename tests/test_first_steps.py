"""A run that is after its first steps where the baseline was is said to be, before and after its whole training."""

import json
from pathlib import Path

import pytest
from standin import Checkout, make_checkout, wait_for

from agent.audit import audit
from agent.study import digests

pytestmark = pytest.mark.slow

WARNING = "the first 20,000 tokens are those of the baseline; a change that acts later is fine"


@pytest.fixture
def first(tmp_path: Path) -> Checkout:
    """A study of a run that acts later, and of one that acts from the start; its baseline is in the cache."""
    checkout = make_checkout(tmp_path / "first")
    checkout.plan("held.later", "fine")
    return checkout


def warnings(checkout: Checkout) -> list[bool]:
    """Return for each run of a study that has ended whether it is warned of."""
    return [WARNING in run.verdict.warnings for run in checkout.state.runs if run.verdict]


def test_a_change_that_acts_later_is_warned_of_by_a_cached_baseline_too(first: Checkout, tmp_path: Path):
    cache = {"SAE_AGENT_CACHE": str(tmp_path / "cache")}
    hold = tmp_path / "hold"
    hold.touch()
    driver = first.start(
        *("run", "--idea", "stand_in", "--max-runs", "2", "--run-timeout", "60"),
        SAE_AGENT_STANDIN_HOLD=str(hold),
        **cache,
    )
    wait_for(lambda: said_while_it_trains(first))
    hold.unlink()
    _, stderr = driver.communicate()
    assert driver.returncode == 0, stderr
    assert warnings(first) == [False, True, False]
    assert f"Warning: {WARNING}" in first.notes.split("## Run 1: ")[1].split("## Run 2: ")[0]
    findings = audit.findings(audit.read(first.study.notes / "notes.txt"))
    assert [str(finding) for finding in findings if finding.status != "supported"] == []

    second = make_checkout(tmp_path / "second")
    second.plan("fine.later")
    assert second.run(1, **cache).returncode == 0
    assert not any(event.event == "job_submitted" and event.job == "run_0_attempt_1" for event in second.events)
    assert warnings(second) == [False, True]

    (entry,) = (tmp_path / "cache").glob("baselines/*/k16_seed0")
    info = json.loads((entry / "final_info.json").read_text())
    del info["environment"]["smoke_checkpoint"]  # as an earlier version has left it
    (entry / "final_info.json").write_text(json.dumps(info))
    digests.seal(entry, digests.RUN_FILES)
    third = make_checkout(tmp_path / "third")
    third.plan("fine.later")
    assert third.run(1, **cache).returncode == 0
    assert warnings(third) == [False, False]


def said_while_it_trains(checkout: Checkout) -> bool:
    return any(WARNING in path.read_text() for path in checkout.study.directory.glob("jobs/*/progress"))


def test_the_first_steps_are_timed_from_the_first_of_them(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("dawdling", "loitering")
    ended = checkout.run(2, "--run-timeout", "3", SAE_AGENT_CACHE=str(tmp_path / "cache"))
    assert ended.returncode == 0, ended.stderr
    verdicts = [run.verdict for run in checkout.state.runs[1:] if run.verdict]
    assert [verdict.name for verdict in verdicts] == ["ok", "timed_out"]
    assert verdicts[1].evidence == "in the first steps: still running 3 s after its first step"
