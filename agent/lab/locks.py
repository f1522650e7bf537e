"""Locks between processes that make the same thing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agent.lab.progress import say


@contextmanager
def waiting_lock(path: Path, why: str) -> Iterator[None]:
    """Hold a lock between processes; says why when it has to wait. The end of a process frees what it held."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting: {why} ({path})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
