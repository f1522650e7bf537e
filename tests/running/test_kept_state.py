"""The saved states that a slot keeps: whose they are, and that nobody has changed them."""

from pathlib import Path

import pytest

from agent.lab.defaults import STATE_FILE
from agent.running import kept_state
from agent.running.jobs import Training
from agent.running.kept_state import KEPT, StateKeeper

TRAINING = Training(source="K = 16\n", directory="run_1", seed=0, timeout=60.0)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "try_0/run_1").mkdir(parents=True)
    return tmp_path


def save(job: Path, rows: int, content: str = "weights", number: int = 0) -> StateKeeper:
    """Save a state as a training does, and have it taken."""
    run_dir = job / f"try_{number}/run_1"
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / STATE_FILE.format(rows)).write_text(content)
    keeper = StateKeeper(run_dir.parent, TRAINING, kept_state.usable(job, TRAINING), smoke="abc")
    keeper.take(run_dir, rows, cpu_seconds=5.0)
    return keeper


def states(job: Path) -> list[str]:
    return sorted(str(path.relative_to(job)) for path in job.rglob(STATE_FILE.format("*")))


def test_it_is_out_of_the_trainings_reach_and_the_one_before_is_removed(job: Path):
    keeper = save(job, 100)
    assert states(job) == ["try_0/state_100.safetensors"]
    (job / "try_0/run_1" / STATE_FILE.format(200)).write_text("more")
    keeper.take(job / "try_0/run_1", 200, cpu_seconds=6.0)
    assert states(job) == ["try_0/state_200.safetensors"]
    found = kept_state.usable(job, TRAINING)
    assert found
    assert (found[1].rows, found[1].cpu_seconds, found[1].smoke) == (200, 6.0, "abc")
    keeper.discard()
    assert states(job) == []
    assert kept_state.newest(job) is None


def test_another_try_goes_on_from_the_newest(job: Path):
    save(job, 100)
    later = save(job, 300, number=7)
    found = kept_state.usable(job, TRAINING)
    assert found
    assert (found[0].parent.name, found[1].rows, found[1].cpu_seconds) == ("try_7", 300, 10.0)
    assert later.skip == 100
    assert states(job) == ["try_7/state_300.safetensors"]
    third = StateKeeper(job / "try_8", TRAINING, found)
    (job / "try_8/run_1").mkdir(parents=True)
    third.hand_over(job / "try_8/run_1")
    assert (job / "try_8/run_1" / STATE_FILE.format(300)).read_text() == "weights"
    assert third.skip == 300
    assert third.seconds >= found[1].seconds


@pytest.mark.parametrize("change", [{"source": "K = 17\n"}, {"seed": 1}])
def test_it_is_another_trainings(job: Path, change: dict[str, str]):
    save(job, 100)
    assert kept_state.usable(job, TRAINING.model_copy(update=change)) is None


def test_one_that_was_changed_is_not_used(job: Path):
    save(job, 100)
    with (job / "try_0" / STATE_FILE.format(100)).open("a") as file:
        file.write("planted")
    assert kept_state.newest(job)
    assert kept_state.usable(job, TRAINING) is None


@pytest.mark.parametrize("content", ["", "{}", "[" * 10_000, '{"rows": 1e99}'])
def test_what_no_slot_wrote_is_none(job: Path, content: str):
    (job / "try_0" / KEPT).write_text(content)
    assert kept_state.newest(job) is None


def test_a_link_in_its_place_is_not_followed(job: Path, tmp_path: Path):
    (tmp_path / "elsewhere").write_text("another run's weights")
    path = job / "try_0/run_1" / STATE_FILE.format(100)
    path.symlink_to(tmp_path / "elsewhere")
    StateKeeper(job / "try_0", TRAINING).take(job / "try_0/run_1", 100, 0.0)
    assert kept_state.newest(job) is None
    assert (tmp_path / "elsewhere").exists()


def test_a_state_that_is_not_there_when_it_is_reported_is_not_waited_for(job: Path):
    keeper, run_dir = StateKeeper(job / "try_0", TRAINING), job / "try_0/run_1"
    keeper.take(run_dir, 100, 0.0)
    (run_dir / STATE_FILE.format(100)).write_text("written after more rows")
    keeper.take(run_dir, 100, 0.0)
    assert kept_state.newest(job) is None
