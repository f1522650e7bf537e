"""A server on loopback that speaks the protocol of OpenAI's chat completions, one scripted step a request."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

CANARY = "canary-4f1d9ab07c2e"  # the key that must be found nowhere


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def said(self) -> str:
        """The contents of all messages."""
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass(frozen=True)
class Step:
    """A response; `drop` closes the connection after so many bytes of it."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0  # seconds before the first byte
    drip: float = 0  # seconds before every further byte
    drop: int | None = None


Answer = Step | str


def answer(
    content: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (100, 20), **message: Any
) -> Step:
    """A completion with usage (tokens read, tokens written) unless that is None."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | message}
    return completion(choices=[choice], tokens=tokens)


def completion(tokens: tuple[int, int] | None = (100, 20), **fields: Any) -> Step:
    usage = {"usage": dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))} if tokens else {}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "scripted"}
    return Step(json.dumps(body | usage | fields).encode())


def error(status: int, message: str = "said the server", code: str | None = None, **headers: str) -> Step:
    """An error as OpenAI words it; headers with _ for -."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Step(json.dumps(body).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


class ScriptedServer:
    """Answers with a step a request; what comes after the last one gets a status that is not tried again."""

    def __init__(self, *script: Answer | Callable[[Request], Answer]) -> None:
        self._script = list(script)
        self.requests: list[Request] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                scripted._respond(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return {"OPENAI_API_KEY": CANARY, "OPENAI_BASE_URL": url, "NO_PROXY": "127.0.0.1"}

    def __enter__(self) -> "ScriptedServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = Request(handler.path, dict(handler.headers), json.loads(content))
        self.requests.append(request)
        try:
            step = self._script[len(self.requests) - 1]
        except IndexError:
            step = error(418, "the script has ended")
        step = step(request) if callable(step) else step
        step = answer(step) if isinstance(step, str) else step
        time.sleep(step.delay)
        handler.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            self._write(handler, step)

    @staticmethod
    def _write(handler: BaseHTTPRequestHandler, step: Step) -> None:
        if step.drop == 0:
            return
        handler.send_response(step.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(step.body))} | dict(step.headers)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if not step.drip:
            handler.wfile.write(step.body[: step.drop])
            return
        for byte in step.body:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(step.drip)
