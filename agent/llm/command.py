"""A language model that a program asks: the prompt on its standard input, the answer on its standard output."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from agent.lab.chat_reply import Kind, Message, Reply, TokenUsage, rough_prompt_tokens, rough_tokens
from agent.lab.errors import UserError
from agent.llm.redact import redact

TIMEOUT = 600.0  # seconds for one answer
MAX_OUTPUT = 16 * 2**20  # bytes
POLL_SECONDS = 0.05
LAST_LINES, LINES_BYTES = 5, 4096  # of what a program that failed has said
HIDDEN = ("SAE_AGENT_", "PWD", "OLDPWD")  # starts of names of variables that tell where a study is


class Command:
    """A program that is started anew for each question, in an empty directory of its own.

    It gets the driver's environment but for what tells of the study, as it needs keys of its own.
    """

    longest: int | None = None  # it cannot be told how long an answer may be

    def __init__(self, command: str, timeout: float = TIMEOUT) -> None:
        """Raise UserError if there is no such program, or the command holds a secret, which would be recorded."""
        if redact(command) != command:
            raise UserError("--llm-command holds a secret: have the program take it from an environment variable")
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--llm-command {command}: {error}") from None
        program = shutil.which(words[0]) if words else None
        if program is None:
            raise UserError(f"--llm-command {command}: there is no such program; give its name, or its path")
        self.model, self._timeout = command, timeout
        self._name, self._words = words[0], [str(Path(program).absolute()), *words[1:]]

    def complete(self, messages: Sequence[Message], max_tokens: int, above: int = 0) -> Reply:  # noqa: ARG002
        """Ask once. Tokens are estimated."""
        with TemporaryFile() as given, TemporaryFile() as said, TemporaryFile() as complaints:
            given.write(as_text(messages).encode(errors="replace"))
            given.seek(0)
            kind, reason = self._run(given, said, complaints)
            answer, last = _end_of(said, MAX_OUTPUT), _end_of(complaints, LINES_BYTES).split("\n")[-LAST_LINES:]
        written = max_tokens if kind == "timeout" else rough_tokens(answer) if answer else 0
        spent = TokenUsage(tokens_in=rough_prompt_tokens(messages), tokens_out=written, estimated=True)
        if kind == "request":
            return Reply(kind, reason, "check --llm-command")
        if kind:
            heard = f": {redact('; '.join(last))}" if any(last) else ""
            return Reply(kind, reason + heard, "try the program by hand", usage=spent, wait=0)
        if not answer:
            return Reply("malformed", f"the answer of {self._name} is empty", usage=spent)
        return Reply(answer=answer, usage=spent)

    def _run(self, given: IO[bytes], said: IO[bytes], complaints: IO[bytes]) -> tuple[Kind | None, str]:
        """Run the program to its end, and leave nothing running that it has started. Return a failure's kind and
        reason, or None."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        with TemporaryDirectory(prefix="sae-agent-", ignore_cleanup_errors=True) as folder:
            try:
                process = subprocess.Popen(
                    self._words,
                    cwd=folder,
                    env=kept | {"PWD": folder},
                    stdin=given,
                    stdout=said,
                    stderr=complaints,
                    start_new_session=True,
                )
            except OSError as error:
                return "request", f"{self._name} cannot be started ({error.strerror})"
            try:
                return self._wait(process, (said, complaints))
            finally:
                with suppress(ProcessLookupError, PermissionError):  # none of them is left
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _wait(self, process: "subprocess.Popen[bytes]", outputs: Sequence[IO[bytes]]) -> tuple[Kind | None, str]:
        deadline = time.monotonic() + self._timeout
        while process.poll() is None:
            if time.monotonic() > deadline:
                return "timeout", f"no whole answer from {self._name} within {self._timeout:g} s"
            if max(os.fstat(file.fileno()).st_size for file in outputs) > MAX_OUTPUT:
                return "connection", f"{self._name} wrote more than {MAX_OUTPUT // 2**20} MiB"
            time.sleep(POLL_SECONDS)
        if process.returncode:
            return "connection", f"{self._name} failed (exit code {process.returncode})"
        return None, ""


def as_text(messages: Sequence[Message]) -> str:
    """Write messages as one text with a line before each that tells whose it is."""
    parts = [f"===== {message['role']} =====\n{message['content']}" for message in messages]
    return "\n\n".join(parts) + "\n"


def _end_of(file: IO[bytes], most: int) -> str:
    """Return the end of a file, at most `most` bytes, without the empty lines around it."""
    file.seek(max(os.fstat(file.fileno()).st_size - most, 0))
    return file.read(most).decode(errors="replace").strip()
