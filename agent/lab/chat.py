"""One client of OpenAI-compatible servers: a request, the meaning of its response, and retries.

The driver's language model and the lab's judge are both asked through it, so it imports no torch.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

OPENAI = "https://api.openai.com/v1"
MAX_BODY = 16 * 2**20  # bytes
EMPTY_ACCOUNT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # error codes

Message = dict[str, str]  # role: system, user or assistant; content
# quota: nothing is granted now; auth: the key is not accepted; request: the server rejects the request; connection,
# timeout: no answer came; budget: the user's limits; replay: another question was recorded. The other three are
# failures of an answer.
Kind = Literal[
    "quota", "auth", "request", "connection", "timeout", "budget", "replay", "refused", "malformed", "truncated"
]


class TokenUsage(BaseModel):
    """The tokens that a request has cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False  # the server gave no figures


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason why there is none."""

    kind: Kind | None = None  # of failure; None: answered
    reason: str = ""
    remedy: str = ""
    answer: str | None = None  # also one that was cut off or refused
    usage: TokenUsage = field(default_factory=TokenUsage)
    wait: float | None = None  # seconds until a retry, 0 if the server names none; None: a retry would not help

    @property
    def message(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


def rough_tokens(text: str) -> int:
    """Estimate the tokens of a text, one for 3 bytes: English has one for about 4, code one for about 3."""
    return len(text.encode(errors="replace")) // 3 + 1


def rough_prompt_tokens(messages: Sequence[Message]) -> int:
    """Estimate the tokens of a prompt, with 4 for the role and the delimiters of each message."""
    return sum(rough_tokens(message["content"]) + 4 for message in messages)


def check_key(key: str | None) -> Reply | None:
    """Return the failure of a key that cannot be sent, or None."""
    if not key:
        return Reply("auth", "OPENAI_API_KEY is not set", "set it to your key; for a server without keys, to any word")
    if not (key.isascii() and key.isprintable() and " " not in key):
        reason = "OPENAI_API_KEY holds a space, a line break or another character that no key has"
        return Reply("auth", reason, "set it to your key")
    return None


def attempts(
    ask: Callable[[], Reply], pauses: Sequence[float], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Reply]:
    """Yield the reply to each attempt, until one is final or the pauses run out.

    The client library's own retries are off. They ask again, unseen, after a time-out that may have cost tokens; ask
    again with an empty account; and cannot begin again once a body has begun, which we read ourselves.
    """
    for pause in (*pauses, None):
        reply = ask()
        yield reply
        if pause is None or reply.wait is None:
            return
        sleep(reply.wait or pause)


class Server:
    """The server at OPENAI_BASE_URL, or OpenAI's own, with OPENAI_API_KEY. It may be asked from several threads.

    Texts of the server in a reply may hold secrets: whoever shows or keeps a reply takes them out.
    """

    def __init__(
        self, model: str, environment: Mapping[str, str], *, setting: str, timeout: float, max_wait: float
    ) -> None:
        self.model = model
        self.key = environment.get("OPENAI_API_KEY", "")
        self._base_url = environment.get("OPENAI_BASE_URL") or OPENAI
        self._setting = setting  # as the user names the model
        self._timeout = timeout  # seconds for the whole of an answer
        self._max_wait = max_wait  # seconds; a server that asks for more has no answer for us now
        self._limit = "max_tokens"  # newer models of OpenAI's have another name for it, and say so
        host = re.search(r"//(?:[^/]*@)?([^/@]+)", self._base_url)  # without the password that a URL may hold
        self._host = host[1] if host else "OPENAI_BASE_URL"

    def complete(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        """Ask once, for an answer of at most `max_tokens`."""
        import httpx2  # what openai uses, and lets through where a body breaks off
        import openai  # here because it takes a third of a second, and most commands ask nothing

        tokens_in = rough_prompt_tokens(messages)
        try:
            body = self._send(messages, max_tokens)
        except openai.APIStatusError as error:
            if "max_completion_tokens" in error.message and self._limit == "max_tokens":
                self._limit = "max_completion_tokens"
                return self.complete(messages, max_tokens)
            return self._read_error(error)
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            return self._no_response(error.__cause__ or error, tokens_in, max_tokens)
        except (openai.OpenAIError, httpx2.InvalidURL) as error:
            return _unsendable(error)
        return self._read(body, tokens_in)

    def _send(self, messages: Sequence[Message], max_tokens: int) -> bytes:
        """Return the body of a response with status 200.

        It is read here, since openai takes any text for a completion and limits the time of each piece, not of all.
        """
        deadline = time.monotonic() + self._timeout
        chat: Any = self._client.chat.completions.with_streaming_response
        with chat.create(model=self.model, messages=list(messages), extra_body={self._limit: max_tokens}) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > MAX_BODY:
                    break
        return bytes(body)

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(api_key=self.key, base_url=self._base_url, max_retries=0, timeout=self._timeout)

    def _no_response(self, error: BaseException, tokens_in: int, max_tokens: int) -> Reply:
        """Describe why no whole response came, and estimate what it may have cost."""
        import httpx2

        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return _unsendable(error)
        unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            # A model that was reached has been writing all this while, and that is paid for.
            usage = TokenUsage() if unsent else TokenUsage(tokens_in=tokens_in, tokens_out=max_tokens, estimated=True)
            reason = f"no whole answer from {self._host} within {self._timeout:g} s"
            return Reply("timeout", reason, "check the server, or try again later", usage=usage, wait=0)
        usage = TokenUsage() if unsent else TokenUsage(tokens_in=tokens_in, estimated=True)
        reason = f"no answer from {self._host}: {error}"
        return Reply("connection", reason, "check the network and OPENAI_BASE_URL", usage=usage, wait=0)

    def _read(self, body: bytes, tokens_in: int) -> Reply:
        """Read a response with status 200. Its tokens count even if the answer is of no use."""
        try:
            content = pydantic_core.from_json(body)
        except ValueError:
            content = None
        usage = _usage(content, body, tokens_in)
        try:
            choices = _Completion.model_validate(content).choices
        except ValidationError:
            start = " ".join(body[:300].decode(errors="replace").split())
            reason = f"the response of {self._host} is no completion: {start!r}"
            return Reply("malformed", reason, "does OPENAI_BASE_URL end in /v1?", usage=usage)
        if not choices:
            return Reply("malformed", f"the completion of {self._host} has no choice", usage=usage)
        answer, refusal, finish = choices[0].message.content, choices[0].message.refusal, choices[0].finish_reason
        if refusal or finish == "content_filter":
            reason = f"the model refused: {refusal}" if refusal else "a content filter withheld the answer"
            return Reply("refused", reason, answer=answer, usage=usage)
        if finish == "length":
            reason = f"the answer was cut off after {usage.tokens_out:,} tokens"
            return Reply("truncated", reason, answer=answer, usage=usage)
        if not (answer and answer.strip()):
            return Reply("malformed", "the answer is empty", answer=answer, usage=usage)
        return Reply(answer=answer, usage=usage)

    def _read_error(self, error: "APIStatusError") -> Reply:
        """Read a response with another status. It costs nothing."""
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        text = " ".join(str(body.get("message") or error.message).split())[:300]
        codes = {str(body.get("code")), str(body.get("type"))}
        if status == 402 or not codes.isdisjoint(EMPTY_ACCOUNT):
            reason = f"the account at {self._host} has nothing left: {text}"
            return Reply("quota", reason, "add to its credit or raise its limit")
        if status in (401, 403):  # the server's text may hold parts of the key
            return Reply("auth", f"{self._host} does not accept OPENAI_API_KEY (status {status})", "set the right one")
        if "content_filter" in codes:
            return Reply("refused", f"a content filter refused the prompt: {text}")
        if not (status in (408, 409, 429) or status >= 500):
            return Reply("request", f"{self._host} (status {status}): {text}", f"check {self._setting}")
        kind, wait = "quota" if status == 429 else "connection", _retry_after(error.response.headers)
        if wait > self._max_wait:
            return Reply(kind, f"{self._host} asks to wait {wait:,.0f} s: {text}", "try again later")
        return Reply(kind, f"{self._host} (status {status}): {text}", "try again later", wait=wait)


def _unsendable(error: BaseException) -> Reply:
    return Reply("request", f"no request could be made: {error}", "check OPENAI_BASE_URL")


def _usage(content: Any, body: bytes, tokens_in: int) -> TokenUsage:
    """Return the server's own figures, or estimates if it gives none."""
    try:
        usage = _Usage.model_validate(content["usage"] if isinstance(content, dict) else None)
    except (KeyError, ValidationError):
        tokens_out = rough_tokens(body.decode(errors="replace"))
        return TokenUsage(tokens_in=tokens_in, tokens_out=tokens_out, estimated=True)
    return TokenUsage(tokens_in=usage.prompt_tokens, tokens_out=usage.completion_tokens)


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
