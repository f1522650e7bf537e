"""An append-only file of lines, safe against crashes and against tampering: for the ledger and the transcript."""

import os
from contextlib import suppress
from pathlib import Path

from agent.lab.files import MIB, BadFile, open_plain, read_plain, remove, write_atomically

MOST_BYTES = 1024 * MIB  # of a log; the transcript of a thousand long prompts


class AppendLog:
    """The whole lines of a file, each on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Read the file if there is one, and cut off a torn last line. Raise BadFile if it is no regular file."""
        self.path = path
        self.content = b""
        self.reload()

    def reload(self) -> None:
        """Take over what is on the disk; put back a file that somebody deleted."""
        try:
            self.content = whole_lines(self.path)
        except FileNotFoundError:
            self.restore()
        else:
            with open_plain(self.path, "r+b") as file:
                file.truncate(len(self.content))

    def append(self, line: bytes) -> None:
        """Write a line, which ends with a newline, and sync it. Raise OSError if the disk is full."""
        with open_plain(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.content += line

    def restore(self) -> bool:
        """Put back what was recorded if somebody else changed the file, and return True if so.

        The changed file is kept beside it, as `<name>.tampered`.
        """
        with suppress(FileNotFoundError, BadFile):
            if read_plain(self.path, MOST_BYTES) == self.content:
                return False
        if os.path.lexists(self.path):
            kept = self.path.with_suffix(".tampered")
            remove(kept)
            self.path.rename(kept)
        elif not self.content:
            return False
        if self.content:
            write_atomically(self.path, self.content)
        return True


def whole_lines(path: Path) -> bytes:
    """Return the content of a file up to its last newline: what follows was torn by a crash."""
    content = read_plain(path, MOST_BYTES)
    return content[: content.rfind(b"\n") + 1]
