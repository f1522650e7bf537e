"""An endpoint like OpenAI's on loopback, with a judge that answers by rule, or in the way that a script says."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]


@dataclass
class Step:
    """One answer that is not the judge's."""

    status: int = 200
    body: Any = None  # str: sent as it is
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})


@dataclass
class Endpoint:
    """Where it listens, what it was asked, and what it still does before the judge answers."""

    url: str
    script: list[Step] = field(default_factory=list)
    always: Step | None = None
    judge: Callable[[Messages], str] = lambda messages: by_rule(messages)
    asked: list[dict[str, Any]] = field(default_factory=list)


def by_rule(messages: Messages) -> str:
    """Explains a latent by the token that it fires on most often, and counts on the text that holds that token."""
    asked = messages[-1]["content"]
    if tokens := re.findall(r"<<(.+?)>>", asked):
        return f"This neuron activates on {Counter(sorted(tokens)).most_common(1)[0][0].strip() or 'a space'}"
    if "Here are the examples:" not in asked:
        return "yes"
    explained, examples = asked.split("Here are the examples:")
    token = explained.split("this neuron fires on ")[1].strip().rstrip(".")
    numbers = [n for n, text in re.findall(r"(?m)^(\d+)\. (.*)$", examples) if token in text]
    return ", ".join(numbers) or "None"


@contextmanager
def serving() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append({**request, "authorization": self.headers["Authorization"], "path": self.path})
            said = endpoint.script.pop(0) if endpoint.script else endpoint.always
            if said is None:
                message = {"role": "assistant", "content": endpoint.judge(request["messages"])}
                said = Step(body=completion([{"index": 0, "message": message, "finish_reason": "stop"}]))
            body = said.body if isinstance(said.body, str) else json.dumps(said.body)
            self.send_response(said.status)
            kind = "text/html" if body.startswith("<") else "application/json"
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body.encode())),
                **said.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield endpoint
        server.shutdown()


def completion(choices: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": choices}
