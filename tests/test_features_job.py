"""The job that keeps a run's features: for which runs, when, and that nothing of it can harm a study."""

import signal
from pathlib import Path

import pytest
from standin import HERE, Checkout, make_checkout

from agent.lab import features
from agent.study.events import FeaturesKept


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study with a failed run and a winner, which is confirmed by fresh seeds."""
    checkout = make_checkout(tmp_path_factory.mktemp("ended"))
    checkout.plan("killed", "better")
    assert checkout.run(2).returncode == 0
    return checkout


def kept(checkout: Checkout) -> list[FeaturesKept]:
    return [event for event in checkout.events if isinstance(event, FeaturesKept)]


def home(checkout: Checkout) -> Path:
    folder = checkout.root.parent / "home"
    folder.mkdir(exist_ok=True)
    return folder


def test_features_are_kept_of_run_0_and_of_runs_that_count_and_of_nothing_else(ended: Checkout):
    assert [(event.run, event.error) for event in kept(ended)] == [(0, ""), (2, "")]
    files = {path.parent.name for path in ended.study.directory.glob(f"*/{features.FILE}")}
    assert files == {"run_0", "run_2"}
    assert features.read(ended.study.run_dir(2))
    assert list(ended.study.directory.glob("run_2_seed_*")), "no fresh seed: no test"


def test_nothing_that_is_judged_waits_for_them(ended: Checkout):
    kinds = [event.event for event in ended.events]
    with_one_slot = ended.state.started.jobs == 1
    last = max(i for i, kind in enumerate(kinds) if kind in ("run_compared", "replicate_ended", "test_scored"))
    if with_one_slot:
        assert kinds.index("features_kept") > last
    assert kinds.index("features_kept") > kinds.index("run_committed")
    assert kinds[-2:] == ["study_ended", "notes_written"]
    assert not list((ended.study.directory / "jobs").iterdir())


def test_a_file_that_was_changed_since_is_noticed_and_one_that_was_removed_is_no_change(ended: Checkout):
    path = ended.study.run_dir(2) / features.FILE
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    shown = ended.agent("show", str(ended.study.directory))
    assert shown.returncode == 1
    assert f"run_2/{features.FILE} was changed after it was recorded" in shown.stdout
    refused = ended.agent("resume", str(ended.study.directory))
    assert refused.returncode == 2
    assert f"{features.FILE} was changed after it was recorded: remove it" in refused.stderr
    path.unlink()
    assert ended.agent("show", str(ended.study.directory)).returncode == 0
    path.write_bytes(before)


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_study_whole(checkout: Checkout):
    (home(checkout) / "featureless").touch()
    checkout.plan("fine")
    result = checkout.run(1)
    assert result.returncode == 0, result.stderr
    assert [event.run for event in kept(checkout)] == [0, 1], "each is tried once"
    assert all("the latents were too much" in event.error for event in kept(checkout))
    assert "run 1: no features are kept: error: the latents were too much" in result.stdout
    assert not list(checkout.study.directory.glob(f"*/{features.FILE}"))
    assert checkout.state.ended == "the budget of 1 run is spent"


@pytest.mark.slow
def test_a_job_that_is_killed_is_tried_twice(checkout: Checkout):
    (home(checkout) / "features_killed").touch()
    checkout.plan("fine")
    result = checkout.run(1)
    assert result.returncode == 0, result.stderr
    assert [(event.run, "killed" in event.error) for event in kept(checkout)] == [(0, True), (1, True)]
    losses = [event.job for event in checkout.events if event.event == "job_lost"]
    assert sorted(losses) == ["run_0_features", "run_1_features"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the power cut finds the ledger through /proc")
def test_a_resumed_study_neither_repeats_nor_forgets_them(checkout: Checkout):
    checkout.plan("fine")
    path = f"{checkout.root}:{HERE / 'power_cut'}"
    cut = checkout.run(1, PYTHONPATH=path, STANDIN_KILL_AFTER="features_kept")
    assert cut.returncode == -signal.SIGKILL
    assert [event.run for event in kept(checkout)] == [0]
    again = checkout.agent("resume", PYTHONPATH=path, STANDIN_KILL_AFTER="job_submitted")
    assert again.returncode == -signal.SIGKILL
    assert "run_1_features" in checkout.state.jobs
    assert checkout.agent("resume").returncode == 0
    assert [(event.run, event.error) for event in kept(checkout)] == [(0, ""), (1, "")]


@pytest.mark.slow
def test_those_that_the_hours_do_not_allow_are_left_out(checkout: Checkout):
    checkout.plan("sleeping")
    result = checkout.run(1, "--max-hours", "0.004", SAE_AGENT_STANDIN_SLEEP="12")  # 14.4 s
    assert result.returncode in (0, 1), result.stderr
    assert checkout.state.ended
    assert kept(checkout) == []


@pytest.mark.slow
def test_a_run_by_hand_has_its_own(checkout: Checkout):
    checkout.plan("fine")
    assert checkout.run(1).returncode == 0
    checkout.run_by_hand("run_2", '"fine"', '"better"')
    noted = checkout.agent("note", str(checkout.study.directory), "run_2", "-m", "Mine")
    assert noted.returncode == 0, noted.stderr
    assert [(event.run, event.error) for event in kept(checkout)] == [(0, ""), (1, ""), (2, "")]
