"""Files that several processes share: locks, writes that appear whole, removal without following links."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agent.lab.progress import notify


@contextmanager
def waiting_lock(path: Path, reason: str) -> Iterator[None]:
    """Hold a lock between processes, and tell the user the reason if it has to wait.

    The system frees the lock of a process that ends in any way.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"waiting: {reason} ({path})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder to, which then takes the place of `path`, whole.

    It is flushed to the disk first. If the block raises, nothing is left and `path` stays as it was. What a killed
    process leaves is removed by the next write, so hold a `waiting_lock` if another process may write the same path.
    """
    partial = path.with_name(f"{path.name}.partial")
    remove(partial)  # of a killed process, or a link that an experiment planted
    try:
        yield partial
        for part in (*partial.rglob("*"), partial):
            if not part.is_symlink() and (part.is_dir() or part.is_file()):  # a pipe would be waited for
                flush(part)
        partial.replace(path)
    finally:
        remove(partial)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that appears when all of it is on the disk."""
    with atomic_path(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole directory; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty_folder(path: Path) -> Path:
    """Put an empty folder in the place of whatever is at `path`, and return it."""
    remove(path)
    path.mkdir()
    return path
