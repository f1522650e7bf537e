"""Jobs on a real SLURM cluster: whatever a cluster makes of a job is a verdict or a wait, in words."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import Cluster, accounting

from agent.lab.errors import UserError
from agent.running.executor import Executor, NotSubmitted, Status
from agent.running.slurm import Slurm, check, parse_options

# A job does what its file says, with its directory as $job and the number of the attempt as $try.
COMMAND = ("/bin/sh", "-c", 'job=$1 try=$2; . "$job/do"', "sh")
WAIT = 'i=0; while [ ! -e "$job/go" ] && [ $i -lt 600 ]; do i=$((i + 1)); sleep 0.1; done; '
SUCCEED = 'env > "$job/env"; echo done > "$job/partial"; mv "$job/partial" "$job/outcome.json"'

pytestmark = pytest.mark.timeout(200)
MakeJob = Callable[[str], Path]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A function that makes the directory of a job, at a path that a shell and sbatch could misread."""

    def make_job(do: str) -> Path:
        job = tmp_path / "it's 100%j" / f"run_{len(list(tmp_path.glob('*/run_*')))}"
        job.mkdir(parents=True)
        (job / "do").write_text(do)
        return job

    return make_job


def make_slurm(**options: str) -> Slurm:
    environment = {
        "PATH": os.environ["PATH"],
        "WORDS": "of the 'driver'",
        "CUDA_VISIBLE_DEVICES": "7 of the login node",
    }
    return Slurm(options, COMMAND, environment, look_seconds=0.2)


def wait_for(slurm: Executor, job: Path, condition: Callable[[Status], bool], seconds: float = 60) -> Status:
    deadline, status = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        status = slurm.poll()[job]
        if condition(status):
            return status
        assert status.state != "ended", status
        time.sleep(0.05)
    raise AssertionError(f"still {status}")


def end(slurm: Executor, job: Path, seconds: float = 60) -> Status:
    return wait_for(slurm, job, lambda status: status.state == "ended", seconds)


def loss(slurm: Executor, job: Path, seconds: float = 60) -> tuple[str, str]:
    """Return the verdict on a job that leaves no outcome: its name, and its evidence without the job's last line."""
    verdict = end(slurm, job, seconds).verdict
    assert verdict
    return verdict.name, verdict.evidence.partition("; its last line: ")[0]


@pytest.mark.usefixtures("cluster")
def test_a_job_runs_with_the_environment_that_it_is_given(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    job, slurm = make_job(SUCCEED), make_slurm()
    id = slurm.submit(job)
    assert id.isdecimal()
    assert end(slurm, job) == Status("ended")
    assert slurm.poll() == {}
    environment = dict(line.split("=", 1) for line in (job / "env").read_text().splitlines())
    assert environment["WORDS"] == "of the 'driver'"
    assert environment["SLURM_JOB_ID"] == id
    assert environment.keys() <= {"PATH", "WORDS", "PWD", "TMPDIR", "SHLVL", "_"} | {
        name for name in environment if name.startswith("SLURM")
    }
    assert (job / "job.sh").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("cluster")
def test_a_job_that_fails_says_why(make_job: MakeJob):
    failing, killed, silent = make_job("echo 'ValueError: no' >&2; exit 3"), make_job("kill -9 $$"), make_job("exit 0")
    slurm = make_slurm()
    for job in (failing, killed, silent):
        slurm.submit(job)
    losses = []
    for job in (failing, killed, silent):
        again = make_slurm()
        again.reattach(job, "")
        losses.append(loss(again, job))
    assert losses == [
        ("crashed", "ValueError: no"),
        ("killed", "killed by SIGKILL"),
        ("crashed", "it ended on n1 without an outcome"),
    ]


def test_a_job_that_was_cancelled_is_told_from_one_that_the_driver_ended(cluster: Cluster, make_job: MakeJob):
    by_hand, by_driver, slurm = make_job("sleep 100"), make_job("sleep 100"), make_slurm(nodelist="n1")
    id = slurm.submit(by_hand)
    assert wait_for(slurm, by_hand, lambda status: status.state == "running").words == "running on n1"
    (by_hand / "progress").write_text("run 1: 5%\n")
    wait_for(slurm, by_hand, lambda status: status.words == "run 1: 5%, running on n1")
    cluster.command("scancel", id)
    assert loss(slurm, by_hand) == ("killed", "SLURM on n1: it was cancelled by hand")
    slurm.submit(by_driver)
    slurm.cancel(by_driver)
    assert loss(slurm, by_driver) == ("killed", "the driver cancelled it")


@pytest.mark.usefixtures("cluster")
def test_jobs_go_on_without_the_driver_and_are_found_again(make_job: MakeJob):
    known, unknown, never = make_job(WAIT + SUCCEED), make_job(WAIT + SUCCEED), make_job(SUCCEED)
    first = make_slurm()
    id = first.submit(known)
    first.submit(unknown)
    first.close()
    second = make_slurm()
    second.reattach(known, id)
    second.reattach(unknown, "")
    second.reattach(never, "")
    unheard = "SLURM knows no such job: it was cancelled before it ran, or never submitted"
    assert loss(second, never) == ("killed", unheard)
    for job in (known, unknown):
        assert wait_for(second, job, lambda status: status.state == "running")
        (job / "go").touch()
        assert end(second, job) == Status("ended")


def test_a_job_of_an_earlier_submission_does_nothing(cluster: Cluster, make_job: MakeJob):
    job, slurm = make_job('echo $try >> "$job/tries"; ' + SUCCEED), make_slurm(begin="now+3")
    early = slurm.submit(job)
    late = slurm.submit(job)
    assert end(slurm, job) == Status("ended")
    while "COMPLETED" not in cluster.command("squeue", "-h", "-t", "all", "-j", early, "-o", "%T"):
        time.sleep(0.1)
    assert (job / "tries").read_text() == f"{late}000\n"


def test_a_job_that_may_wait_for_ever_says_what_to_do(cluster: Cluster, make_job: MakeJob):
    too_long, held = make_job(SUCCEED), make_job(SUCCEED)
    slurm = make_slurm(partition="short", time="20")
    id = slurm.submit(too_long)
    status = wait_for(slurm, too_long, lambda status: "PartitionTimeLimit" in status.words)
    advice = "the partition allows less time: give --slurm a shorter time or another partition"
    assert status == Status("waiting", f"pending: PartitionTimeLimit ({advice}; scancel {id} gives it up)")
    slurm.cancel(too_long)
    assert end(slurm, too_long).verdict
    slurm = make_slurm(hold="")
    id = slurm.submit(held)
    status = wait_for(slurm, held, lambda status: status.words != "submitted")
    assert f"it is held: scontrol release {id} lets it go" in status.words
    cluster.command("scontrol", "release", id)
    assert end(slurm, held) == Status("ended")


@pytest.mark.usefixtures("cluster")
def test_options_that_are_refused_are_refused_in_the_schedulers_words(make_job: MakeJob):
    check(parse_options("partition=short time=5"))
    with pytest.raises(
        UserError, match=r"^SLURM refuses jobs with --slurm 'partition=gpu': invalid partition specified: gpu$"
    ):
        check(parse_options("partition=gpu"))
    with pytest.raises(UserError, match=r"--slurm 'nonsense': unrecognized option '--nonsense'$"):
        check(parse_options("nonsense"))
    with pytest.raises(UserError, match=r"'mem=999G': Requested node configuration is not available$"):
        check(parse_options("mem=999G"))
    with pytest.raises(NotSubmitted, match="invalid partition specified: gpu") as refused:
        make_slurm(partition="gpu").submit(make_job(SUCCEED))
    assert not refused.value.full


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-p gpu", "-p is no long option of sbatch"),
        ("partition='gpu", "no closing quotation"),
        ("export=ALL", "the study itself sets export: leave it out"),
        ("gpus", None),
    ],
)
def test_options_are_read_as_sbatch_reads_them(text: str, message: str | None):
    if message is None:
        assert parse_options("--partition=gpu 'comment=two words' exclusive") == {
            "partition": "gpu",
            "comment": "two words",
            "exclusive": "",
        }
    else:
        with pytest.raises(UserError, match=message):
            parse_options(text)


def test_without_sbatch_the_other_executor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch is not on the PATH: .* or give --executor local"):
        check({})


@pytest.mark.slow
def test_a_job_of_a_node_that_dies_is_carried_out_on_another(cluster: Cluster, make_job: MakeJob):
    job, slurm = make_job(WAIT + 'echo $try > "$job/from_$SLURMD_NODENAME"; ' + SUCCEED), make_slurm()
    id = slurm.submit(job)
    wait_for(slurm, job, lambda status: status.words == "running on n1")
    cluster.stop("n1")  # and not what it has started
    cluster.command("scontrol", "update", "nodename=n1", "state=down", "reason=tests")
    try:
        wait_for(slurm, job, lambda status: status.words.startswith("queued again, after it ran on n1: pending: "))
        wait_for(slurm, job, lambda status: status.words == "running on n2, restart 1")
        (job / "go").touch()
        assert end(slurm, job) == Status("ended")
    finally:
        cluster.start_node("n1")
        cluster.wait_for_nodes()
    while not (job / "from_n1").exists():  # the orphan goes on, too
        time.sleep(0.1)
    assert (job / "from_n1").read_text() == f"{id}000\n"
    assert (job / "from_n2").read_text() == f"{id}001\n"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_preempted_job_waits_and_runs_again(make_job: MakeJob):
    job, slurm = make_job(WAIT + SUCCEED), make_slurm(exclusive="", nodelist="n1")
    urgent, first = make_job(WAIT + SUCCEED), make_slurm(exclusive="", nodelist="n1", partition="urgent")
    id = slurm.submit(job)
    wait_for(slurm, job, lambda _: bool(list(job.glob("started_*"))))
    first.submit(urgent)
    wait_for(first, urgent, lambda status: status.words == "running on n1")
    wait_for(slurm, job, lambda status: status.words.startswith("queued again, after it ran on n1: pending: "))
    (urgent / "go").touch()
    assert end(first, urgent) == Status("ended")
    wait_for(slurm, job, lambda status: status.words == "running on n1, restart 1")
    (job / "go").touch()
    assert end(slurm, job) == Status("ended")
    assert f"SLURM_JOB_ID={id}" in (job / "env").read_text()


@pytest.mark.slow
def test_a_scheduler_that_is_down_loses_no_job(cluster: Cluster, make_job: MakeJob, capsys: pytest.CaptureFixture[str]):
    job, slurm = make_job(WAIT + SUCCEED), make_slurm()
    slurm.submit(job)
    wait_for(slurm, job, lambda status: status.words == "running on n1")
    cluster.stop("slurmctld")
    try:
        status = wait_for(slurm, job, lambda status: "has not answered" in status.words)
        assert status.state == "running"
        assert status.words.startswith("running on n1; the scheduler has not answered for 0 s: Unable to contact slurm")
        with pytest.raises(NotSubmitted, match="Unable to contact slurm controller") as refused:
            make_slurm().submit(make_job(SUCCEED))
        assert refused.value.full
    finally:
        cluster.start_controller()
    wait_for(slurm, job, lambda status: status.words == "running on n1")
    unwanted, other = make_job("sleep 100"), make_slurm(nodelist="n2")
    other.submit(unwanted)
    wait_for(other, unwanted, lambda status: status.words == "running on n2")
    cluster.stop("slurmctld")
    (job / "go").touch()
    assert end(slurm, job) == Status("ended")
    other.cancel(unwanted)
    assert "run_2 goes on until the scheduler answers: Kill job error" in capsys.readouterr().err
    cluster.start_controller()
    assert loss(other, unwanted) == ("killed", "the driver cancelled it")


@pytest.mark.slow
def test_a_job_that_the_scheduler_has_forgotten_is_known_by_its_files(cluster: Cluster, make_job: MakeJob):
    failing, killed = make_job("echo 'it broke' >&2; exit 1"), make_job('echo $PPID $$ > "$job/pids"; exec sleep 300')
    first, second = make_slurm(nodelist="n1"), make_slurm()
    for job in (failing, killed):
        first.submit(job)
    wait_for(first, killed, lambda status: status.state == "running")
    while not (killed / "pids").exists() or not list(failing.glob("exit_*")):
        time.sleep(0.1)
    cluster.stop("slurmctld")
    for pid in (killed / "pids").read_text().split():  # the script first, so that it cannot say how the other ended
        os.kill(int(pid), signal.SIGKILL)
    cluster.start_controller("-c")
    second.reattach(failing, "")
    assert loss(second, failing) == ("crashed", "it broke")
    second.reattach(killed, "")
    assert loss(second, killed) == ("killed", "it was killed on n1, and SLURM does not say why")


@pytest.mark.slow
def test_a_directory_that_a_node_does_not_see_is_named(cluster: Cluster, make_job: MakeJob):
    job, slurm = make_job(SUCCEED), make_slurm(nodelist="n2")
    cluster.stop("n2")
    hide = f'mount -t tmpfs none "{job.parent}" && exec "$@"'
    cluster.start_node("n2", "unshare", "--mount", "sh", "-c", hide, "sh")
    try:
        slurm.submit(job)
        assert loss(slurm, job) == (
            "killed",
            f"the node n2 could not read {job} (SLURM: JobLaunchFailure): put the study where all nodes see it",
        )
    finally:
        cluster.stop("n2")
        cluster.start_node("n2")
        cluster.wait_for_nodes()


@pytest.mark.slow
def test_a_full_queue_may_take_the_job_later(cluster: Cluster, make_job: MakeJob):
    configuration = cluster.base / "slurm.conf"
    before = configuration.read_text()
    cluster.stop("slurmctld")
    configuration.write_text(before + "MaxJobCount=2\n")
    cluster.start_controller("-c")
    try:
        slurm = make_slurm(hold="")
        with pytest.raises(NotSubmitted, match=r"^Slurm temporarily unable to accept job$") as refused:
            [slurm.submit(make_job(SUCCEED)) for _ in range(3)]
        assert refused.value.full
    finally:
        cluster.stop("slurmctld")
        configuration.write_text(before)
        cluster.start_controller("-c")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_time_limit_is_a_verdict(make_job: MakeJob):
    job, slurm = make_job("sleep 300"), make_slurm(time="1")
    slurm.submit(job)
    assert loss(slurm, job, 180) == ("timed_out", "SLURM on n1: it reached the time limit that it was given")
    assert list(job.glob("limit_*"))


@pytest.mark.slow
def test_accounting_says_what_the_scheduler_has_forgotten_and_its_limits_are_waited_for(
    cluster: Cluster, make_job: MakeJob
):
    with accounting(cluster, "MaxSubmitJobsPerUser=2", "MaxTRESPerUser=cpu=1"):
        with pytest.raises(UserError, match=r"'account=x': Invalid account or account/partition combination"):
            check({"account": "x"})
        cancelled, waiting, slurm = make_job("sleep 100"), make_job(SUCCEED), make_slurm()
        id = slurm.submit(cancelled)
        wait_for(slurm, cancelled, lambda status: status.words == "running on n1")
        slurm.submit(waiting)
        wait_for(slurm, waiting, lambda status: status.words.startswith("pending: QOSMaxCpuPerUserLimit (a limit of"))
        with pytest.raises(NotSubmitted, match=r"^QOSMaxSubmitJobPerUserLimit$") as refused:
            slurm.submit(make_job(SUCCEED))
        assert refused.value.full
        cluster.command("scancel", id)
        assert end(slurm, waiting) == Status("ended")
        while "CANCELLED" not in cluster.command("sacct", "-X", "-n", "-j", id, "-o", "State"):
            time.sleep(0.1)
        cluster.stop("slurmctld")
        cluster.start_controller("-c")
        later = make_slurm()
        later.reattach(cancelled, id)
        assert loss(later, cancelled) == ("killed", "SLURM on n1: it was cancelled by hand")
