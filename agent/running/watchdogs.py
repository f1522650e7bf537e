"""What is watched while a process of a study runs. Each watchdog is called at every poll and gives a verdict to end it.

Time-outs are `Child.wait`'s own; the training history is judged by `Workers`.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from agent.lab.errors import UserError
from agent.lab.verdicts import Verdict
from agent.running import process_tree

Watchdog = Callable[[], Verdict | None]

GIB = 2**30
STALL_SECONDS = 900.0
MEMORY_SHARE = 0.85  # of the machine's memory, for a run with all its processes
DISK_FREE = GIB // 2  # bytes that must stay free, so that ledger and notes can still be written
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: bytes, or `max`
LOG_BYTES = 16 * 2**20
LOG_KEPT = LOG_BYTES // 4  # of either end, when a log is cut


class DiskFull(UserError):
    """There is no room for another run. Other than a run that fills the disk, this is no run's fault."""


def memory_limit() -> int:
    """Bytes a run may hold on this machine, or in this container."""
    machine = psutil.virtual_memory().total
    container = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return int(MEMORY_SHARE * (machine if container == "max" else min(machine, int(container))))


class Stall:
    """None of these files has changed for too long."""

    def __init__(self, files: Sequence[Path], seconds: float = STALL_SECONDS) -> None:
        self.files, self.seconds = files, seconds
        self._seen: list[tuple[int, int] | None] = []
        self._since = time.monotonic()

    def __call__(self) -> Verdict | None:
        seen = [_stamp(file) for file in self.files]
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        if time.monotonic() - self._since < self.seconds:
            return None
        names = ", ".join(file.name for file in self.files)
        return Verdict(name="stalled", evidence=f"nothing new in {names} for {self.seconds:.0f} s")


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.lstat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


class Memory:
    """The processes of the run hold too much together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self) -> Verdict | None:
        processes = process_tree.descendants()
        if process_tree.memory_at_most(processes) <= self.limit:
            return None
        used = process_tree.memory(processes)
        if used <= self.limit:
            return None
        evidence = f"its processes held {used / GIB:.1f} GiB together; the limit is {self.limit / GIB:.1f} GiB"
        return Verdict(name="out_of_memory", evidence=evidence)


class Disk:
    """The study's disk is nearly full."""

    def __init__(self, directory: Path, free: int = DISK_FREE) -> None:
        self.directory, self.free = directory, free

    def __call__(self) -> Verdict | None:
        free = shutil.disk_usage(self.directory).free
        if free >= self.free:
            return None
        evidence = (
            f"{free / GIB:.2f} GiB left on the disk of {self.directory}; {self.free / GIB:.2f} GiB must stay free"
        )
        return Verdict(name="disk_full", evidence=evidence)


def require_disk(directory: Path, free: int = DISK_FREE) -> None:
    """Raises DiskFull."""
    if verdict := Disk(directory, free)():
        raise DiskFull(f"{verdict.evidence}: make room, then agent resume continues")


class LogCap:
    """Cuts the middle out of a log that has grown too long. The writer must have opened it for appending."""

    def __init__(self, *logs: Path, size: int = LOG_BYTES, kept: int = LOG_KEPT) -> None:
        self.logs, self.size, self.kept = logs, size, kept

    def __call__(self) -> None:
        for log in self.logs:
            if log.exists() and log.stat().st_size > self.size:
                self._cut(log)

    def _cut(self, log: Path) -> None:
        with log.open("r+b") as file:
            length = file.seek(-self.kept, 2)
            end = file.read()
            file.truncate(self.kept)
            file.seek(self.kept)
            file.write(b"\n[... %d bytes cut by the driver ...]\n" % (length - self.kept))
            file.write(end)
