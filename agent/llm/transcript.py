"""transcript.jsonl: every request to a language model, on the disk before its answer is acted on."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.append_log import AppendLog, whole_lines
from agent.lab.chat_reply import Kind, Message, TokenUsage
from agent.lab.files import BadFile

TIMES = "Measured here: "  # how a line of a prompt begins that another machine would not repeat
CHECK = "check"  # the purpose of a request that finds out whether the model answers
ANSWER_KINDS: tuple[Kind, ...] = ("refused", "malformed", "truncated")  # failures of an answer that came


class BadTranscript(BadFile):
    """A transcript that is missing, or damaged elsewhere than in a last line cut short by a crash."""


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)


class Failure(_Recorded):
    kind: Kind
    message: str = Field(validation_alias="said", serialization_alias="said")  # what happened and what to do


class Exchange(_Recorded):
    """One request and its outcome."""

    seq: int
    time: datetime
    purpose: str
    model: str
    window: int  # tokens the model can read at once, for which the prompts were written
    messages: list[Message]
    answer: str | None = None  # also one that was cut off or refused
    error: Failure | None = None
    usage: TokenUsage = TokenUsage()
    cost: float | None = None  # dollars; None without prices

    @property
    def answered(self) -> bool:
        """Return True if an answer came, usable or not."""
        return self.error is None or self.error.kind in ANSWER_KINDS

    def asks(self, purpose: str, messages: Sequence[Message]) -> bool:
        """Return True if this is the same question, but for times that were measured."""
        return self.purpose == purpose and timeless(self.messages) == timeless(messages)


class Transcript:
    """The exchanges so far, and the file they are appended to."""

    def __init__(self, path: Path) -> None:
        """Read what is there, and cut off a torn last line. Raise BadFile; BadTranscript, naming a damaged line."""
        self._log = AppendLog(path)
        self.exchanges = _parse(self._log.content, path)

    def append(self, exchange: Exchange) -> None:
        """Record an exchange; it is on the disk when this returns."""
        self._log.restore()  # an experiment may have changed it, and nothing spent may be forgotten
        self._log.append(exchange.model_dump_json(exclude_none=True).encode() + b"\n")
        self.exchanges.append(exchange)


def read(path: Path) -> list[Exchange]:
    """Return the exchanges in the whole lines of a file. Raise BadFile; BadTranscript, naming a damaged line."""
    try:
        return _parse(whole_lines(path), path)
    except OSError as error:
        raise BadTranscript(f"{path}: {error.strerror}") from None


def _parse(content: bytes, path: Path) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            exchanges.append(Exchange.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise BadTranscript(f"{path} line {number} is no exchange: {key} {first['msg']}") from None
    return exchanges


def timeless(messages: Sequence[Message]) -> list[Message]:
    """Return messages without the lines that hold times."""
    return [
        message | {"content": "\n".join(line for line in message["content"].split("\n") if not line.startswith(TIMES))}
        for message in messages
    ]


def outcomes(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return the last attempt at each question, and all that were answered, without the checks."""
    exchanges = [exchange for exchange in exchanges if exchange.purpose != CHECK]
    following = [*exchanges[1:], None]
    return [
        exchange
        for exchange, after in zip(exchanges, following, strict=False)
        if exchange.answered or not (after and after.asks(exchange.purpose, exchange.messages))
    ]
