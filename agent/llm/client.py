"""The language model: one way to ask it, within limits of tokens and dollars, and its replay from a transcript."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from agent.lab.errors import UserError
from agent.llm.completion import Reply, Server, rough_prompt_tokens
from agent.llm.redact import redact
from agent.llm.transcript import OF_AN_ANSWER, Exchange, Failure, Kind, Message, Transcript, Usage, outcomes

WINDOW = 128_000  # tokens, of a model that is not in the table
WINDOWS = {"gpt-4.1": 1_000_000, "gpt-5": 400_000, "o1": 200_000, "o3": 200_000, "o4": 200_000, "claude": 200_000}
LONGEST_ANSWER = 16_384  # tokens, thinking included
SHORTEST_ANSWER = 256  # tokens; where less is left, nothing that could be used would come
TIMEOUT = 600.0  # seconds for one answer
PAUSES = (1.0, 4.0, 16.0, 60.0)  # seconds before the next try, where the server does not say

RAISE = "begin a study with a larger --max-llm-tokens or --max-cost"


class LLMError(UserError):
    """No answer that could be used. The message says what happened and what to do."""

    def __init__(self, kind: Kind, said: str) -> None:
        super().__init__(said)
        self.kind = kind

    @property
    def answered(self) -> bool:
        """Whether it lies with what the model said (refused, malformed, truncated), so that asking otherwise may help;
        else nobody could be asked, and whatever needs an answer has to wait for the user."""
        return self.kind in OF_AN_ANSWER


@dataclass(frozen=True)
class Limits:
    """What may be spent in all. Raises UserError where a cost is limited that cannot be known."""

    max_tokens: int | None = None  # read and written together
    max_cost: float | None = None  # dollars
    prices: tuple[float, float] | None = None  # dollars per million tokens, read and written

    def __post_init__(self) -> None:
        if any(not 0 <= dollars < math.inf for dollars in (self.max_cost or 0, *(self.prices or ()))):
            raise UserError("--max-cost, --price-in and --price-out are dollars: give numbers from 0 on")
        if self.max_cost is not None and self.prices is None:
            raise UserError(
                "--max-cost needs the model's prices: give --price-in and --price-out, in dollars per million tokens"
            )

    def cost(self, usage: Usage) -> float | None:
        """Dollars; None where the prices are not known."""
        if self.prices is None:
            return None
        return (usage.tokens_in * self.prices[0] + usage.tokens_out * self.prices[1]) / 1e6

    def longest_answer(self, spent: "Spent", tokens_in: int) -> int:
        """How many tokens an answer to a prompt may have."""
        room: list[float] = [LONGEST_ANSWER]
        if self.max_tokens is not None:
            room.append(self.max_tokens - spent.tokens - tokens_in)
        if self.max_cost is not None and self.prices:
            left = self.max_cost - (spent.cost or 0) - tokens_in * self.prices[0] / 1e6
            room.append(left * 1e6 / self.prices[1] if self.prices[1] else math.copysign(math.inf, left))
        return math.floor(max(min(room), 0))


@dataclass(frozen=True)
class Spent:
    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None  # dollars; None where prices were not given

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class Asker(Protocol):
    @property
    def window(self) -> int:
        """Tokens the model can read at once, its answer included."""
        ...

    @property
    def spent(self) -> Spent: ...

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """The model's answer, recorded before it is returned. Raises LLMError."""
        ...


class Client:
    """Asks an OpenAI-compatible server: OPENAI_API_KEY and, unless it is OpenAI's own, OPENAI_BASE_URL.

    What was spent is summed over the transcript, so limits hold for a study through all its drivers. A call that was
    under way when a driver ended is not in it. What a driver was answered and had not acted on is not asked again.
    """

    def __init__(
        self,
        model: str,
        transcript: Path,
        limits: Limits,
        *,
        window: int | None = None,
        timeout: float = TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises LLMError where there is no key, BadTranscript."""
        _check_key(os.environ.get("OPENAI_API_KEY", ""))
        name = model.rpartition("/")[2]
        known = (size for start, size in WINDOWS.items() if name.startswith(start))
        self.model, self.window = model, window or next(known, WINDOW)
        self._limits, self._sleep = limits, sleep
        self._server = Server(model, timeout)
        self._transcript = Transcript(transcript)
        self._earlier: list[Exchange] | None = None  # what another driver was answered, from our first question on

    @property
    def spent(self) -> Spent:
        return _spent(self._transcript.exchanges, self._limits)

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """The model's answer. Waits and tries again where that may help. Raises LLMError."""
        messages = _cleaned(messages)
        if earlier := self._answered_before(messages, purpose):
            return _outcome(earlier)
        for pause in (*PAUSES, None):
            reply = self._try(messages)
            exchange = Exchange(
                seq=len(self._transcript.exchanges),
                time=datetime.now(UTC),
                purpose=purpose,
                model=self.model,
                window=self.window,
                messages=messages,
                answer=None if reply.answer is None else _clean(reply.answer),
                error=Failure(kind=reply.kind, said=_clean(reply.said)) if reply.kind else None,
                usage=reply.usage,
                cost=self._limits.cost(reply.usage),
            )
            self._transcript.append(exchange)
            if pause is None or reply.wait is None:
                break
            self._sleep(reply.wait or pause)
        return _outcome(exchange)

    def _answered_before(self, messages: Sequence[Message], purpose: str) -> Exchange | None:
        """What an earlier driver was answered: its last questions, as long as they are asked again in their order."""
        if self._earlier is None:
            past = outcomes(self._transcript.exchanges)
            same = [place for place, exchange in enumerate(past) if exchange.asks(purpose, messages)]
            self._earlier = past[same[-1] :] if same else []
        if self._earlier and self._earlier[0].answered and self._earlier[0].asks(purpose, messages):
            return self._earlier.pop(0)
        self._earlier = []
        return None

    def _try(self, messages: Sequence[Message]) -> Reply:
        """One request, if the limits and the model's window allow it."""
        tokens_in = rough_prompt_tokens(messages)
        if self.window - tokens_in < SHORTEST_ANSWER:
            window = f"the model's window of {self.window:,}: if it is larger, give it with --llm-window"
            return Reply("request", f"a prompt of about {tokens_in:,} tokens leaves no room for an answer in {window}")
        allowed = self._limits.longest_answer(self.spent, tokens_in)
        if allowed < SHORTEST_ANSWER:
            spent, cost = self.spent, "" if self.spent.cost is None else f" and ${self.spent.cost:.2f}"
            prompt = f"a prompt of about {tokens_in:,} tokens is too much after {spent.tokens:,} tokens{cost}"
            return Reply("budget", f"{prompt}: {RAISE}")
        most = min(LONGEST_ANSWER, self.window - tokens_in)
        reply = self._server.complete(messages, min(allowed, most))
        if reply.kind == "truncated" and allowed < most:
            return replace(reply, kind="budget", said=f"{reply.said}, as no more were left: {RAISE}")
        return reply


def _check_key(key: str) -> None:
    if not key:
        raise LLMError("auth", "OPENAI_API_KEY is not set: set it to your key; for a server without keys, to any word")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise LLMError(
            "auth", "OPENAI_API_KEY holds a space, a line break or another character that no key has: set it"
        )


def _outcome(exchange: Exchange) -> str:
    if exchange.error:
        raise LLMError(exchange.error.kind, exchange.error.said)
    assert exchange.answer is not None
    return exchange.answer


def _spent(exchanges: Sequence[Exchange], limits: Limits) -> Spent:
    used = [exchange.usage for exchange in exchanges]
    costs = [limits.cost(e.usage) if e.cost is None else e.cost for e in exchanges]
    known = [cost for cost in costs if cost is not None]
    return Spent(
        calls=len(exchanges),
        tokens_in=sum(usage.tokens_in for usage in used),
        tokens_out=sum(usage.tokens_out for usage in used),
        cost=sum(known) if len(known) == len(costs) else None,
    )


def _cleaned(messages: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": _clean(message["content"])} for message in messages]


def _clean(text: str) -> str:
    """Without secrets, and without what no file can hold: half a character, as JSON can escape it."""
    return redact(text.encode(errors="replace").decode())
