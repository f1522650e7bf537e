"""Jobs on this machine: slots, each a process that carries out one job at a time and keeps its evaluator."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from agent.lab.files import empty_folder, remove_unless_plain
from agent.lab.machine import memory_limit
from agent.lab.verdicts import Verdict
from agent.running import process, process_tree
from agent.running.executor import Status
from agent.running.jobs import OUTCOME, PROGRESS, Setup, noted
from agent.study.outcomes import StudyPaused
from agent.study.workspace import STUDY_VARIABLE

SLOT = (*process.START, "agent.running.slot")
MEMORY_SECONDS = 2.0  # between two looks at the memory of all jobs
MOST_SLOTS = 8  # unless more are asked for
LOST = Verdict(name="killed", evidence="the driver ended before it did")


class _Slot:
    """One slot. Its process is started with its first job, and again after it was ended."""

    def __init__(self, number: int, setup: Path, study: Path, gpu: str | None) -> None:
        self.setup, self.logs = setup, study / f"slot_{number}"
        self.environment = {STUDY_VARIABLE: str(study)} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        self.job: Path | None = None
        self._child: process.Child | None = None

    def start(self, job: Path) -> None:
        if self._child is None or self._child.exited:
            self.end()
            if not self.logs.is_dir() or self.logs.is_symlink():
                empty_folder(self.logs)
            log = self.logs / "slot.log"
            remove_unless_plain(log)
            self._child = process.Child(
                [*SLOT, str(self.setup), str(self.logs)],
                cwd=self.logs,
                env=process.child_environment(self.environment, process.JUDGE_VARIABLES),
                stdin=True,
                stdout=log,
                stderr=log,
            )
        self.job = job
        self._child.write_line(str(job))

    def lost(self) -> Verdict | None:
        """Return why the job has no outcome and will have none; None while it may.

        Raise StudyPaused if the slot's own process gave up, for what only a person can mend.
        """
        if self._child is None or not self._child.exited:
            return None
        code, log = self.end(), self.logs / "slot.log"
        verdict = process.exit_verdict(process.ProcessResult(code, 0.0, None), log)
        if code > 0 or verdict is None:
            reason = verdict.evidence if verdict else "it ended by itself"
            raise StudyPaused(f"the process that carries out jobs ended ({reason}); {self.logs.name}/slot.log has more")
        return verdict

    def end(self) -> int:
        """End the process with all that it has started; return its exit code."""
        child, self._child, self.job = self._child, None, None
        return child.end() if child else 0


class LocalSlots:
    """An executor with `count` slots on this machine.

    On a GPU each has a device of its own of `gpus`. A job waits while the memory that is free is less than the largest
    job so far has used. If those that run come to use more than the machine has, the newest one is started again when
    another has ended.
    """

    jobs_outlive_driver = False

    def __init__(self, setup: Path, count: int, gpus: list[str]) -> None:
        study = Setup.read(setup).study
        self._slots = [
            _Slot(number, setup, study, gpus[number - 1] if gpus else None) for number in range(1, count + 1)
        ]
        self._waiting: list[Path] = []
        self._lost: dict[Path, Verdict] = {}
        self._largest = 0  # bytes that one job has used
        self._next_look = 0.0  # at memory

    def submit(self, job: Path) -> str:
        self._waiting.append(job)
        self._fill()
        return ""

    def reattach(self, job: Path, id: str) -> None:  # noqa: ARG002
        self._lost[job] = LOST

    def poll(self) -> dict[Path, Status]:
        self._keep_memory()
        found = {job: Status("ended", verdict=None if _is_through(job) else why) for job, why in self._lost.items()}
        self._lost = {}
        for slot in self._busy:
            assert slot.job
            if _is_through(slot.job):
                found[slot.job], slot.job = Status("ended"), None
            else:
                job = slot.job
                verdict = slot.lost()
                found[job] = Status("ended", verdict=verdict) if verdict else Status("running", noted(job / PROGRESS))
        self._fill()
        return found | {job: Status("waiting", "waiting for memory") for job in self._waiting}

    def cancel(self, job: Path) -> None:
        self._waiting = [each for each in self._waiting if each != job]
        for slot in self._busy:
            if slot.job == job:
                slot.end()

    def close(self) -> None:
        for slot in self._slots:
            slot.end()

    @property
    def _busy(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.job]

    def _fill(self) -> None:
        """Start waiting jobs in free slots, as far as memory allows."""
        for slot in self._slots:
            if not self._waiting:
                return
            if slot.job is None and (not self._busy or memory_limit() - self._used() >= self._largest):
                slot.start(self._waiting.pop(0))

    def _used(self) -> int:
        return process_tree.used_memory(process_tree.descendants())

    def _keep_memory(self) -> None:
        """Take the newest job back if several use more memory than there is; a lone one is its own watchdog's."""
        busy = self._busy
        if not busy or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + MEMORY_SECONDS
        bound = process_tree.used_memory_upper_bound(process_tree.descendants())
        self._largest = max(self._largest, bound // len(busy))
        if len(busy) > 1 and bound > memory_limit() and self._used() > memory_limit():
            newest = busy[-1]
            job = newest.job
            newest.end()
            self._waiting[:0] = [job] if job else []


def default_slots(threads: int, job_bytes: int) -> int:
    """Return how many jobs of so many threads and bytes this machine has cores and memory for.

    A step takes 21.0 ms with one thread and 15.6 with two (benchmarks/step.py), so more jobs beat more threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, memory_limit() // job_bytes, MOST_SLOTS))


def visible_gpus(count: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES can choose each of the `count` GPUs that are visible now."""
    listed = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return listed[:count] if listed else [str(number) for number in range(count)]


def _is_through(job: Path) -> bool:
    return (job / OUTCOME).exists()
