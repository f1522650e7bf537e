"""A study's jobs: submitted once the ledger knows of them, and kept until the ledger has taken in how they ended."""

import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from agent.display.live import Display
from agent.lab.errors import UserError
from agent.lab.files import BadFile, empty_folder, remove
from agent.lab.verdicts import Verdict
from agent.running import kept_state
from agent.running.executor import Executor, NotSubmitted, Status
from agent.running.jobs import JOB, OUTCOME, PROGRESS, TRAINED, Job, Outcome
from agent.study import events
from agent.study.ledger import Ledger
from agent.study.outcomes import StudyPaused
from agent.study.workspace import Study

POLL_SECONDS = 0.2
FULL_SECONDS = 60.0  # until a job that a full queue refused is submitted again
MOST_LOSSES = 4  # of one job, before the study stops where it is
ENDED_FROM_OUTSIDE = {"killed", "timed_out"}  # verdicts on a job that left no outcome; timed_out: by its scheduler

OF_THE_MACHINE = {"killed", "disk_full"}  # verdicts that say nothing about what was trained

Ended = Outcome | Verdict  # the verdict of a job that left no outcome


def fault_of_machine(ended: Ended) -> Verdict | None:
    """Return the verdict of a job that says nothing about what it trained, or None."""
    failure = ended if isinstance(ended, Verdict) else ended.failure
    return failure if failure and failure.name in OF_THE_MACHINE else None


def stopped_by(ended: Ended) -> Verdict | None:
    """Return the verdict of a job whose evaluation was ended from outside, or None."""
    if isinstance(ended, Verdict):
        return ended
    return ended.evaluation if ended.stopped else None


class StudyMoved(UserError):
    """The directory of the study is gone, or another one lies in its place."""


class JobQueue:
    """At most `slots` jobs of one study at a time, carried out by an executor."""

    def __init__(self, study: Study, ledger: Ledger, display: Display, executor: Executor, slots: int) -> None:
        self.study, self.ledger, self.display, self.executor, self.slots = study, ledger, display, executor, slots
        self.folder = study.directory / "jobs"
        self.folder.mkdir(exist_ok=True)
        self._inode = study.directory.stat().st_ino
        self._ended: dict[str, Ended] = {}  # not yet taken in
        self._status: dict[str, Status] = {}
        self._full_until = 0.0

    @property
    def names(self) -> list[str]:
        """The jobs that were submitted and are not taken in."""
        return list(self.ledger.state.jobs)

    @property
    def running(self) -> list[str]:
        """The jobs that were submitted and have not ended."""
        return [name for name in self.names if name not in self._ended]

    @property
    def has_room(self) -> bool:
        """True if another job may be submitted now."""
        return len(self.running) < self.slots and time.monotonic() >= self._full_until

    def resume(self) -> None:
        """Take up the jobs that an earlier driver submitted, and remove what no job needs any more."""
        self._discard_forgotten()
        for name, id in self.ledger.state.jobs.items():
            if found := self._outcome(name):
                self._ended[name] = found
            else:
                self.executor.reattach(self.folder / name, id)

    def submit(self, name: str, job: Job) -> bool:
        """Hand a job to the executor; return False if its queue is full. Raise StudyPaused if it refuses the job."""
        directory = self._folder_for(name)
        job.write(directory / JOB)
        self.ledger.append(events.JobSubmitted(job=name))
        try:
            id = self.executor.submit(directory)
        except NotSubmitted as refused:
            rows = self.ledger.state.saved_rows.get(name, 0)
            self.ledger.append(events.JobLost(job=name, why=refused.reason, rows=rows))
            if not refused.full:
                raise StudyPaused(f"{job.label} was not submitted: {refused.reason}") from None
            self.display.say(f"{job.label} waits: {refused.reason}")
            self._full_until = time.monotonic() + FULL_SECONDS
            return False
        if id:
            self.ledger.append(events.JobQueued(job=name, id=id))
        return True

    def ended(self, name: str) -> Ended | None:
        """Return how a job ended, or None if it has not. It stays until it is forgotten."""
        return self._ended.get(name)

    def lose(self, name: str, verdict: Verdict) -> None:
        """Record that a job left no outcome. Raise StudyPaused if it comes no further again and again."""
        if self.goes_on(name, verdict):
            return
        self.ledger.append(events.JobLost(job=name, why=f"{verdict.name}: {verdict.evidence}"))
        self.forget(name)
        if self.ledger.state.losses[name] % MOST_LOSSES == 0:
            raise StudyPaused(f"the job {name} ended {MOST_LOSSES} times without an outcome ({verdict.evidence})")

    def ask_again(self, name: str, failure: Verdict | None, most: int = MOST_LOSSES) -> bool:
        """Have a job started again that had this failure, at most `most` times in all; return False if it is not."""
        if failure is None or self.ledger.state.losses.get(name, 0) + 1 >= most:
            return False
        self.lose(name, failure)
        return True

    def goes_on(self, name: str, verdict: Verdict) -> bool:
        """Return whether a job that left no outcome, ended from outside, goes on from a state that its training had
        saved, one that came further than that of the last time; record it if so."""
        found = kept_state.newest(self.folder / name) if verdict.name in ENDED_FROM_OUTSIDE else None
        if found is None or self.trained(name) or found[1].rows <= self.ledger.state.saved_rows.get(name, 0):
            return False
        rows = found[1].rows
        self.ledger.append(events.JobLost(job=name, why=f"{verdict.name}: {verdict.evidence}", rows=rows))
        self.display.say(f"{name} had saved its state after {rows:,} rows, from which it can go on: {verdict.evidence}")
        self.forget(name)
        return True

    def forget(self, name: str) -> None:
        """Remove what is left of a job that was taken in, unless it goes on."""
        self._ended.pop(name, None)
        self._status.pop(name, None)
        if name not in self.ledger.state.saved_rows:
            self._discard(self.folder / name)

    def _folder_for(self, name: str) -> Path:
        """Return the folder of a job, with nothing in it but the earlier tries of one that goes on."""
        folder = self.folder / name
        if name not in self.ledger.state.saved_rows or folder.is_symlink() or not folder.is_dir():
            return empty_folder(folder)
        for path in folder.iterdir():
            if not path.name.startswith("try_"):
                remove(path)
        return folder

    def newest_try(self, name: str) -> Path | None:
        """Return the directory of the newest try at a job that left no outcome, or None if none began."""
        tries = sorted(self.folder.glob(f"{name}/try_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        return tries[-1] if tries else None

    def wait(self) -> None:
        """Let the jobs run for a moment."""
        time.sleep(POLL_SECONDS)

    def poll(self, outlook: str = "") -> bool:
        """Show how far the jobs have come, above the `outlook` of the study, and return True if one has ended since the
        last time. Raise StudyMoved, StudyPaused."""
        known = set(self._ended)
        self._require_study()
        for directory, status in self.executor.poll().items():
            self._status[directory.name] = status
            if status.state == "ended" and directory.name in self.ledger.state.jobs:
                verdict = status.verdict or Verdict(name="killed", evidence="it left no outcome")
                self._ended[directory.name] = self._outcome(directory.name) or verdict
        lines = [self._line(name) for name in self.running]
        self.display.progress([*lines, outlook] if outlook else lines)
        return not self._ended.keys() <= known

    def _line(self, name: str) -> str:
        """Return how far a job has come, in a line that names it, as the progress that a slot has left does."""
        status = self._status.get(name, Status("waiting"))
        named = status.words and (self.folder / name / PROGRESS).exists()
        return status.words if named else f"{name}: {status.words or status.state}"

    def cancel(self) -> None:
        """End the jobs that run. They stay in the ledger until that has recorded what became of them."""
        for name in self.running:
            self.executor.cancel(self.folder / name)

    def close(self) -> None:
        """End what must not outlive the driver."""
        self.executor.close()
        self._discard_forgotten()

    def _discard_forgotten(self) -> None:
        for path in self.folder.glob("*"):  # none if the study was moved
            if path.name not in self.ledger.state.jobs and path.name not in self.ledger.state.saved_rows:
                self._discard(path)

    def _discard(self, path: Path) -> None:
        """Remove a directory; what is left of one that somebody still writes to is removed later."""
        if path.is_symlink() or not path.is_dir():
            remove(path)
        else:
            shutil.rmtree(path, ignore_errors=True)

    def trained(self, name: str) -> Outcome | None:
        """Return what the training of a job left that ended in its evaluation; None if that had not begun."""
        found = self._outcome(name, TRAINED)
        return found if isinstance(found, Outcome) else None

    def _outcome(self, name: str, file: str = OUTCOME) -> Ended | None:
        path = self.folder / name / file
        try:
            return Outcome.read(path)
        except FileNotFoundError:
            return None
        except (BadFile, ValidationError):
            return Verdict(
                name="tampered", evidence=f"{path.relative_to(self.study.directory)} is not as a job writes it"
            )

    def _require_study(self) -> None:
        """Raise StudyMoved if the directory of the study is not where it was."""
        directory = self.study.directory
        if not directory.is_dir() or directory.stat().st_ino != self._inode:
            raise StudyMoved(f"{directory} was moved while the study ran: move it back, then agent resume continues")
