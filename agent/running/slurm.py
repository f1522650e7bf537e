"""Jobs on a SLURM cluster: one sbatch a job, from a directory that all nodes see. They go on when the driver ends."""

import hashlib
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.lab.errors import UserError
from agent.lab.files import write_atomically
from agent.lab.progress import notify
from agent.lab.verdicts import Verdict
from agent.running import slurm_states
from agent.running.executor import NotSubmitted, Status
from agent.running.jobs import PROGRESS, SUBMISSION, noted
from agent.running.slurm_commands import Command, accounted
from agent.running.slurm_states import LOG, Record, read_attempt

LOOK_SECONDS = 5.0  # between two questions to the scheduler, which others ask too
LOOKS_TO_END = 2  # that see a job ended before one that has left no outcome counts as lost: files may come later
LOOKS_TO_VANISH = 3  # that do not see it at all
OURS = re.compile(  # options of sbatch that are set here, or would change what it does
    "array|chdir|clusters|error|export(-file)?|get-user-env|help|input|job-name|(no-)?requeue|open-mode|output|parsable|"
    "quiet|signal|test-only|usage|version|wait|wrap"
)
# What a node knows better than the driver. Nothing else of the environment that SLURM makes reaches a job: in spite of
# --export=NIL it may be that of a login, with the keys that are exported there.
OF_THE_NODE = (
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TMPDIR"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE"),
)
# Each attempt has a number of its own, so that an orphan, which goes on after its node was given up, disturbs nobody.
SCRIPT = """\
#!/bin/sh
job={job}
try=$((SLURM_JOB_ID * 1000 + ${{SLURM_RESTART_COUNT:-0}}))
note() {{ echo "$2" > "$job/$1_$try.partial" && mv "$job/$1_$try.partial" "$job/$1_$try"; }}
child= trapped=1 code=129
trap 'trapped=1; note limit near' USR2
trap 'trapped=1; [ -z "$child" ] || kill -TERM $child 2> /dev/null' TERM
[ "$(cat "$job/submission")" = {submission} ] && [ ! -e "$job/outcome.json" ] || exit 0
note started "${{SLURMD_NODENAME:-$(hostname)}}"
env -i {environment} {of_the_node} {command} "$job" "$try" &
child=$!
while [ $trapped = 1 ] && [ $code -gt 128 ]; do # it may have been a trap that ended the waiting
    trapped=0
    wait $child
    code=$?
done
note exit $code
exit $code
"""


def parse_options(text: str) -> dict[str, str]:
    """Return the options of sbatch in a text like "partition=gpu gpus=1 exclusive". Raise UserError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--slurm {text}: {str(error).lower()}") from None
    options = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UserError(f"--slurm {text}: {word} is no long option of sbatch, as partition=gpu or time=2:00:00 is")
        if OURS.fullmatch(name):
            raise UserError(f"--slurm {text}: the study itself sets {name}: leave it out")
        options[name] = value
    return options


def as_text(options: Mapping[str, str]) -> str:
    """Return options as a user gives them."""
    return " ".join(f"{name}={value}" if value else name for name, value in options.items())


def check(options: Mapping[str, str]) -> None:
    """Raise UserError if jobs with these options cannot be submitted, in the scheduler's own words."""
    if not shutil.which("sbatch"):
        raise UserError("sbatch is not on the PATH: start the study where jobs are submitted, or give --executor local")
    answer = Command(["sbatch", "--test-only", *_arguments(options)], script="#!/bin/sh\n").wait()
    if not answer.succeeded:
        raise UserError(f"SLURM refuses jobs with --slurm '{as_text(options)}': {answer.complaint}")


def job_name(job: Path) -> str:
    """Return the name of a job in SLURM, by which it is found again: one for each directory."""
    return f"sae-agent-{job.name}-{hashlib.sha256(os.fsencode(job)).hexdigest()[:16]}"


@dataclass
class _Followed:
    """A job that was submitted and has not been seen to end."""

    name: str
    id: str  # "" if it is not known
    looks: int = 0  # one after another that saw it ended, or did not see it
    cancelled: bool = False
    state: Literal["waiting", "running"] = "waiting"
    words: str = "submitted"
    verdict: Verdict | None = None  # once it is lost


class Slurm:
    """An executor that submits each job to SLURM and learns from the job's own files what that does not say.

    A job's directory holds its script, what that noted (`started_N`, `limit_N`, `exit_N`, N for the attempt), and its
    output in slurm.log.
    """

    jobs_outlive_driver = True

    def __init__(
        self,
        options: Mapping[str, str],
        command: Sequence[str],
        environment: Mapping[str, str],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """`command` carries out a job: it is given the job's directory and the number of the attempt. `environment` is
        all that it sees of the driver's, but for what a node knows better."""
        self._options, self._command = dict(options), tuple(command)
        self._environment = {name: value for name, value in environment.items() if name not in OF_THE_NODE}
        self._look_seconds = look_seconds
        self._jobs: dict[Path, _Followed] = {}
        self._question: Command | None = None
        self._asked_for: dict[Path, _Followed] = {}
        self._next_look = 0.0
        self._silent_since: float | None = None  # when the scheduler first did not answer
        self._silence = ""  # what it said instead

    def submit(self, job: Path) -> str:
        submission = uuid.uuid4().hex  # a job of an earlier submission finds another one there, and ends
        write_atomically(job / SUBMISSION, submission)
        write_atomically(job / "job.sh", self._script(job, submission))
        (job / "job.sh").chmod(0o600)
        name, log = job_name(job), str(job / LOG).replace("%", "%%")
        files = [f"--chdir={job}", f"--output={log}", "--open-mode=append", str(job / "job.sh")]
        answer = Command(["sbatch", "--parsable", *_arguments(self._options), f"--job-name={name}", *files]).wait()
        id = answer.output.strip().partition(";")[0]
        if not id.isdecimal():
            raise NotSubmitted(answer.complaint, full=answer.may_pass)
        self._jobs[job] = _Followed(name, id)
        return id

    def reattach(self, job: Path, id: str) -> None:
        attempt = read_attempt(job)
        self._jobs[job] = _Followed(job_name(job), id or (attempt.job_id if attempt else ""))

    def poll(self) -> dict[Path, Status]:
        self._look()
        statuses = {job: self._status(job, followed) for job, followed in self._jobs.items()}
        for job, status in statuses.items():
            if status.state == "ended":
                del self._jobs[job]
        return statuses

    def cancel(self, job: Path) -> None:
        followed = self._jobs[job]
        followed.cancelled = True
        if (answer := _cancel(followed)).may_pass:
            notify(f"{job.name} goes on until the scheduler answers: {answer.complaint}")

    def close(self) -> None:
        """Let go of the jobs, which go on."""
        if self._question:
            self._question.end()

    def _script(self, job: Path, submission: str) -> str:
        return SCRIPT.format(
            job=shlex.quote(str(job)),
            submission=submission,
            environment=shlex.join(f"{name}={value}" for name, value in self._environment.items()),
            of_the_node=" ".join(f'${{{name}+"{name}=${name}"}}' for name in OF_THE_NODE),
            command=shlex.join(self._command),
        )

    def _look(self) -> None:
        """Ask for all jobs at once, and take in the answer when it has come."""
        if self._question and self._question.ended:
            if self._question.succeeded:
                self._silent_since = None
                self._take_in(self._question.output)
            else:
                self._silent_since = self._silent_since or time.monotonic()
                self._silence = self._question.complaint
            self._question, self._next_look = None, time.monotonic() + self._look_seconds
        if self._jobs and self._question is None and time.monotonic() >= self._next_look:
            names = ",".join(followed.name for followed in self._jobs.values())
            self._question = Command(
                ["squeue", "--me", "--states=all", "--noheader", f"--name={names}", "--format=%i|%j|%T|%N|%r"]
            )
            self._asked_for = dict(self._jobs)

    def _take_in(self, answer: str) -> None:
        records: dict[str, dict[str, Record]] = {}
        for line in answer.splitlines():
            id, name, state, node, reason = line.split("|", 4)
            records.setdefault(name, {})[id] = Record(id, state, node, reason)
        for job, followed in self._asked_for.items():
            if self._jobs.get(job) is not followed:  # it has ended meanwhile
                continue
            known = records.get(followed.name, {})
            followed.id = followed.id or max(known, key=int, default="")
            self._judge(job, followed, known.get(followed.id))

    def _judge(self, job: Path, followed: _Followed, record: Record | None) -> None:
        """Note how a job stands, by what the scheduler knows of it."""
        followed.looks = followed.looks + 1 if record is None or record.ended else 0
        if followed.looks:
            _refresh(job)
        if followed.looks >= (LOOKS_TO_END if record else LOOKS_TO_VANISH):
            record = record or accounted(followed.id)
            if record is None or record.ended:
                followed.verdict = slurm_states.lost_verdict(job, record)
                if followed.cancelled and followed.verdict.name == "killed":
                    followed.verdict = Verdict(name="killed", evidence="the driver cancelled it")
                return
        if followed.cancelled and record and not record.ended:
            _cancel(followed)  # the scheduler may have been down, or the job requeued
        attempt = read_attempt(job)
        if record and record.waits:
            followed.state, followed.words = "waiting", slurm_states.waiting_words(record, attempt)
        elif record and not record.ended:
            followed.state, followed.words = "running", slurm_states.running_words(record, attempt)

    def _status(self, job: Path, followed: _Followed) -> Status:
        if (job / "outcome.json").exists():
            return Status("ended")
        if followed.verdict:
            return Status("ended", verdict=followed.verdict)
        words = followed.words
        if followed.state == "running" and (progress := noted(job / PROGRESS)):
            words = f"{progress}, {words}"
        if self._silent_since:
            seconds = time.monotonic() - self._silent_since
            words += f"; the scheduler has not answered for {seconds:.0f} s: {self._silence}"
        return Status(followed.state, words)


def _cancel(followed: _Followed) -> Command:
    return Command(["scancel", *([followed.id] if followed.id else ["--me", f"--name={followed.name}"])]).wait()


def _arguments(options: Mapping[str, str]) -> list[str]:
    """Return the options of sbatch that all jobs have."""
    given = [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
    return ["--export=NIL", "--requeue", "--signal=B:USR2@120", *given]


def _refresh(folder: Path) -> None:
    """Change a folder, so that a network file system asks its server anew what is in it."""
    mark = folder / ".look"
    with suppress(OSError):
        mark.touch()
        mark.unlink()
