"""Replay the answers of a transcript; no network."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from agent.lab.chat_reply import Message
from agent.llm.client import WINDOW, LLMError, answer_of, redacted_messages
from agent.llm.limits import Limits, Spent
from agent.llm.transcript import Exchange, outcomes, read, timeless


class NotYet(LLMError):
    """A question that was recorded further on: runs that are trained at once may end in another order than they did."""


class Replay:
    """The answers and failures of a transcript, in their order."""

    def __init__(self, transcript: Path) -> None:
        """Raise BadTranscript."""
        self._path = transcript
        self._exchanges = read(transcript)
        self._outcomes = outcomes(self._exchanges)
        self._next: int | None = None  # known with the first question, as a study that is resumed begins further on

    @property
    def window(self) -> int:
        return self._exchanges[0].window if self._exchanges else WINDOW

    @property
    def spent(self) -> Spent:
        """Return what had been spent at this point of the recorded conversation."""
        last = self._outcomes[self._next - 1].seq if self._next else -1
        return Spent.sum_of([exchange for exchange in self._exchanges if exchange.seq <= last], Limits())

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """Return the recorded answer. Raise LLMError: the recorded one, or if another question was recorded here."""
        messages = redacted_messages(messages)
        if self._next is None:
            same = (index for index, exchange in enumerate(self._outcomes) if exchange.asks(purpose, messages))
            self._next = next(same, 0)
        last = self._outcomes[self._next - 1] if self._next else None
        if last and not last.answered and last.asks(purpose, messages):
            return answer_of(last)  # repetitions of a question without an answer are not in outcomes
        if self._next == len(self._outcomes):
            raise LLMError("replay", f"{self._path} ends here: {purpose} was asked after its last exchange")
        exchange = self._outcomes[self._next]
        if not exchange.asks(purpose, messages):
            why = f"{self._path} line {exchange.seq + 1} {_difference(exchange, messages, purpose)}"
            later = any(each.asks(purpose, messages) for each in self._outcomes[self._next + 1 :])
            raise NotYet("replay", why) if later else LLMError("replay", why)
        self._next += 1
        return answer_of(exchange)


def _difference(exchange: Exchange, messages: Sequence[Message], purpose: str) -> str:
    """Describe the first difference between a question and the recorded one."""
    if exchange.purpose != purpose:
        return f"holds another conversation: {exchange.purpose} was asked for there, and {purpose} here"
    pairs = itertools.zip_longest(
        timeless(exchange.messages), timeless(messages), fillvalue={"role": "none", "content": ""}
    )
    number, (then, now) = next((number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    if then["role"] != now["role"]:
        return f"holds another {purpose}: message {number} is of {then['role']} there, and of {now['role']} here"
    lines = itertools.zip_longest(then["content"].split("\n"), now["content"].split("\n"), fillvalue="(nothing)")
    at, (old, new) = next((at, pair) for at, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return f"holds another {purpose}: message {number} line {at} is {old[:200]!r} there, and {new[:200]!r} here"
