"""Whole studies with stand-in experiments on a real SLURM cluster: jobs go on when the driver ends."""

import os
import signal
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from standin import HERE, Checkout, make_checkout, wait_for

from agent.lab import results
from agent.study.events import JobLost, JobQueued

ON_SLURM = ("run", "--idea", "stand_in", "--executor", "slurm", "--slurm", "partition=main", "--jobs", "3")

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def environment(**more: str) -> dict[str, str]:
    """Return what the driver needs to find the cluster."""
    return {"PATH": os.environ["PATH"], "SLURM_CONF": os.environ["SLURM_CONF"]} | more


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_study_on_a_cluster_comes_to_the_same_end(checkout: Checkout):
    checkout.plan("better", "crashing", "fine", "worse")
    ended = checkout.agent(*ON_SLURM, "--max-runs", "3", OPENAI_API_KEY="sk-1", **environment())
    assert ended.returncode == 0, ended.stderr
    assert "up to 3 jobs at once on the SLURM cluster (partition=main)" in ended.stdout
    assert "harvesting" in ended.stdout
    runs = checkout.state.runs
    tried = {run.proposal.title: run.verdict for run in runs}
    tried |= {each.proposal.title: each.verdict for run in runs for each in run.failed_attempts.values()}
    assert tried["Step 1 that is better"].ok  # type: ignore[union-attr]
    assert tried["Step 2 that is crashing"].name == "crashed"  # type: ignore[union-attr]
    assert len(checkout.state.replicates[1]) == 3
    assert "Better (confirmed)" in checkout.notes
    assert not checkout.state.jobs
    assert not list((checkout.study.directory / "jobs").iterdir())
    ids = [event.id for event in checkout.events if isinstance(event, JobQueued)]
    assert len(set(ids)) == len(ids) > 10
    seen = (checkout.study.run_dir(1) / "environment.json").read_text()
    assert "SAE_AGENT_DRIVEN" in seen
    assert "sk-1" not in seen


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_jobs_go_on_without_their_driver_and_resume_takes_them_in(checkout: Checkout, tmp_path: Path):
    checkout.plan("held", "fine")
    hold = tmp_path / "hold"
    hold.touch()
    settings = environment(SAE_AGENT_STANDIN_HOLD=str(hold))
    driver = checkout.start(*ON_SLURM, "--max-runs", "2", **settings)
    job = checkout.root / "runs"
    wait_for(lambda: any(job.glob("*/jobs/run_1_attempt_1/try_*/run_1/metrics.jsonl")))
    before = dict(checkout.state.jobs)
    driver.kill()
    driver.communicate()
    hold.unlink()
    wait_for(lambda: any(job.glob("*/jobs/run_1_attempt_1/outcome.json")))
    resumed = checkout.agent("resume", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert before["run_1_attempt_1"].isdecimal(), "the ledger has its id"
    assert [(run.attempt, run.verdict and run.verdict.name) for run in checkout.state.runs] == [(1, "ok")] * 3
    assert checkout.state.runs_used == 2


@pytest.mark.slow
def test_a_requeued_job_goes_on_from_the_state_that_its_training_had_saved(
    checkout: Checkout, tmp_path: Path, cluster: Cluster
):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    saves = {"SAE_AGENT_STANDIN_SAVES": "held", "SAE_AGENT_SAVE_EVERY": "600000"}
    driver = checkout.start(*ON_SLURM, "--max-runs", "1", **environment(SAE_AGENT_STANDIN_HOLD=str(hold), **saves))
    state = "*/jobs/run_1_attempt_1/try_*/state_1200000.safetensors"
    wait_for(lambda: any((checkout.root / "runs").glob(state)))
    hold.unlink()
    cluster.command("scontrol", "requeue", checkout.state.jobs["run_1_attempt_1"])
    stdout, stderr = driver.communicate(timeout=200)
    assert driver.returncode == 0, stdout + stderr
    assert [(run.attempt, run.verdict and run.verdict.name) for run in checkout.state.runs] == [(1, "ok")] * 2
    assert not [event for event in checkout.events if isinstance(event, JobLost)]
    assert [row.step for row in results.read_metrics(checkout.study.run_dir(1))] == list(range(1, 11))
    assert (checkout.study.run_dir(1) / "went_on").read_text() == "after 8 steps"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("cancelled", [False, True])
def test_ctrl_c_leaves_the_jobs_unless_it_is_told_to_cancel_them(checkout: Checkout, tmp_path: Path, cancelled: bool):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    settings = environment(SAE_AGENT_STANDIN_HOLD=str(hold))
    driver = checkout.start(*ON_SLURM, "--max-runs", "1", *["--cancel-jobs"] * cancelled, **settings)
    wait_for(lambda: any((checkout.root / "runs").glob("*/jobs/run_1_attempt_1/try_*/run_1/metrics.jsonl")))
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    stdout, stderr = driver.communicate(timeout=60)
    assert (driver.returncode, stderr) == (130, "")
    assert "interrupted; agent resume continues" in stdout
    assert ("run_1_attempt_1" in checkout.state.jobs) is not cancelled
    hold.unlink()
    assert checkout.agent("resume", **settings).returncode == 0
    assert checkout.state.runs[1].attempt == (2 if cancelled else 1)
    if cancelled:
        assert results.read(checkout.study.attempt_dir(1, 1)).verdict.name == "killed"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("last", ["job_submitted", "job_queued"])
def test_a_driver_that_dies_while_it_submits_submits_nothing_twice(checkout: Checkout, last: str):
    checkout.plan("fine")
    cut = {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": last}
    assert checkout.agent(*ON_SLURM, "--max-runs", "1", **environment(**cut)).returncode == -signal.SIGKILL
    assert checkout.events[-1].event == last
    resumed = checkout.agent("resume", **environment())
    assert resumed.returncode == 0, resumed.stderr
    assert checkout.state.runs_used == 1
    assert [run.verdict and run.verdict.name for run in checkout.state.runs] == ["ok", "ok"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("partition=nowhere", "SLURM refuses jobs with --slurm 'partition=nowhere': "),
        ("partition", "SLURM refuses jobs with --slurm 'partition': "),
        ("-p main", "-p is no long option of sbatch"),
        ("chdir=/tmp", "the study itself sets chdir"),
    ],
)
def test_options_that_slurm_refuses_are_said_in_one_line(checkout: Checkout, options: str, message: str):
    checkout.plan("fine")
    ended = checkout.agent(*ON_SLURM[:5], "--slurm", options, "--max-runs", "1", **environment())
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert message in ended.stderr
    assert not (checkout.root / "runs").exists()
