"""All the processes of a run: their memory, and how every one of them is ended."""

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
SWEEPS = 20  # each catches what was forked, or lost its parent, during the one before


def adopt_strays() -> None:
    """Make descendants that lose their parent children of this process, not of init.

    Linux only: elsewhere a descendant that called setsid outlives its run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """Return all processes below this one."""
    return psutil.Process().children(recursive=True)


def processes_below(pids: Iterable[int]) -> set[psutil.Process]:
    """Return the processes with these ids, and all that they have started."""
    found: set[psutil.Process] = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {process, *process.children(recursive=True)}
    return found


def kill_descendants(spared: Iterable[psutil.Process]) -> float:
    """Kill every descendant of this process except those in `spared`; return the CPU seconds that they had used."""
    seconds = 0.0
    for _ in range(SWEEPS):
        processes = set(descendants()) - set(spared)
        if not processes:
            break
        for process in processes:
            seconds += cpu_seconds(process, waited_for=True)
            _signal(process, kill=True)
        psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    return seconds


def end_orphans(directory: Path) -> int:
    """End the processes that a killed driver left running for the study at `directory`. Return how many there were."""
    orphans = list(_processes_of_study(directory))
    for kill in (False, True):
        for orphan in filter(_is_alive, orphans):
            _signal(orphan, kill)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(map(_is_alive, orphans)) and time.monotonic() < deadline:
            time.sleep(0.05)
    return len(orphans)


def used_memory(processes: Iterable[psutil.Process]) -> int:
    """Return the bytes that the processes use together. Linux counts each shared page once (PSS)."""
    return sum(_process_memory(process, proportional=True) for process in processes)


def used_memory_upper_bound(processes: Iterable[psutil.Process]) -> int:
    """Return bytes that `used_memory` cannot exceed, at a hundredth of its cost: shared pages count for each process
    (RSS)."""
    return sum(_process_memory(process, proportional=False) for process in processes)


def _process_memory(process: psutil.Process, proportional: bool) -> int:
    try:
        if not proportional:
            return process.memory_info().rss
        full = process.memory_full_info()
    except psutil.Error:  # ended meanwhile, or another user's
        return 0
    return getattr(full, "pss", full.uss)


def cpu_seconds(process: psutil.Process, waited_for: bool = False) -> float:
    """Return the CPU seconds of a process, with `waited_for` those of the processes that it has waited for too."""
    with suppress(psutil.Error):  # ended meanwhile, or another user's
        times = process.cpu_times()  # user, system, and both of its children
        return sum(times[:4] if waited_for else times[:2])
    return 0.0


def _processes_of_study(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            belongs = process.environ().get(STUDY_VARIABLE) == str(directory)
        except (psutil.Error, OSError):  # another user's, or ended meanwhile
            continue
        if belongs and process.pid != os.getpid():
            yield process


def _is_alive(process: psutil.Process) -> bool:
    """Return False also for a zombie, which waits to be reaped by a parent that is not this process."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal(process: psutil.Process, kill: bool) -> None:
    """Terminate or kill a process. psutil compares start times first, so a reused process id does no harm."""
    with suppress(psutil.Error):  # ended meanwhile, or another user's
        process.kill() if kill else process.terminate()
