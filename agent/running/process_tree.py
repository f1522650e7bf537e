"""All the processes of a run: what they use together, and the end of every one of them."""

import ctypes
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from agent.study.workspace import STUDY_VARIABLE

GRACE_SECONDS = 5.0  # between asking a process to end and killing it
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SWEEPS = 20  # each one finds what was forked, or lost its parent, during the one before


def adopt_strays() -> None:
    """Have descendants that lose their parent become children of this process, not of init. Linux only: elsewhere
    a stray that called setsid outlives its run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def kill_strays(kept: Iterable[psutil.Process]) -> None:
    """Kill every descendant of this process but those that are `kept`."""
    for _ in range(SWEEPS):
        strays = set(descendants()) - set(kept)
        if not strays:
            return
        for stray in strays:
            _signal(stray, kill=True)
        psutil.wait_procs(strays, timeout=GRACE_SECONDS)


def end_orphans(directory: Path) -> int:
    """End what a driver that was killed has left running for the study at `directory`; how many processes it was."""
    orphans = list(_marked(directory))
    for kill in (False, True):
        for orphan in filter(_alive, orphans):
            _signal(orphan, kill)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(map(_alive, orphans)) and time.monotonic() < deadline:
            time.sleep(0.05)
    return len(orphans)


def memory(processes: Iterable[psutil.Process]) -> int:
    """Bytes held by processes together, each shared page counted once where the system can tell (PSS, Linux)."""
    return sum(_measured(process, proportional=True) for process in processes)


def memory_at_most(processes: Iterable[psutil.Process]) -> int:
    """What `memory` cannot exceed, at a hundredth of its cost: shared pages are counted for each process (RSS)."""
    return sum(_measured(process, proportional=False) for process in processes)


def _measured(process: psutil.Process, proportional: bool) -> int:
    try:
        if not proportional:
            return process.memory_info().rss
        full = process.memory_full_info()
    except psutil.Error:  # ended meanwhile, or another user's
        return 0
    return getattr(full, "pss", full.uss)


def _marked(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(STUDY_VARIABLE) == str(directory)
        except (psutil.Error, OSError):  # another user's, or ended meanwhile
            continue
        if marked and process.pid != os.getpid():
            yield process


def _alive(process: psutil.Process) -> bool:
    """A zombie is not: it waits to be collected by a parent that is not this process."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal(process: psutil.Process, kill: bool) -> None:
    """psutil compares start times first, so that a number used again is not taken for the process that had it."""
    with suppress(psutil.Error):  # ended meanwhile, or another user's
        process.kill() if kill else process.terminate()
