"""One request to an OpenAI-compatible server, and what its response means."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic import BaseModel, NonNegativeInt, ValidationError

from agent.llm.transcript import Kind, Message, Usage

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

LONGEST_BODY = 16 * 2**20  # bytes
LONGEST_PAUSE = 600.0  # seconds; a server that asks for more has no answer for us now
EMPTY_ACCOUNT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # codes of one


@dataclass(frozen=True)
class Reply:
    """What became of a request."""

    kind: Kind | None  # None: answered
    said: str = ""  # what happened and what to do, where there is a kind
    answer: str | None = None  # also one that was cut off or could not be used
    usage: Usage = field(default_factory=Usage)
    wait: float | None = None  # seconds before another try, 0 where the server does not say; None: it would not help


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Counted(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


def rough_tokens(text: str) -> int:
    """About how many tokens a text has: one for 3 bytes. English has one for about 4, code one for about 3."""
    return len(text.encode(errors="replace")) // 3 + 1


def rough_prompt_tokens(messages: Sequence[Message]) -> int:
    """Likewise of a whole prompt, with 4 for the role and the delimiters of each message."""
    return sum(rough_tokens(message["content"]) + 4 for message in messages)


class Server:
    """The server at OPENAI_BASE_URL, or OpenAI's own, with OPENAI_API_KEY."""

    def __init__(self, model: str, timeout: float) -> None:
        self._model = model
        self._timeout = timeout  # seconds for the whole of an answer
        self._limit = "max_tokens"  # newer models of OpenAI's have another name for it, and say so

    def complete(self, messages: Sequence[Message], longest_answer: int) -> Reply:
        """Ask once, for an answer of at most so many tokens."""
        import httpx2  # what it uses, and lets through where a response breaks off
        import openai  # here because it takes a third of a second, and most commands ask nothing

        tokens_in = rough_prompt_tokens(messages)
        try:
            body = self._send(messages, longest_answer)
        except openai.APIStatusError as error:
            if "max_completion_tokens" in error.message and self._limit == "max_tokens":
                self._limit = "max_completion_tokens"
                return self.complete(messages, longest_answer)
            return _failed(error, self._model)
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            return self._unanswered(error.__cause__ or error, tokens_in, longest_answer)
        except (openai.OpenAIError, httpx2.InvalidURL) as error:
            return Reply("request", f"no request could be made: {error}: see to OPENAI_BASE_URL")
        return _read(body, tokens_in)

    def _send(self, messages: Sequence[Message], longest_answer: int) -> bytes:
        """The body of a response with status 200. It is read here, since the client takes any text for a completion and
        has a time-out for each piece of it, not for the whole."""
        deadline = time.monotonic() + self._timeout
        sent: Any = list(messages)
        with self._client.chat.completions.with_streaming_response.create(
            model=self._model, messages=sent, extra_body={self._limit: longest_answer}
        ) as response:
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > LONGEST_BODY:
                    break
        return body

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(max_retries=0, timeout=self._timeout)

    def _unanswered(self, error: BaseException, tokens_in: int, longest_answer: int) -> Reply:
        """What is known where no whole response came, and what it may have cost."""
        import httpx2

        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return Reply("request", f"no request could be made: {error}: see to OPENAI_BASE_URL")
        unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            # A model that was reached has been writing all this while, and that is paid for.
            usage = Usage() if unsent else Usage(tokens_in=tokens_in, tokens_out=longest_answer, estimated=True)
            said = f"no whole answer from {_host()} within {self._timeout:g} s: see to the server, or try again later"
            return Reply("timeout", said, usage=usage, wait=0)
        usage = Usage() if unsent else Usage(tokens_in=tokens_in, estimated=True)
        said = f"no answer from {_host()}: {error}: see to the network and OPENAI_BASE_URL"
        return Reply("connection", said, usage=usage, wait=0)


def _read(body: bytes, tokens_in: int) -> Reply:
    """What a response with status 200 says. Its tokens count whatever it says."""
    try:
        content = pydantic_core.from_json(body)
    except ValueError:
        content = None
    try:
        counted = _Counted.model_validate(content["usage"] if isinstance(content, dict) else None)
        usage = Usage(tokens_in=counted.prompt_tokens, tokens_out=counted.completion_tokens)
    except (KeyError, ValidationError):
        text = body.decode(errors="replace")
        usage = Usage(tokens_in=tokens_in, tokens_out=rough_tokens(text), estimated=True)
    try:
        choices = _Completion.model_validate(content).choices
    except ValidationError:
        start = " ".join(body[:300].decode(errors="replace").split())
        said = f"{_host()} answered with something that is no completion: {start!r}: does OPENAI_BASE_URL end in /v1?"
        return Reply("malformed", said, usage=usage)
    if not choices:
        return Reply("malformed", f"{_host()} answered with no choice", usage=usage)
    answer, refusal, finish = choices[0].message.content, choices[0].message.refusal, choices[0].finish_reason
    if refusal or finish == "content_filter":
        why = f"the model refused: {refusal}" if refusal else "a content filter withheld the answer"
        return Reply("refused", why, answer, usage)
    if finish == "length":
        return Reply("truncated", f"the answer was cut off after {usage.tokens_out:,} tokens", answer, usage)
    if not (answer and answer.strip()):
        return Reply("malformed", "the answer is empty", answer, usage)
    return Reply(None, answer=answer, usage=usage)


def _failed(error: "APIStatusError", model: str) -> Reply:
    """What a response with another status says. Nothing is paid for one."""
    body = error.body if isinstance(error.body, dict) else {}
    said = " ".join(str(body.get("message") or error.message).split())[:300]
    codes = {str(body.get("code")), str(body.get("type"))}
    if error.status_code == 402 or not codes.isdisjoint(EMPTY_ACCOUNT):
        return Reply(
            "quota", f"the account at {_host()} has nothing left: {said}: add to its credit or raise its limit"
        )
    if error.status_code in (401, 403):  # what it says may hold parts of the key
        return Reply(
            "auth", f"{_host()} does not accept OPENAI_API_KEY (status {error.status_code}): set the right one"
        )
    if "content_filter" in codes:
        return Reply("refused", f"a content filter refused the prompt: {said}")
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return _busy(error, said)
    return Reply(
        "request",
        f"{_host()} takes no such request (status {error.status_code}): {said}: see to --llm {model}",
    )


def _busy(error: "APIStatusError", said: str) -> Reply:
    kind = "quota" if error.status_code == 429 else "connection"
    wait = _retry_after(error.response.headers)
    if wait > LONGEST_PAUSE:
        return Reply(kind, f"{_host()} asks to wait {wait:,.0f} s: {said}: try again later")
    return Reply(kind, f"{_host()} (status {error.status_code}): {said}: try again later", wait=wait)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 where the server does not say. RFC 9110, 10.2.3: a number of seconds, or a date."""
    said = headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0
    return max(seconds, 0) if math.isfinite(seconds) else 0


def _host() -> str:
    """The server's name, without the password that a URL may hold."""
    url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com"
    found = re.search(r"//(?:[^/]*@)?([^/@]+)", url)
    return found[1] if found else "OPENAI_BASE_URL"
