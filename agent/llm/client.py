"""A language model that is asked within limits of tokens and dollars, with every exchange in a transcript."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from agent.lab.chat import Message, Reply, Server, TokenUsage, attempts, check_key, rough_prompt_tokens
from agent.lab.errors import UserError
from agent.llm.redact import redact
from agent.llm.transcript import ANSWER_KINDS, Exchange, Failure, Kind, Transcript, outcomes

WINDOW = 128_000  # tokens, of a model that is not in the table
WINDOWS = {"gpt-4.1": 1_000_000, "gpt-5": 400_000, "o1": 200_000, "o3": 200_000, "o4": 200_000, "claude": 200_000}
LONGEST_ANSWER = 16_384  # tokens, thinking included
SHORTEST_ANSWER = 256  # tokens; no usable answer is shorter
TIMEOUT = 600.0  # seconds for one answer
PAUSES = (1.0, 4.0, 16.0, 60.0)  # seconds before each retry, if the server asks for no other
MAX_WAIT = 600.0  # seconds that a server may ask to wait

RAISE_LIMITS = "agent resume continues the study with a larger --max-llm-tokens or --max-cost"


class LLMError(UserError):
    """The lack of a usable answer. The message says what happened and what to do."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def answered(self) -> bool:
        """Return True for an unusable answer: another prompt may help. Otherwise the user has to act."""
        return self.kind in ANSWER_KINDS


@dataclass(frozen=True)
class Limits:
    """The limits of everything that is spent."""

    max_tokens: int | None = None  # prompts and answers together
    max_cost: float | None = None  # dollars
    prices: tuple[float, float] | None = None  # dollars per million tokens of prompts and of answers

    def __post_init__(self) -> None:
        """Raise UserError if a number is no dollars, or a cost is limited without prices."""
        if any(not 0 <= dollars < math.inf for dollars in (self.max_cost or 0, *(self.prices or ()))):
            raise UserError("--max-cost, --price-in and --price-out are dollars: give numbers from 0 on")
        if self.max_cost is not None and self.prices is None:
            raise UserError(
                "--max-cost needs the model's prices: give --price-in and --price-out, in dollars per million tokens"
            )

    def cost(self, usage: TokenUsage) -> float | None:
        """Return dollars, or None without prices."""
        if self.prices is None:
            return None
        return (usage.tokens_in * self.prices[0] + usage.tokens_out * self.prices[1]) / 1e6

    def longest_answer(self, spent: "Spent", tokens_in: int) -> int:
        """Return how many tokens an answer to a prompt of `tokens_in` may have."""
        room: list[float] = [LONGEST_ANSWER]
        if self.max_tokens is not None:
            room.append(self.max_tokens - spent.tokens - tokens_in)
        if self.max_cost is not None and self.prices:
            left = self.max_cost - (spent.cost or 0) - tokens_in * self.prices[0] / 1e6
            room.append(left * 1e6 / self.prices[1] if self.prices[1] else math.copysign(math.inf, left))
        return math.floor(max(min(room), 0))


@dataclass(frozen=True)
class Spent:
    """The sum of some exchanges."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None  # dollars; None without prices

    @classmethod
    def sum_of(cls, exchanges: Sequence[Exchange], limits: Limits) -> "Spent":
        """Sum exchanges; those recorded without a cost get the prices of `limits`."""
        costs = [limits.cost(e.usage) if e.cost is None else e.cost for e in exchanges]
        known = [cost for cost in costs if cost is not None]
        return cls(
            calls=len(exchanges),
            tokens_in=sum(exchange.usage.tokens_in for exchange in exchanges),
            tokens_out=sum(exchange.usage.tokens_out for exchange in exchanges),
            cost=sum(known) if len(known) == len(costs) else None,
        )

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class ChatModel(Protocol):
    """A language model, or its replay."""

    @property
    def window(self) -> int:
        """Return the tokens the model can read at once, its answer included."""
        ...

    @property
    def spent(self) -> Spent: ...

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """Return the model's answer, recorded before. Raise LLMError."""
        ...


class Client:
    """A model of an OpenAI-compatible server: OPENAI_API_KEY and, unless it is OpenAI's own, OPENAI_BASE_URL.

    What was spent is summed over the transcript, so limits hold for a study through all its drivers; a request that
    was under way when a driver ended is not in it. Answers that an earlier driver got and did not act on are used
    again.
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
        """Raise LLMError without a usable key, BadTranscript."""
        if problem := check_key(os.environ.get("OPENAI_API_KEY")):
            raise LLMError("auth", problem.message)
        name = model.rpartition("/")[2]
        known = (size for start, size in WINDOWS.items() if name.startswith(start))
        self.model, self.window = model, window or next(known, WINDOW)
        self._limits, self._sleep = limits, sleep
        self._server = Server(model, os.environ, setting=f"--llm {model}", timeout=timeout, max_wait=MAX_WAIT)
        self._transcript = Transcript(transcript)
        self._earlier: list[Exchange] | None = None  # of another driver, from our first question on

    @property
    def spent(self) -> Spent:
        return Spent.sum_of(self._transcript.exchanges, self._limits)

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """Return the model's answer, after retries if they may help. Raise LLMError."""
        messages = redacted_messages(messages)
        exchange = self._answered_before(messages, purpose)
        if not exchange:
            for reply in attempts(lambda: self._request(messages), PAUSES, self._sleep):
                exchange = self._record(messages, purpose, reply)
        assert exchange
        return answer_of(exchange)

    def _record(self, messages: list[Message], purpose: str, reply: Reply) -> Exchange:
        exchange = Exchange(
            seq=len(self._transcript.exchanges),
            time=datetime.now(UTC),
            purpose=purpose,
            model=self.model,
            window=self.window,
            messages=messages,
            answer=None if reply.answer is None else _redacted(reply.answer),
            error=Failure(kind=reply.kind, message=_redacted(reply.message)) if reply.kind else None,
            usage=reply.usage,
            cost=self._limits.cost(reply.usage),
        )
        self._transcript.append(exchange)
        return exchange

    def _answered_before(self, messages: Sequence[Message], purpose: str) -> Exchange | None:
        """Return the answer of an earlier driver, while its last questions are asked again in their order."""
        if self._earlier is None:
            past = [exchange for exchange in outcomes(self._transcript.exchanges) if exchange.model == self.model]
            same = [index for index, exchange in enumerate(past) if exchange.asks(purpose, messages)]
            self._earlier = past[same[-1] :] if same else []
        if self._earlier and self._earlier[0].answered and self._earlier[0].asks(purpose, messages):
            return self._earlier.pop(0)
        self._earlier = []
        return None

    def _request(self, messages: Sequence[Message]) -> Reply:
        """Make one request, if the limits and the model's window allow it."""
        tokens_in = rough_prompt_tokens(messages)
        if self.window - tokens_in < SHORTEST_ANSWER:
            reason = f"a prompt of about {tokens_in:,} tokens leaves no room for an answer in the model's window"
            return Reply("request", f"{reason} of {self.window:,}", "if it is larger, give it with --llm-window")
        allowed = self._limits.longest_answer(self.spent, tokens_in)
        if allowed < SHORTEST_ANSWER:
            spent, cost = self.spent, "" if self.spent.cost is None else f" and ${self.spent.cost:.2f}"
            reason = f"a prompt of about {tokens_in:,} tokens is too much after {spent.tokens:,} tokens{cost}"
            return Reply("budget", reason, RAISE_LIMITS)
        longest = min(LONGEST_ANSWER, self.window - tokens_in)
        reply = self._server.complete(messages, min(allowed, longest))
        if reply.kind == "truncated" and allowed < longest:
            return replace(reply, kind="budget", reason=f"{reply.reason}, as no more were left", remedy=RAISE_LIMITS)
        return reply


def answer_of(exchange: Exchange) -> str:
    """Return the recorded answer. Raise LLMError with the recorded failure."""
    if exchange.error:
        raise LLMError(exchange.error.kind, exchange.error.message)
    assert exchange.answer is not None
    return exchange.answer


def redacted_messages(messages: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": _redacted(message["content"])} for message in messages]


def _redacted(text: str) -> str:
    """Remove secrets, and what no file can hold: half a character, as JSON can escape it."""
    return redact(text.encode(errors="replace").decode())
