"""Watchdogs over a running process: called at every poll, each returns a verdict to end the process, or None.

`Child.wait` handles time-outs, and `Workers` judges the training history.
"""

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from agent.lab.errors import UserError
from agent.lab.files import BadFile, open_plain
from agent.lab.verdicts import Verdict
from agent.running import process_tree

Watchdog = Callable[[], Verdict | None]

GIB = 2**30
STALL_SECONDS = 900.0
START_SECONDS = 900.0  # until a process that evaluates has its model
DISK_FREE = GIB // 2  # bytes that must stay free, so that the ledger and the notes can still be written
PROCESSES = 512  # of a run; root is not held to RLIMIT_NPROC
NEW_FILES = 10_000  # of a run, in the directory of its study
SHARED_MEMORY = Path("/dev/shm")
LOG_BYTES = 16 * 2**20
LOG_KEPT = LOG_BYTES // 4  # at either end of a log that is cut
LOG_FLOOD = 256 * 2**20  # bytes between two polls that no honest program prints


class DiskFull(UserError):
    """There is no room on the disk for another run: the fault of the machine, not of a run that has filled it."""


class Stall:
    """A watchdog that ends a process when none of `files` has changed for `seconds`."""

    def __init__(self, files: Sequence[Path], seconds: float = STALL_SECONDS) -> None:
        self.files, self.seconds = files, seconds
        self._stamps: list[tuple[int, int] | None] = []
        self._changed = time.monotonic()

    def __call__(self) -> Verdict | None:
        stamps = [_stamp(file) for file in self.files]
        if stamps != self._stamps:
            self._stamps, self._changed = stamps, time.monotonic()
        if time.monotonic() - self._changed < self.seconds:
            return None
        names = ", ".join(file.name for file in self.files)
        return Verdict(name="stalled", evidence=f"nothing new in {names} for {self.seconds:.0f} s")


class FirstSteps:
    """A watchdog that ends a training `seconds` after its first step, whose row is the first in `metrics`.

    Until then there are imports and the wait for activations, which take as long as the machine does: `start` seconds.
    """

    def __init__(self, metrics: Path, seconds: float, start: float) -> None:
        self.metrics, self.seconds, self.start = metrics, seconds, start
        self._stepped, self._since = False, time.monotonic()

    def __call__(self) -> Verdict | None:
        now = time.monotonic()
        if not self._stepped and (_stamp(self.metrics) or (0, 0))[0]:
            self._stepped, self._since = True, now
        limit = self.seconds if self._stepped else self.start
        if now - self._since <= limit:
            return None
        since = "after its first step" if self._stepped else "and without a step"
        return Verdict(name="timed_out", evidence=f"still running {limit:.0f} s {since}")


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return the size and the modification time of a file, or None if it does not exist."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


class Memory:
    """A watchdog that ends a process when the driver's child processes together use more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self) -> Verdict | None:
        processes = process_tree.descendants()
        if process_tree.used_memory_upper_bound(processes) <= self.limit:
            return None
        used = process_tree.used_memory(processes)
        if used <= self.limit:
            return None
        evidence = f"its processes used {used / GIB:.1f} GiB together; the limit is {self.limit / GIB:.1f} GiB"
        return Verdict(name="out_of_memory", evidence=evidence)


class Processes:
    """A watchdog that ends a process when the driver has more than `most` child processes."""

    def __init__(self, most: int = PROCESSES) -> None:
        self.most = most

    def __call__(self) -> Verdict | None:
        count = len(process_tree.descendants())
        return Verdict(name="crashed", evidence=f"it had started {count} processes") if count > self.most else None


class Files:
    """A watchdog that ends a process when there are `most` more files and folders in `directory` than at its start."""

    def __init__(self, directory: Path, most: int = NEW_FILES) -> None:
        self.directory, self.most = directory, most
        self._before = self._count(sys.maxsize)

    def __call__(self) -> Verdict | None:
        if self._count(self._before + self.most + 1) <= self._before + self.most:
            return None
        return Verdict(name="crashed", evidence=f"it had made more than {self.most} files")

    def _count(self, most: int) -> int:
        names = (name for _, folders, files in os.walk(self.directory) for name in (*folders, *files))
        return sum(1 for _ in itertools.islice(names, most))


class SharedMemory:
    """A watchdog over what a run that is not confined leaves in /dev/shm, where it uses memory after its end, too."""

    def __init__(self, limit: int, folder: Path = SHARED_MEMORY) -> None:
        self.limit, self.folder = limit, folder
        self._before = self._used()

    @property
    def left(self) -> int:
        """Bytes that are there now and were not before."""
        return self._used() - self._before

    def __call__(self) -> Verdict | None:
        if self.left <= self.limit:
            return None
        evidence = f"it put {self.left / GIB:.1f} GiB into {self.folder}; the limit is {self.limit / GIB:.1f} GiB"
        return Verdict(name="out_of_memory", evidence=evidence)

    def _used(self) -> int:
        return shutil.disk_usage(self.folder).used if self.folder.is_dir() else 0


class Disk:
    """A watchdog that ends a process when fewer than `free` bytes are free on the disk of `directory`."""

    def __init__(self, directory: Path, free: int = DISK_FREE) -> None:
        self.directory, self.free = directory, free

    def __call__(self) -> Verdict | None:
        free = shutil.disk_usage(self.directory).free
        if free >= self.free:
            return None
        evidence = (
            f"{free / GIB:.2f} GiB free on the disk of {self.directory}; {self.free / GIB:.2f} GiB must stay free"
        )
        return Verdict(name="disk_full", evidence=evidence)


def require_disk(directory: Path, free: int = DISK_FREE) -> None:
    """Raise DiskFull unless `free` bytes are free on the disk of `directory`."""
    if verdict := Disk(directory, free)():
        raise DiskFull(f"{verdict.evidence}: free some space, then `agent resume` continues")


class LogCap:
    """A watchdog that cuts the middle out of logs that have grown beyond `size` bytes.

    `kept` bytes stay at either end. It ends a process whose log has grown by `flood` bytes since it last looked. The
    writer must have opened the log for appending.
    """

    def __init__(self, *logs: Path, size: int = LOG_BYTES, kept: int = LOG_KEPT, flood: int = LOG_FLOOD) -> None:
        self.logs, self.size, self.kept, self.flood = logs, size, kept, flood

    def __call__(self) -> Verdict | None:
        for log in self.logs:
            # What is no regular file, or has another name too, an experiment put there: it is not the log.
            with suppress(FileNotFoundError, BadFile), open_plain(log, "r+b", only_name=True) as file:
                if (length := file.seek(0, os.SEEK_END)) > self.size:
                    self._cut(file)
                if length > self.flood:
                    evidence = f"it wrote {length / GIB:.1f} GiB to {log.name} faster than they can be cut"
                    return Verdict(name="crashed", evidence=evidence)
        return None

    def _cut(self, log: IO[bytes]) -> None:
        length = log.seek(-self.kept, os.SEEK_END)
        end = log.read(self.kept)
        log.truncate(self.kept)
        log.seek(self.kept)
        log.write(b"\n[... %d bytes cut by the driver ...]\n" % (length - self.kept))
        log.write(end)
