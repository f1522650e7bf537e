"""A server on loopback that speaks OpenAI's chat completions: one scripted step for each request."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

CANARY = "canary-4f1d9ab07c2e"  # the key, which must leak nowhere


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """Return the contents of all messages."""
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass(frozen=True)
class Step:
    """A response; `drop` closes the connection after so many bytes of the body, and 0 before its status line."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0  # seconds before the first byte
    drip: float = 0  # seconds before every further byte
    drop: int | None = None


Answer = Step | str

Scripted = Answer | Callable[[Request], Answer]


def answer(
    content: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (100, 20), **message: Any
) -> Step:
    """Return a completion; `tokens` are those of the prompt and of the answer."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | message}
    return completion(choices=[choice], tokens=tokens)


def completion(tokens: tuple[int, int] | None = (100, 20), **fields: Any) -> Step:
    usage = {"usage": dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))} if tokens else {}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "scripted"}
    return Step(json.dumps(body | usage | fields).encode())


def error(status: int, message: str = "said the server", code: str | None = None, **headers: str) -> Step:
    """Return an error in OpenAI's form; headers are written with _ for -."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Step(json.dumps(body).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


def stream(*pieces: str, finish: str | None = "stop", tokens: tuple[int, int] | None = (100, 20), **more: Any) -> Step:
    """Return server-sent events: a comment, a delta for each piece, how it ended, the usage, [DONE].

    Without `finish` it breaks off after the pieces. `more` are fields of the Step.
    """
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if finish:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if finish and tokens:
        usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        chunks.append({"choices": [], "usage": usage})
    return events(*chunks, *(["[DONE]"] if finish else []), **more)


def events(*data: dict[str, Any] | str, **more: Any) -> Step:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in data]
    body = ": KEEP-ALIVE\n\n" + "".join(f"data: {line}\n\n" for line in lines)
    return Step(body.encode(), headers={"Content-Type": "text/event-stream"}, **more)


class ScriptedServer:
    """A server that follows its script, and after its end answers `otherwise`: by default a status without retries.

    Requests that only check whether it answers are answered with `check` and kept in `checks`, apart from the script.
    """

    def __init__(
        self,
        *script: Scripted,
        otherwise: Scripted | None = None,
        check: Scripted = "Yes.",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script: list[Scripted] = list(script)  # what is still to come
        self.otherwise = otherwise or error(418, "the script has ended")
        self.check = check
        self.requests: list[Request] = []
        self.checks: list[Request] = []
        self._lock = threading.Lock()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                scripted._respond(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a client finds the server."""
        url = f"{self._scheme}://127.0.0.1:{self._server.server_port}/v1"
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
        with self._lock:
            if request.text.endswith("Are you there?"):
                self.checks.append(request)
                step = self.check
            else:
                self.requests.append(request)
                step = self.script.pop(0) if self.script else self.otherwise
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
