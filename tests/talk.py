"""Clients of a scripted server, or of whoever answers, for the tests of the language model's client."""

import json
from pathlib import Path

import pytest
from scripted_server import Scripted, ScriptedServer

from agent.llm.client import Asked, Client, LLMError
from agent.llm.limits import Limits
from agent.llm.server import server

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]


class Talk:
    """Clients that share a transcript, the seconds they waited, and what they said to the user."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.patch = folder / "transcript.jsonl", patch
        self.waited, self.said = list[float](), list[str]()

    def client(
        self, scripted: ScriptedServer, limits: Limits | None = None, timeout: float = 5, *, stream: bool = False
    ) -> Client:
        self.patch_environment(scripted)
        return self.client_of(server("m", timeout=timeout, stream=stream), limits)

    def client_of(self, asked: Asked, limits: Limits | None = None, answer: int | None = None) -> Client:
        return Client(
            asked, self.path, limits or Limits(), answer=answer, sleep=self.waited.append, say=self.said.append
        )

    def patch_environment(self, scripted: ScriptedServer) -> None:
        for name, value in scripted.environment.items():
            self.patch.setenv(name, value)

    def fails(self, *script: Scripted, timeout: float = 5, stream: bool = False) -> LLMError:
        """Return the error of a question, for which the whole script was needed."""
        with ScriptedServer(*script) as scripted:
            client = self.client(scripted, timeout=timeout, stream=stream)
            with pytest.raises(LLMError) as caught:
                client.ask(HELLO, "greeting")
            assert len(scripted.requests) == len(script)
        return caught.value

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]
