"""A study whose driver is killed while a run trains: the same attempt goes on from the state that it had saved."""

import signal
from pathlib import Path

import pytest
from standin import Checkout, make_checkout, processes, wait_for

from agent.lab import results
from agent.study.events import AttemptCutShort, AttemptStarted, JobLost
from agent.study.workspace import Study

TOKENS, STEP = 1_500_000, 150_000  # of a stand-in training of ten steps
RUN = ("run", "--idea", "stand_in", "--max-runs", "1", "--jobs", "1")
SAVES = {"SAE_AGENT_STANDIN_SAVES": "held", "SAE_AGENT_SAVE_EVERY": str(4 * STEP)}

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = make_checkout(tmp_path)
    checkout.plan("held")
    return checkout


def cut_short(checkout: Checkout, hold: Path, number: signal.Signals = signal.SIGKILL) -> dict[str, str]:
    """Begin a study, and end its driver when run 1 has saved its state twice and trained on. Return its settings."""
    hold.touch()
    settings = SAVES | {"SAE_AGENT_STANDIN_HOLD": str(hold)}
    driver = checkout.start(*RUN, **settings)
    wait_for(lambda: len(checkout.state.runs) == 2 and any("sleep 62.5" in line for line in processes()))
    driver.send_signal(number)
    said = driver.communicate()[0]
    assert "run 0: cut short, it would start over: it saved no state (guard.resumes declares what changes)" in said
    assert "run 1: cut short" not in said
    wait_for(lambda: not any(str(checkout.root) in line for line in processes()))
    hold.unlink()
    return settings


def went_on(checkout: Checkout) -> list[JobLost]:
    return [event for event in checkout.events if isinstance(event, JobLost) and event.rows]


def left_over(study: Study) -> list[Path]:
    return [*study.directory.rglob("state_*"), *study.directory.rglob("kept.json")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_same_attempt_goes_on(checkout: Checkout, tmp_path: Path, number: signal.Signals):
    settings = cut_short(checkout, tmp_path / "hold", number)
    resumed = checkout.agent("resume", **settings)
    assert resumed.returncode == 0, resumed.stderr
    run = checkout.state.runs[1]
    assert (run.attempt, run.verdict and run.verdict.name, checkout.state.runs_used) == (1, "ok", 1)
    assert [event.rows for event in went_on(checkout)] == [8 * STEP]
    assert not [event for event in checkout.events if isinstance(event, AttemptCutShort)]
    assert [event.attempt for event in checkout.events if isinstance(event, AttemptStarted) and event.run == 1] == [
        1,
        1,
    ]
    rows = results.read_metrics(checkout.study.run_dir(1))
    assert [row.tokens for row in rows] == [STEP * step for step in range(1, 11)]
    assert (checkout.study.run_dir(1) / "went_on").read_text() == "after 8 steps"
    assert run.work
    assert run.work.rows == TOKENS
    assert left_over(checkout.study) == []


def test_a_state_that_was_changed_is_not_gone_on_from(checkout: Checkout, tmp_path: Path):
    settings = cut_short(checkout, tmp_path / "hold")
    (state,) = checkout.study.directory.glob("jobs/run_1_attempt_1/try_0/state_*")
    state.write_text(state.read_text().replace("0.5", "0.4"))
    resumed = checkout.agent("resume", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert [row.loss for row in results.read_metrics(checkout.study.run_dir(1))][1] == 0.5
    assert not (checkout.study.run_dir(1) / "went_on").exists()
    assert left_over(checkout.study) == []


def test_a_training_that_ends_by_its_own_fault_does_not_go_on(checkout: Checkout):
    checkout.plan("killed")
    ended = checkout.agent(*RUN, **SAVES | {"SAE_AGENT_STANDIN_SAVES": "killed"})
    assert ended.returncode == 1
    assert checkout.state.runs[1].verdict
    assert checkout.state.runs[1].verdict.name == "killed"
    assert went_on(checkout) == []
    assert left_over(checkout.study) == []
