"""Put into words, and into a verdict, what SLURM and a job's own files say of the job."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from agent.lab.verdicts import Verdict
from agent.running.jobs import noted
from agent.running.process import ProcessResult, exit_verdict, last_lines

LOG = "slurm.log"  # of a job: what its script and its command print
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDED = {
    "COMPLETED": "it ended",
    "FAILED": "it failed",
    "TIMEOUT": "it reached the time limit that it was given",
    "DEADLINE": "it reached its deadline",
    "OUT_OF_MEMORY": "it used more memory than it was given",
    "CANCELLED": "it was cancelled by hand",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
    "PREEMPTED": "it was preempted, and not queued again",
    "REVOKED": "another cluster took it",
}
ADVICE = {  # for what may never pass by itself, by a pattern of SLURM's reason
    r"PartitionTimeLimit": "the partition allows less time: give --slurm a shorter time or another partition",
    r"Partition(Config|Node|Down|Inactive)\w*": "the partition cannot run it as it is: give --slurm another one",
    r"ReqNodeNotAvail.*|BadConstraints|NodeDown": "the nodes that it needs are not there: ask for others, or wait",
    r"JobHeld(User|Admin).*": "it is held: scontrol release {id} lets it go",
    r"Dependency\w*": "it waits for another job: see scontrol show job {id}",
    r"launch failed requeued held": "a node could not start it: put the study where all nodes see it",
    r"Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|AccountingPolicy": "give --slurm another account or qos",
    r"(QOS|Assoc|Max)\w+": "a limit of your account: it starts when other jobs have ended, if one may be as large",
}


@dataclass(frozen=True)
class Record:
    """A job as SLURM describes it."""

    id: str
    state: str
    node: str
    reason: str

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Attempt:
    """The newest attempt at a job, by what its script left in the job's directory."""

    job_id: str
    node: str
    restarts: int
    near_limit: bool  # its time limit was near
    exit_code: int | None  # negative: the signal that killed its command; None: the script was killed too


def read_attempt(job: Path) -> Attempt | None:
    """Return the newest attempt at a job, or None if none has begun where this directory is seen."""
    numbers = [int(name[1]) for path in job.glob("started_*") if (name := re.fullmatch(r"started_(\d+)", path.name))]
    if not numbers:
        return None
    number = max(numbers)
    code = noted(job / f"exit_{number}")
    return Attempt(
        job_id=str(number // 1000),
        node=noted(job / f"started_{number}") or "a node",
        restarts=number % 1000,
        near_limit=bool(noted(job / f"limit_{number}")),
        exit_code=_exit_code(int(code)) if code.isdecimal() else None,
    )


def waiting_words(record: Record, attempt: Attempt | None) -> str:
    """Return why a job waits, and what to do if that may never end."""
    again = f"queued again, after it ran on {attempt.node}: " if attempt else ""
    advice = next((text for pattern, text in ADVICE.items() if re.fullmatch(pattern, record.reason)), "")
    words = f"{again}pending: {record.reason}"
    return f"{words} ({advice.format(id=record.id)}; scancel {record.id} gives it up)" if advice else words


def running_words(record: Record, attempt: Attempt | None) -> str:
    """Return where a job runs, and whether it was stopped there."""
    stopped = "" if record.state in ("RUNNING", "COMPLETING", "CONFIGURING") else f", {record.state.lower()}"
    again = f", restart {attempt.restarts}" if attempt and attempt.restarts else ""
    return f"running on {record.node}{again}{stopped}"


def lost_verdict(job: Path, record: Record | None) -> Verdict:
    """Return why a job that has ended left no outcome. `record` is None if SLURM knows it no more."""
    attempt = read_attempt(job)
    if record is None or record.state in ("COMPLETED", "FAILED"):
        return _verdict_of_files(job, record, attempt)
    names = {"TIMEOUT": "timed_out", "DEADLINE": "timed_out", "OUT_OF_MEMORY": "out_of_memory"}
    place = f" on {record.node}" if record.node and record.node != "None assigned" else ""
    return _verdict(names.get(record.state, "killed"), f"SLURM{place}: {ENDED[record.state]}", job)


def _verdict_of_files(job: Path, record: Record | None, attempt: Attempt | None) -> Verdict:
    if attempt is None and record:
        node = record.node or "a node"
        reason = "" if record.reason in ("", "None") else f" (SLURM: {record.reason})"
        evidence = f"the node {node} could not read {job}{reason}: put the study where all nodes see it"
        return _verdict("killed", evidence, job)
    if attempt is None:
        return _verdict("killed", "SLURM knows no such job: it was cancelled before it ran, or never submitted", job)
    if attempt.near_limit and (attempt.exit_code is None or attempt.exit_code < 0):
        return _verdict("timed_out", f"SLURM on {attempt.node}: {ENDED['TIMEOUT']}", job)
    if attempt.exit_code is None:
        return _verdict("killed", f"it was killed on {attempt.node}, and SLURM does not say why", job)
    verdict = exit_verdict(ProcessResult(attempt.exit_code, 0.0, None), job / LOG)
    return verdict or _verdict("crashed", f"it ended on {attempt.node} without an outcome", job)


def _verdict(name: str, evidence: str, job: Path) -> Verdict:
    lines = last_lines(job / LOG, 1)
    evidence += f"; its last line: {lines[0]}" if lines else ""
    return Verdict.model_validate({"name": name, "evidence": evidence})


def _exit_code(code: int) -> int:
    """Return the status of a shell as that of a process: negative if a signal killed it."""
    return 128 - code if code - 128 in set(signal.Signals) else code
