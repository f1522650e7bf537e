"""What a server's errors mean: a failure with its remedy, and another manner in which the server wants to be asked.

The words that are looked for are those of OpenAI, Azure, Anthropic, Gemini, Mistral, DeepSeek, Groq, Together,
OpenRouter, DashScope, vLLM, TGI, llama.cpp, LM Studio and ollama, as users have reported them.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pydantic_core

from agent.lab.chat_connection import Address
from agent.lab.chat_reply import Reply

EMPTY_ACCOUNT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # error codes
GATEWAY_TIMEOUTS = (504, 524)  # of a proxy that waited, often for 100 s, while the model wrote
SHORTEST_ANSWER = 256  # tokens; no usable answer is shorter
READ = 20_000  # characters of an error in which its meaning is looked for
SHOWN = 300  # characters of an error's message
DIGITS = 12  # of a number of tokens; Python refuses thousands of them

LONGEST_ANSWERS = (
    r"at most (\d+) (?:completion|output) tokens",
    r"max_tokens: \d+ > (\d+)",
    r"max\w*_tokens\b.{0,80}?less than or equal to \D{0,3}(\d+)",
    r"max\w*_tokens\b.{0,40}?\[\d+, ?(\d+)\]",
)
BELOW = r"range is from 1 \(inclusive\) to (\d+) \(exclusive\)"  # Vertex
WINDOWS = (
    r"context limit: \d+ \+ \d+ > (\d+)",
    r"(\d+) maximum context length",
    r"tokens > (\d+) maximum",
    r"tokens allowed \((\d+)\)",
    r"max_new_tokens\W+must be <= (\d+)",
    r"maximum model length of (\d+)",
    r"\bn_ctx\W+(\d+)",
    r"context (?:length|size|window)\D{0,40}?(\d+)",
)
TOO_LONG = re.compile(r"context.length|context.size|context.window|exceed_context|prompt is too long", re.IGNORECASE)
NEEDS_STREAM = re.compile(
    r"stream must be (set to )?true|only supports? (the )?stream|non-?streaming|enable the stream|stream=false"
    r"|streaming is (strongly )?(required|recommended)",
    re.IGNORECASE,
)
NO_STREAM = re.compile(r"\bstream(ing)?\W.{0,20}not support", re.IGNORECASE)
NO_SYSTEM = re.compile(
    r"(system|developer) (role|messages?|prompts?|instructions?) (is |are )?not (supported|enabled|allowed)"
    r"|roles must alternate|only user\b.{0,40}\broles are supported|role'? does not support '?system",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Manner:
    """How a server wants to be asked, as far as its errors have told."""

    limit: str = "max_tokens"  # newer models of OpenAI's have another name for it
    longest: int | None = None  # tokens of an answer; None: it has not said
    window: int | None = None  # tokens of prompt and answer
    stream: bool = False
    may_stream: bool = True
    usage: bool = True  # in a stream, if it is asked for
    system: bool = True  # messages of the system may stand by themselves

    def allows(self, max_tokens: int, tokens_in: int) -> int:
        """Return how long an answer may be, of `max_tokens`, to a prompt of about `tokens_in`.

        A prompt that seems to leave no room is left to the server, which counts better.
        """
        left = self.window - tokens_in if self.window else 0
        room = (max_tokens, self.longest or max_tokens, left if left >= SHORTEST_ANSWER else max_tokens)
        return min(room)

    def settings(self, max_tokens: int) -> dict[str, Any]:
        """Return what goes into a request beside the model and the messages."""
        counted = {"stream_options": {"include_usage": True}} if self.stream and self.usage else {}
        return {self.limit: max_tokens} | ({"stream": True} if self.stream else {}) | counted


@dataclass(frozen=True)
class Fault:
    """An error of a server, wherever it stood."""

    status: int
    message: str  # on one line, without its key: it may hold other secrets
    codes: frozenset[str] = frozenset()
    body: str = ""  # all of it: some say what is wrong elsewhere than in the message
    page: bool = False  # it is no error of a program, but a page for a browser

    @classmethod
    def parse(cls, status: int, body: bytes) -> "Fault":
        """Read the body of a response whose status is an error's."""
        text = body[:READ].decode(errors="replace")
        try:
            content = pydantic_core.from_json(body)
        except ValueError:
            return cls(status, _short(text), body=text, page=text.lstrip()[:1] == "<")
        if isinstance(content, list) and content:  # Gemini's
            content = content[0]
        error = content.get("error", content) if isinstance(content, dict) else content
        return cls.of(error, status)

    @classmethod
    def of(cls, error: Any, status: int | None = None) -> "Fault":
        """Read the object of an error; without a `status`, its code is the status, and 500 if it is no number."""
        body = pydantic_core.to_json(error).decode()[:READ]
        if not isinstance(error, dict):
            return cls(status or 500, _short(error if isinstance(error, str) else body), body=body)
        code = str(error.get("code"))
        if status is None:
            status = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
        message = next((error[name] for name in ("message", "detail") if error.get(name)), body)
        return cls(status, _short(str(message)), frozenset({code, str(error.get("type"))}), body)

    @property
    def longest(self) -> int | None:
        """The most tokens of an answer that the server says it allows, or None."""
        if below := re.search(BELOW, self.body):
            return int(below[1][:DIGITS]) - 1
        return _first(LONGEST_ANSWERS, self.body)

    @property
    def window(self) -> int | None:
        """The tokens of prompt and answer together that the server says it allows, or None."""
        return None if self.longest else _first(WINDOWS, self.body)

    def after(self, manner: Manner, asked: int, tokens_in: int) -> Manner:
        """Return the manner in which the server wants to be asked instead; the same one if it does not say.

        `asked` are the tokens that the answer might have had, `tokens_in` about those of the prompt.
        """
        if "max_completion_tokens" in self.body and manner.limit == "max_tokens" and not (self.longest or self.window):
            return replace(manner, limit="max_completion_tokens")
        if self.longest and SHORTEST_ANSWER <= self.longest < asked:
            return replace(manner, longest=self.longest)
        if self.window and SHORTEST_ANSWER <= self.window - tokens_in < asked:
            return replace(manner, window=self.window)
        if manner.stream and manner.usage and "stream_options" in self.body:
            return replace(manner, usage=False)
        if not manner.stream and manner.may_stream and NEEDS_STREAM.search(self.body):
            return replace(manner, stream=True)
        if manner.stream and NO_STREAM.search(self.body):
            return replace(manner, stream=False, may_stream=False)
        if manner.system and NO_SYSTEM.search(self.body):
            return replace(manner, system=False)
        return manner


def reply_to(fault: Fault, address: Address, setting: str, max_wait: float, headers: Mapping[str, str]) -> Reply:
    """Return the failure that an error means. `setting` is how the user names the model; a server that asks to wait
    for more than `max_wait` seconds has no answer for us now."""
    status, text, host = fault.status, fault.message, address.host
    if status == 402 or not fault.codes.isdisjoint(EMPTY_ACCOUNT):
        reason = f"the account at {host} has nothing left: {text}"
        return Reply("quota", reason, "add to its credit or raise its limit")
    if status in (401, 403):  # the server's text may hold parts of the key
        return Reply("auth", f"{host} does not accept OPENAI_API_KEY (status {status})", "set the right one")
    if "content_filter" in fault.codes:
        return Reply("refused", f"a content filter refused the prompt: {text}")
    if status in (404, 405) or (fault.page and status < 500):
        known = re.search(r"model|deployment", text, re.IGNORECASE) and not fault.page
        remedy = f"check {setting}" if known else "check OPENAI_BASE_URL, which for most servers ends in /v1"
        return Reply("request", f"{address.asked} (status {status}): {text}", remedy)
    if fault.window or TOO_LONG.search(fault.body):
        return Reply("request", f"{host} (status {status}): {text}", f"check {setting}", window=fault.window)
    if not (status in (408, 409, 429) or status >= 500):
        return Reply("request", f"{host} (status {status}): {text}", f"check {setting}")
    kind, wait = "quota" if status == 429 else "connection", _retry_after(headers)
    if wait > max_wait:
        return Reply(kind, f"{host} asks to wait {wait:,.0f} s: {text}", "try again later")
    return Reply(kind, f"{host} (status {status}): {text}", "try again later", wait=wait)


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    """Return the number that the first pattern to match finds, or None."""
    plain = re.sub(r"[`'\"\\]|(?<=\d),(?=\d{3}\b)", "", text)
    found = (re.search(pattern, plain, re.IGNORECASE) for pattern in patterns)
    return next((int(match[1][:DIGITS]) for match in found if match), None)


def _short(text: str) -> str:
    return " ".join(text.split())[:SHOWN]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of Retry-After, 0 without one. RFC 9110, 10.2.3: a number of seconds, or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0
    return max(seconds, 0) if math.isfinite(seconds) else 0
