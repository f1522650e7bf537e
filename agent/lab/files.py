"""Files that others may write too: writes that appear whole, reading and removal without following links."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from agent.lab.errors import UserError

MIB = 2**20
PATHS = (".", "~", os.sep)  # how a path begins that cannot be the name of anything else


class BadFile(UserError):
    """The error of a file that cannot be read: not a regular file, too large, or damaged."""


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a file, of at most `most` bytes, that an experiment or a copied study may have planted.

    A link is not followed and a pipe not waited for. Raise BadFile for either, for whatever else is not a regular
    file, and for a larger one; FileNotFoundError if there is none.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise BadFile(f"{path} is larger than {most / MIB:g} MiB and not read: remove it, or put back what was there")
    return content


def read_plain_text(path: Path, most: int = 16 * MIB) -> str:
    """Return the UTF-8 text of a file as `read_plain` does. Raise BadFile also if it is no UTF-8."""
    try:
        return read_plain(path, most).decode()
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def open_plain(path: Path, mode: str = "rb", *, only_name: bool = False) -> IO[bytes]:
    """Open a regular file for bytes: no link is followed, no pipe or device waited for.

    With `only_name`, a file that has another name too, by a hard link, is refused. Raise BadFile, or
    FileNotFoundError.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and not (only_name and status.st_nlink > 1):
            return descriptor
        os.close(descriptor)
        raise _not_regular(path)

    try:
        return open(path, mode, opener=opener)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _not_regular(path) from None
        raise BadFile(f"{path} cannot be opened: {error.strerror}") from None


def _not_regular(path: Path) -> BadFile:
    return BadFile(f"{path} is not a regular file and not read: remove it, or put back what was there")


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
        if not partial.is_dir():
            remove_unless_plain(path)  # a file does not take the place of a directory by itself
        partial.replace(path)
    finally:
        remove(partial)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that appears when all of it is on the disk."""
    with atomic_path(path) as partial, partial.open("xb") as file:  # never through a link
        file.write(content if isinstance(content, bytes) else content.encode())


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


def remove_unless_plain(path: Path) -> None:
    """Delete what an experiment put in the place of a file that we write: a link, a pipe, a directory."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        remove(path)


def empty_folder(path: Path) -> Path:
    """Put an empty folder in the place of whatever is at `path`, and return it."""
    remove(path)
    path.mkdir()
    return path


def locate(name: str) -> Path:
    """Return the path that a user's name stands for. Raises UserError for ~ of a user who does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{name} is in the home of no user of this machine: give the whole path") from None


def absolute_if_there(name: str) -> str:
    """Return the absolute path, without links, of what a user names if it is there, else the name.

    Raises UserError for a path that is not there, and for no name at all, which would stand for where the user is.
    """
    if not name.strip():
        raise UserError("the name of an SAE is empty: give a directory, or a name of the hub")
    path = locate(name)
    if not exists(path) and name.startswith(PATHS):
        raise UserError(f"there is no directory {name}")
    return str(path.resolve()) if exists(path) else name


def exists(path: Path) -> bool:
    """Return True if there is a file or a folder. Raises UserError if the system does not say."""
    try:
        return path.exists()
    except OSError as error:  # the name is too long, or lies in a folder of others
        raise UserError(f"{path} cannot be read ({error.strerror}): give another path, or mend that") from None
