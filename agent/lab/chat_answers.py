"""What a server answers with status 200: a completion, a stream of its pieces, or an error after all."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pydantic_core
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from agent.lab.chat_reply import Kind, Reply, TokenUsage, rough_tokens

CUT_OFF = ("length", "max_tokens", "model_length")
# Of Gemini: recitation, safety and what follows.
WITHHELD = ("content_filter", "recitation", "safety", "blocklist", "prohibited_content", "spii", "refusal")
BROKEN = {  # the server failed while it answered: OpenRouter's name for it, and DeepSeek's
    "error": "the server broke off its answer",
    "insufficient_system_resource": "the server ran out of resources during its answer",
}
SHOWN = 300  # bytes of a body that is no completion
STREAM = re.compile(rb"\s*(data|event|id|retry)?:")  # of server-sent events


class _Part(BaseModel):
    type: str = "text"
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: Any = None  # thoughts, in one of two places
    reasoning: Any = None

    @property
    def text(self) -> str | None:
        """What was answered; without thoughts, which some servers send as parts of their own."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type in ("text", "output_text"))
        return self.content

    @property
    def thoughts(self) -> str:
        return "".join(each for each in (self.reasoning_content, self.reasoning) if isinstance(each, str))


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    error: Any = None


class _Piece(BaseModel):
    delta: _Message | None = None
    finish_reason: str | None = None
    error: Any = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Chunk(BaseModel):
    choices: list[_Piece] | None = None
    error: Any = None


class _Usage(BaseModel):
    prompt_tokens: PositiveInt  # a server that counts none gives no figures
    completion_tokens: NonNegativeInt


@dataclass(frozen=True)
class Answer:
    """A completion in the words of the client; `error` is what the server says went wrong instead."""

    finish: str | None = None  # why it ended, in small letters
    text: str | None = None
    refusal: str | None = None
    usage: TokenUsage = field(default_factory=TokenUsage)
    error: Any = None
    streamed: bool = False

    @property
    def reply(self) -> Reply:
        """What it means, unless it is an error. A stream without an end is no answer, however much of it there is."""
        if self.streamed and self.finish is None:
            reason = f"the stream broke off after about {self.usage.tokens_out:,} tokens"
            return Reply("connection", reason, "try again later", usage=self.usage, wait=0)
        if self.finish in BROKEN:
            return Reply("connection", BROKEN[self.finish], "try again later", usage=self.usage, wait=0)
        if self.refusal or self.finish in WITHHELD:
            filtered = "a content filter withheld the answer" + f" ({self.finish})" * (self.finish != "content_filter")
            return self._failure("refused", f"the model refused: {self.refusal}" if self.refusal else filtered)
        if self.finish in CUT_OFF:
            return self._failure("truncated", f"the answer was cut off after {self.usage.tokens_out:,} tokens")
        if not (self.text and self.text.strip()):
            return self._failure("malformed", "the answer is empty")
        return Reply(answer=self.text, usage=self.usage)

    def _failure(self, kind: Kind, reason: str) -> Reply:
        return Reply(kind, reason, answer=self.text, usage=self.usage)


def read(body: bytes, tokens_in: int, host: str) -> Answer | Reply:
    """Read a body, of a stream too, whether or not one was asked for. Return a failure if it is no completion.

    Its tokens count even if it is of no use; `tokens_in` estimates those of the prompt for a server without figures.
    """
    if STREAM.match(body):
        return _from_stream(_events(body), tokens_in)
    try:
        content = pydantic_core.from_json(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and content.get("error"):
        return Answer(error=content["error"], usage=_counted(content) or TokenUsage())
    usage = _counted(content) or _estimate(tokens_in, body.decode(errors="replace"))
    try:
        choices = _Completion.model_validate(content).choices
    except ValidationError:
        start = " ".join(body[:SHOWN].decode(errors="replace").split())
        reason = f"the response of {host} is no completion: {start!r}"
        return Reply("malformed", reason, "does OPENAI_BASE_URL end in /v1?", usage=usage)
    if not choices:
        return Reply("malformed", f"the completion of {host} has no choice", usage=usage)
    choice, message = choices[0], choices[0].message
    return Answer(_finish(choice.finish_reason), message.text, message.refusal, usage, choice.error)


def _from_stream(events: Iterator[Any], tokens_in: int) -> Answer:
    """Put the pieces of a stream together, up to its end, an error or an event that cannot be read."""
    text, refusal, thoughts, finish, usage, error = "", "", "", None, None, None
    for event in events:
        try:
            chunk = _Chunk.model_validate(event)
        except ValidationError:
            break
        usage = _counted(event) or usage
        piece = chunk.choices[0] if chunk.choices else _Piece()
        delta = piece.delta or _Message()
        text, refusal = text + (delta.text or ""), refusal + (delta.refusal or "")
        thoughts += delta.thoughts
        finish = _finish(piece.finish_reason) or finish
        if error := chunk.error or piece.error:
            break
    cost = TokenUsage() if error and not text + thoughts else _estimate(tokens_in, thoughts + text + refusal)
    return Answer(finish, text, refusal, usage or cost, error, streamed=True)


def _events(body: bytes) -> Iterator[Any]:
    """Yield the data of server-sent events up to [DONE]; None for data that is no JSON, such as of an event cut off."""
    for event in body.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
        lines = [line.partition(":") for line in event.split("\n")]
        data = "\n".join(value.removeprefix(" ") for name, _, value in lines if name == "data")
        if data.strip() == "[DONE]":
            return
        if not data:  # a comment that keeps the connection open
            continue
        try:
            content = pydantic_core.from_json(data)
        except ValueError:
            content = None
        if ("event", "error") in [(name, value.strip()) for name, _, value in lines]:
            content = content if isinstance(content, dict) and "error" in content else {"error": content or data}
        yield content


def _finish(reason: str | None) -> str | None:
    return reason.lower() if reason else None


def _counted(content: Any) -> TokenUsage | None:
    """Return the server's own figures, or None if it gives none."""
    try:
        usage = _Usage.model_validate(content["usage"])
    except (KeyError, TypeError, ValidationError):
        return None
    return TokenUsage(tokens_in=usage.prompt_tokens, tokens_out=usage.completion_tokens)


def _estimate(tokens_in: int, answered: str) -> TokenUsage:
    return TokenUsage(tokens_in=tokens_in, tokens_out=rough_tokens(answered), estimated=True)
