"""The ledger: events.jsonl, a study's append-only event log."""

import errno
import hashlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.lab.errors import UserError
from agent.study.events import Event
from agent.study.state import State, derive

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_CHECK = b',"check":"'  # what a line ends with: a checksum of this line and all before it


class BadLedger(UserError):
    """The ledger is damaged elsewhere than in a last line cut short by a crash."""


class Ledger:
    """Appends events to a file, each one on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the ledger; a torn last line is cut off. Raises BadLedger."""
        self.path = path
        self._opened = time.monotonic()
        self._file = path.open("ab", buffering=0)
        self.reload()

    def reload(self) -> None:
        """Take over what is on the disk: an interruption may have come between writing an event and noting it here."""
        content = self.path.read_bytes()
        self._content = content[: content.rfind(b"\n") + 1]
        self.events = parse(self._content, self.path)
        self._file.truncate(len(self._content))

    def append(self, event: Event) -> None:
        """Record what is about to be acted on, or what has just come out."""
        stamp = {"seq": len(self.events), "time": datetime.now(UTC), "elapsed": round(self._elapsed, 3)}
        event = event.model_copy(update=stamp)
        body = event.model_dump_json().encode()[:-1]
        line = body + _CHECK + _checksum(_last_check(self._content), body) + b'"}\n'
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file.fileno())
        self._content += line
        self.events.append(event)

    def restore(self) -> bool:
        """Whether the file was changed behind the driver's back; if so what was recorded is put back, and what was
        found is kept beside it."""
        found = self.path.read_bytes() if self.path.is_file() and not self.path.is_symlink() else None
        if found == self._content:
            return False
        self._file.close()
        if os.path.lexists(self.path):
            self.path.rename(self.path.with_suffix(".tampered"))
        self._file = self.path.open("xb", buffering=0)
        self._file.write(self._content)
        os.fsync(self._file.fileno())
        return True

    @property
    def state(self) -> State:
        return derive(self.events)

    @property
    def seconds(self) -> float:
        """Work on the study until now, that of earlier drivers included as far as they recorded it."""
        return self.state.seconds_before + self._elapsed

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._opened

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """The events of a ledger without its torn last line. Raises BadLedger, naming the line."""
    content = path.read_bytes()
    return parse(content[: content.rfind(b"\n") + 1], path)


def parse(content: bytes, path: Path) -> list[Event]:
    """The events in whole lines. Raises BadLedger, naming the line."""
    events: list[Event] = []
    check = b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        body, _, check_found = line.rpartition(_CHECK)
        check = _checksum(check, body)
        if check_found != check + b'"}':
            raise BadLedger(f"{path} line {number} is not as it was recorded, or a line before it is missing")
        try:
            events.append(_EVENT.validate_json(body + b"}"))
        except ValidationError as error:
            raise BadLedger(f"{path} line {number} is damaged: {error.errors()[0]['msg']}") from None
    return events


def _checksum(before: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(before + body, digest_size=6).hexdigest().encode()


def _last_check(content: bytes) -> bytes:
    return content.rpartition(_CHECK)[2][:-3] if content else b""  # what follows it: "}\n
