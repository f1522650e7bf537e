"""One client of OpenAI-compatible servers: a request as the server wants it, the meaning of its response, retries.

The driver's language model and the lab's judge are both asked through it, so it imports no torch.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from agent.lab import chat_answers
from agent.lab.chat_connection import Address, no_response, unsendable, unusable
from agent.lab.chat_errors import GATEWAY_TIMEOUTS, Fault, Manner, reply_to
from agent.lab.chat_reply import Message, Reply, TokenUsage, rough_prompt_tokens

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI = "https://api.openai.com/v1"
MAX_BODY = 16 * 2**20  # bytes
CHANGES = 6  # of the manner of asking, for one answer


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
        self,
        model: str,
        environment: Mapping[str, str],
        *,
        setting: str,
        timeout: float,
        max_wait: float,
        stream: bool = False,
    ) -> None:
        self.model = model
        self.key = environment.get("OPENAI_API_KEY", "")
        self._address = Address.parse(environment.get("OPENAI_BASE_URL") or OPENAI)
        self._setting = setting  # as the user names the model
        self._timeout = timeout  # seconds for the whole of an answer
        self._max_wait = max_wait  # seconds; a server that asks for more has no answer for us now
        self._manner = Manner(stream=stream)

    @property
    def longest(self) -> int | None:
        """The most tokens of an answer that the server allows, as far as it has said."""
        return self._manner.longest

    def complete(self, messages: Sequence[Message], max_tokens: int, above: int = 0) -> Reply:
        """Ask once, for an answer of at most `max_tokens`, or of what the server allows if it says so.

        An answer that was cut off after `above` tokens was had before, so one no longer than that is not asked for.
        """
        tokens_in, manner = rough_prompt_tokens(messages), self._manner
        reply = Reply("request", f"{self._address.host} wants to be asked in another way each time")
        for _ in range(CHANGES):
            asked = manner.allows(max_tokens, tokens_in)
            if asked <= above:
                return Reply("truncated", f"the answer was cut off after {above:,} tokens, the most the server allows")
            reply, fault = self._ask(messages, asked, manner, tokens_in)
            changed = fault.after(manner, asked, tokens_in) if fault else manner
            if changed == manner:
                break
            self._manner = manner = changed
            if reply.usage != TokenUsage():  # recorded before it is asked again
                break
        return reply

    def _ask(
        self, messages: Sequence[Message], max_tokens: int, manner: Manner, tokens_in: int
    ) -> tuple[Reply, Fault | None]:
        """Make a request. Return what it means and, if that is so, the server's error."""
        import httpx2  # what openai uses, and lets through where a body breaks off
        import openai  # here because it takes a third of a second, and most commands ask nothing

        body = bytearray()
        try:
            client = self._client
        except (openai.OpenAIError, httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
            return unusable(error, self._address), None
        try:
            self._send(client, messages, max_tokens, manner, body)
        except openai.APIStatusError as error:
            fault = Fault.parse(error.status_code, error.response.content)
            if fault.status in GATEWAY_TIMEOUTS and manner.may_stream and not manner.stream:
                return self._cut_short(fault, TokenUsage(tokens_in=tokens_in, tokens_out=max_tokens, estimated=True))
            return reply_to(fault, self._address, self._setting, self._max_wait, error.response.headers), fault
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            late = isinstance(error, TimeoutError | httpx2.TimeoutException | openai.APITimeoutError)
            if late or not chat_answers.STREAM.match(body):
                cause = error.__cause__ or error
                return no_response(cause, self._address, self._timeout, tokens_in, max_tokens), None
        except (openai.OpenAIError, httpx2.InvalidURL) as error:
            return unsendable(error), None
        return self._read(bytes(body), tokens_in)

    def _send(
        self, client: "OpenAI", messages: Sequence[Message], max_tokens: int, manner: Manner, body: bytearray
    ) -> None:
        """Fill `body` with that of a response with status 200.

        It is read here, since openai takes any text for a completion and limits the time of each piece, not of all.
        """
        deadline = time.monotonic() + self._timeout
        chat: Any = client.chat.completions.with_streaming_response
        sent = list(messages) if manner.system else _without_system(messages)
        with chat.create(model=self.model, messages=sent, extra_body=manner.settings(max_tokens)) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > MAX_BODY:
                    break

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        query: dict[str, object] = dict(parse_qsl(self._address.query))
        return OpenAI(
            api_key=self.key,
            base_url=self._address.base,
            default_query=query,
            default_headers={"api-key": self.key} if "api-version" in query else {},  # where Azure looks for the key
            max_retries=0,
            timeout=self._timeout,
        )

    def _read(self, body: bytes, tokens_in: int) -> tuple[Reply, Fault | None]:
        answer = chat_answers.read(body, tokens_in, self._address.asked)
        if isinstance(answer, Reply):
            return answer, None
        if not answer.error:
            return answer.reply, None
        fault = Fault.of(answer.error)
        reply = reply_to(fault, self._address, self._setting, self._max_wait, {})
        return replace(reply, usage=answer.usage), fault

    def _cut_short(self, fault: Fault, spent: TokenUsage) -> tuple[Reply, None]:
        """Return the failure of a request for which a proxy did not wait. The next one is for a stream, which it may
        wait for."""
        self._manner = replace(self._manner, stream=True)
        reason = f"a proxy before {self._address.host} did not wait for the answer (status {fault.status})"
        return Reply("timeout", reason, "ask for a stream, or raise its time limit", usage=spent, wait=0), None


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Put the system's messages before the first one of the user, and join neighbours of the same role."""
    joined: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if joined and joined[-1]["role"] == role:
            joined[-1] = {"role": role, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append({"role": role, "content": message["content"]})
    return joined
