"""A language model that is asked within limits of tokens and dollars, with every exchange in a transcript."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from agent.lab.chat import attempts
from agent.lab.chat_errors import SHORTEST_ANSWER
from agent.lab.chat_reply import Message, Reply, TokenUsage, rough_prompt_tokens
from agent.lab.errors import UserError
from agent.llm.limits import Limits, Spent
from agent.llm.redact import redact
from agent.llm.transcript import ANSWER_KINDS, CHECK, Exchange, Failure, Kind, Transcript, outcomes

WINDOW = 128_000  # tokens, of a model that is not in the table
WINDOWS = {"gpt-4.1": 1_000_000, "gpt-5": 400_000, "o1": 200_000, "o3": 200_000, "o4": 200_000, "claude": 200_000}
LONGEST_ANSWER = 16_384  # tokens, thinking included, unless the user or the server says another number
PAUSES = (1.0, 4.0, 16.0, 60.0)  # seconds before each retry, if the server asks for no other
# A server that counted less than this share of what we estimate has not read all of a prompt of so many tokens. With
# GPT-4o's tokenizer and GPT-4's the share is 0.7 to 1.1 for experiment.py, the prompts and the notes.
READ_SHARE, LONG_PROMPT = 0.4, 2000

PRINT = partial(print, flush=True)
RAISE_LIMITS = "agent resume continues the study with a larger --max-llm-tokens or --max-cost"
ARE_YOU_THERE: list[Message] = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Are you there?"},
]


class LLMError(UserError):
    """The lack of a usable answer. The message says what happened and what to do."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def answered(self) -> bool:
        """Return True for an unusable answer: another prompt may help. Otherwise the user has to act."""
        return self.kind in ANSWER_KINDS


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


class Asked(Protocol):
    """Whoever answers: a server or a program."""

    @property
    def model(self) -> str: ...

    @property
    def longest(self) -> int | None:
        """Return the most tokens of an answer that it allows, as far as it has said."""
        ...

    def complete(self, messages: Sequence[Message], max_tokens: int, above: int = 0) -> Reply:
        """Ask once, for an answer of at most `max_tokens`, and of more than `above`, after which one was cut off."""
        ...


class Client:
    """A language model whose every answer is recorded, with what it cost.

    What was spent is summed over the transcript, so limits hold for a study through all its drivers; a request that
    was under way when a driver ended is not in it. Answers that an earlier driver got and did not act on are used
    again.
    """

    def __init__(
        self,
        asked: Asked,
        transcript: Path,
        limits: Limits,
        *,
        window: int | None = None,
        answer: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = PRINT,
    ) -> None:
        """`window` and `answer` are in tokens; None: by the model's name, and LONGEST_ANSWER. Raise BadTranscript."""
        name = asked.model.rpartition("/")[2]
        known = (size for start, size in WINDOWS.items() if name.startswith(start))
        self.model, self.window = asked.model, window or next(known, WINDOW)
        self._asked, self._answer = asked, answer or LONGEST_ANSWER
        self._limits, self._sleep, self._say = limits, sleep, say
        self._transcript = Transcript(transcript)
        self._earlier: list[Exchange] | None = None  # of another driver, from our first question on
        self._warned = False

    @property
    def spent(self) -> Spent:
        return Spent.sum_of(self._transcript.exchanges, self._limits)

    def check(self) -> None:
        """Ask for a word, to find out before any work what a question would find out. Raise LLMError."""
        if self._limits.longest_answer(self.spent, rough_prompt_tokens(ARE_YOU_THERE)) >= SHORTEST_ANSWER:
            answer_of(self._converse(ARE_YOU_THERE, CHECK, self._answer, pauses=PAUSES[:2]))

    def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """Return the model's answer, after retries if they may help. Raise LLMError."""
        messages = redacted_messages(messages)
        exchange = self._answered_before(messages, purpose)
        if not exchange:
            exchange = self._converse(messages, purpose, self._answer)
            if exchange.error and exchange.error.kind == "short":
                had = math.floor(min(self._answer, self._room(rough_prompt_tokens(messages))))
                exchange = self._converse(messages, purpose, 2 * self._answer, above=had)
        return answer_of(exchange)

    def _converse(
        self,
        messages: list[Message],
        purpose: str,
        longest: int,
        above: int = 0,
        pauses: Sequence[float] = PAUSES,
    ) -> Exchange:
        """Ask, again where a retry may help, and record each request."""
        replies = attempts(lambda: self._request(messages, longest, above), pauses, self._sleep)
        *_, last = [self._record(messages, purpose, reply) for reply in replies]
        return last

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

    def _request(self, messages: Sequence[Message], longest: int, above: int) -> Reply:
        """Make one request, if the limits and the model's window allow it."""
        tokens_in = rough_prompt_tokens(messages)
        if self.window - tokens_in < SHORTEST_ANSWER:
            reason = f"a prompt of about {tokens_in:,} tokens leaves no room for an answer in the model's window"
            return Reply("request", f"{reason} of {self.window:,}", "if it is larger, give it with --llm-window")
        allowed = self._limits.longest_answer(self.spent, tokens_in)
        if allowed < SHORTEST_ANSWER:
            spent, cost = self.spent, "" if self.spent.cost is None else f" and ${self.spent.cost:.2f}"
            reason = f"a prompt of about {tokens_in:,} tokens is too much after {spent.in_words}{cost}"
            return Reply("budget", reason, RAISE_LIMITS)
        most = math.floor(min(longest, allowed, self._room(tokens_in)))
        reply = self._asked.complete(messages, most, above)
        self._warn_of_cut_prompt(tokens_in, reply.usage)
        if reply.window:
            return replace(reply, remedy=f"begin a study with --llm-window {reply.window}")
        if reply.kind == "truncated":
            return self._cut_off(reply, longest, above, allowed, tokens_in)
        return reply

    def _cut_off(self, reply: Reply, longest: int, above: int, allowed: float, tokens_in: int) -> Reply:
        """Return what an answer means that was cut off: whose limit it was, and whether a longer one can be had."""
        room = self._room(tokens_in)
        if allowed < min(longest, room):
            return replace(reply, kind="budget", reason=f"{reply.reason}, as no more were left", remedy=RAISE_LIMITS)
        left = self._limits.longest_answer(self.spent.plus(reply.usage, self._limits.cost(reply.usage)), tokens_in)
        more = math.floor(min(2 * longest, room, left))
        if above or more < min(longest, room) + SHORTEST_ANSWER:
            return reply
        return replace(reply, kind="short", remedy=f"asked again for one of up to {more:,}")

    def _room(self, tokens_in: int) -> float:
        """Return how long an answer can be, whatever it may cost."""
        return min(self.window - tokens_in, self._asked.longest or math.inf)

    def _warn_of_cut_prompt(self, tokens_in: int, usage: TokenUsage) -> None:
        """Say once that a server has read much less than it was sent."""
        if self._warned or usage.estimated or tokens_in < LONG_PROMPT or not usage.tokens_in:
            return
        if usage.tokens_in < READ_SHARE * tokens_in:
            self._warned = True
            self._say(
                f"the server counted {usage.tokens_in:,} tokens in a prompt of about {tokens_in:,}: it seems to have "
                "cut it. Raise its context (ollama: OLLAMA_CONTEXT_LENGTH or num_ctx), or give it as --llm-window"
            )


def sleep_aloud(seconds: float) -> None:
    """Sleep before another attempt, and say so."""
    print(f"no answer; asking again in {seconds:g} s", flush=True)
    time.sleep(seconds)


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
