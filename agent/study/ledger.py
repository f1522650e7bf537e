"""The ledger: events.jsonl, a study's append-only event log. Each line ends with a checksum of all lines so far."""

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.append_log import AppendLog, whole_lines
from agent.lab.files import BadFile
from agent.study.budget import Budget
from agent.study.events import Event
from agent.study.state import State, apply, derive

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_CHECK = b',"check":"'
_END_BYTES = 100  # more than the checksum takes at the end of a line


class BadLedger(BadFile):
    """The ledger is damaged elsewhere than in a last line cut short by a crash."""


class Ledger:
    """Appends events to a file, each one on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open or create the ledger and cut off a torn last line. Raise BadFile; BadLedger, naming a damaged line."""
        self._opened = time.monotonic()
        self._log = AppendLog(path)
        self.events = parse(self._log.content, path)
        self._state: State | None = None  # of the first `_applied` events
        self._applied = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self._log.path

    def reload(self) -> None:
        """Take over what is on the disk: an interruption may have come between writing an event and noting it here."""
        self._log.reload()
        self.events = parse(self._log.content, self.path)
        self._state = None

    def append(self, event: Event) -> None:
        """Record what is about to be acted on, or what has just come out."""
        stamp = {"seq": len(self.events), "time": datetime.now(UTC), "elapsed": round(self._elapsed, 3)}
        event = event.model_copy(update=stamp)
        body = event.model_dump_json().encode()[:-1]
        self._log.append(body + _CHECK + _checksum(_last_check(self._log.content), body) + b'"}\n')
        self.events.append(event)

    def restore(self) -> bool:
        """Undo what somebody else did to the file; return True if there was anything to undo."""
        return self._log.restore()

    @property
    def state(self) -> State:
        """The study's state, derived from the events. It changes when another is appended."""
        if self._state is None:
            self._state, self._applied = derive(self.events), len(self.events)
        for event in self.events[self._applied :]:
            apply(self._state, event)
            self._applied += 1
        return self._state

    @property
    def budget(self) -> Budget:
        """The study's limits, after the work done until now."""
        return Budget(self.state, self.seconds)

    @property
    def seconds(self) -> float:
        """Work on the study until now, that of earlier drivers included as far as they recorded it."""
        return self.state.seconds_before + self._elapsed

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._opened


def read(path: Path) -> list[Event]:
    """Return the events of a ledger without its torn last line. Raise BadFile; BadLedger, naming the line."""
    return parse(whole_lines(path), path)


def parse(content: bytes, path: Path) -> list[Event]:
    """Return the events in whole lines. Raise BadLedger, naming the line."""
    events: list[Event] = []
    check = b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        body, _, recorded = line.rpartition(_CHECK)
        check = _checksum(check, body)
        if recorded != check + b'"}':
            raise BadLedger(f"{path} line {number} is not as it was recorded, or a line before it is missing")
        try:
            events.append(_EVENT.validate_json(body + b"}"))
        except ValidationError as error:
            raise BadLedger(f"{path} line {number} is damaged: {error.errors()[0]['msg']}") from None
    return events


def _checksum(before: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(before + body, digest_size=6).hexdigest().encode()


def _last_check(content: bytes) -> bytes:
    return content[-_END_BYTES:].rpartition(_CHECK)[2][:-3] if content else b""  # what follows it: "}\n
