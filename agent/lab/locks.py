"""Locks between processes: the system's flock, or a lock file where the file system has none.

The system frees the flock of a process that ends in any way.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from agent.lab import lock_files
from agent.lab.errors import UserError
from agent.lab.files import open_plain, remove_unless_plain
from agent.lab.lock_files import PATIENCE, Busy
from agent.lab.progress import notify
from agent.lab.visible import visible

NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # what NFS and Lustre answer


@contextmanager
def waiting_lock(path: Path, reason: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a lock, and tell the user the reason if it has to be waited for.

    `patience`, here as below: seconds after which a holder on another machine counts as dead, where there is no flock.
    """
    with _open(path) as file:
        if _flock(file, fcntl.LOCK_EX, f"waiting: {reason}"):
            with _named(file):
                yield
        else:
            with lock_files.hold(path, reason, patience):
                yield


@contextmanager
def shared_lock(path: Path, reason: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a lock together with others, but not with one who has it by `lock_now`; wait for that one."""
    with _open(path) as file:
        if _flock(file, fcntl.LOCK_SH, f"waiting: {reason}"):
            yield
        else:
            with lock_files.share(path, reason, patience):
                yield


@contextmanager
def lock_now(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a lock alone. Raise Busy if anybody else has it."""
    with _open(path) as file:
        if _flock(file, fcntl.LOCK_EX, None):
            with _named(file):
                yield
        else:
            with lock_files.hold_alone(path, patience):
                yield


def _open(path: Path) -> IO[bytes]:
    """Open a lock file for what is in it, too. An experiment may have put a link or a pipe in its place."""
    remove_unless_plain(path)
    return open_plain(path, "a+b")


def _flock(file: IO[bytes], kind: int, waiting: str | None) -> bool:
    """Lock a file; wait with a message, or raise Busy if that is None. Return False if there is no flock."""
    try:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = visible(file.read(1000).decode(errors="replace"))
            if waiting is None:
                raise Busy(Path(file.name), holder) from None
            notify(f"{waiting} ({holder or 'another process'} holds {file.name})")
            fcntl.flock(file, kind)
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise UserError(f"{file.name} cannot be locked ({error.strerror}): put it on another disk") from None
    return True


@contextmanager
def _named(file: IO[bytes]) -> Iterator[None]:
    """Keep the name of this process in a file, for those who find it locked."""
    _write(file, lock_files.this_process())
    try:
        yield
    finally:
        _write(file, "")


def _write(file: IO[bytes], text: str) -> None:
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())
