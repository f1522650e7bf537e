"""Files that several processes share: locks, whole writes, removal without following links."""

import os
import shutil
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


def write_atomically(path: Path, text: str) -> None:
    """Write a file that appears when all of it is on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole directory; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
