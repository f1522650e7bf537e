"""transcript.jsonl: every exchange with a language model, on the disk before its answer is acted on."""

import errno
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.lab.errors import UserError

Message = dict[str, str]  # role: system, user or assistant; content

# quota: nothing is granted now; auth: the key is not accepted; request: the server takes no such request; connection,
# timeout: no answer came; budget: our own limits; replay: another conversation than the one recorded; the other three
# are what became of an answer.
Kind = Literal[
    "quota", "auth", "request", "connection", "timeout", "budget", "replay", "refused", "malformed", "truncated"
]
OF_AN_ANSWER: tuple[Kind, ...] = ("refused", "malformed", "truncated")


class BadTranscript(UserError):
    """A transcript is missing, or damaged elsewhere than in a last line cut short by a crash."""


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Usage(_Recorded):
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False  # the server did not say


class Failure(_Recorded):
    kind: Kind
    said: str  # what happened and what to do


class Exchange(_Recorded):
    """One request and what became of it."""

    seq: int
    time: datetime
    purpose: str
    model: str
    window: int  # tokens the model can read at once, as the prompts were made for
    messages: list[Message]
    answer: str | None = None  # also one that was cut off or could not be used
    error: Failure | None = None
    usage: Usage = Usage()
    cost: float | None = None  # dollars; None: prices were not given

    @property
    def answered(self) -> bool:
        """Whether the model had its say: what came of that is not to be had again by asking again."""
        return self.error is None or self.error.kind in OF_AN_ANSWER

    def asks(self, purpose: str, messages: Sequence[Message]) -> bool:
        return self.purpose == purpose and self.messages == list(messages)


class Transcript:
    """The exchanges so far, and the file they are appended to."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a torn last line is cut off. Raises BadTranscript."""
        self.path = path
        self._content = b""
        if path.exists():
            content = _content(path)
            self._content = content[: content.rfind(b"\n") + 1]
            os.truncate(path, len(self._content))
        self.exchanges = _parse(self._content, path)

    def append(self, exchange: Exchange) -> None:
        """Record an exchange; it is on the disk when this returns."""
        self._restore()
        line = exchange.model_dump_json(exclude_none=True).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file.fileno())
        self._content += line
        self.exchanges.append(exchange)

    def _restore(self) -> None:
        """Put back what was recorded where an experiment has changed it, so that nothing spent is forgotten."""
        found = self.path.read_bytes() if self.path.is_file() and not self.path.is_symlink() else b""
        if found == self._content:
            return
        if os.path.lexists(self.path):
            self.path.rename(self.path.with_suffix(".tampered"))
        self.path.write_bytes(self._content)


def read(path: Path) -> list[Exchange]:
    """The exchanges in the whole lines of a file. Raises BadTranscript, naming the line."""
    return _parse(_content(path), path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadTranscript(f"{path}: {error.strerror}") from None


def _parse(content: bytes, path: Path) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            exchanges.append(Exchange.model_validate_json(line))
        except ValidationError as error:
            what = error.errors()[0]
            place = ".".join(map(str, what["loc"]))
            raise BadTranscript(f"{path} line {number} is no exchange: {place} {what['msg']}") from None
    return exchanges


def outcomes(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """What a conversation came to: an attempt that brought no answer does not count where the same was asked again."""
    following = [*exchanges[1:], None]
    return [
        exchange
        for exchange, after in zip(exchanges, following, strict=False)
        if exchange.answered or not (after and after.asks(exchange.purpose, exchange.messages))
    ]
