"""An append-only file of lines, safe against crashes and against tampering: for the ledger and the transcript."""

import errno
import os
from pathlib import Path

from agent.lab.files import write_atomically


class AppendLog:
    """The whole lines of a file, each on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Read the file if there is one, and cut off a torn last line."""
        self.path = path
        self.content = b""
        self.reload()

    def reload(self) -> None:
        """Take over what is on the disk; put back a file that somebody deleted."""
        if self.path.exists():
            self.content = whole_lines(self.path)
            os.truncate(self.path, len(self.content))
        else:
            self.restore()

    def append(self, line: bytes) -> None:
        """Write a line, which ends with a newline, and sync it. Raise OSError if the disk is full."""
        with open(self.path, "ab", buffering=0, opener=_open_without_following) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file.fileno())
        self.content += line

    def restore(self) -> bool:
        """Put back what was recorded if somebody else changed the file, and return True if so.

        The changed file is kept beside it, as `<name>.tampered`.
        """
        readable = self.path.is_file() and not self.path.is_symlink()
        if (self.path.read_bytes() if readable else b"") == self.content:
            return False
        if os.path.lexists(self.path):
            self.path.rename(self.path.with_suffix(".tampered"))
        if self.content:
            write_atomically(self.path, self.content)
        return True


def _open_without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def whole_lines(path: Path) -> bytes:
    """Return the content of a file up to its last newline: what follows was torn by a crash."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
