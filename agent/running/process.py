"""A child process of a study: its environment, its limits, and its end read as a verdict."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from agent import ROOT
from agent.lab.verdicts import Verdict, VerdictName
from agent.llm import redact
from agent.running import process_tree
from agent.running.process_tree import GRACE_SECONDS
from agent.running.watchdogs import Watchdog

POLL_SECONDS = 0.5
# Memory is not among them: CUDA reserves address space beyond any limit, so a watchdog looks at what is really held.
# Nor are processes: that limit counts all of a user's.
LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 8 * 2**30}  # bytes of a core dump, and of any one file

ALLOWED = re.compile(
    "PATH|HOME|USER|SHELL|TERM|COLUMNS|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|(DY)?LD_LIBRARY_PATH|"
    r"(LC|XDG|CUDA|NVIDIA|HIP|OMP|MKL|OPENBLAS|TORCH|PYTORCH|TRANSFORMERS|HF|SAE_AGENT)_\w+"
)
# Needed to reach the hub, and a judge of explanations; only for processes whose code is ours.
TRUSTED = re.compile(
    r"HF_TOKEN|OPENAI_\w+|(HTTPS?|NO)_PROXY|(https?|no)_proxy|SSL_CERT_FILE|(REQUESTS_CA|CURL_CA)_BUNDLE"
)
DIAGNOSIS = re.compile(r"stopped: (?!ok\b)(\w+): (.+)$")  # what the guard inside a training says last
OUT_OF_MEMORY = ("out of memory", "outofmemoryerror", "memoryerror", "cannot allocate memory", "can't allocate memory")


@dataclass(frozen=True)
class ProcessResult:
    """How a child process ended."""

    code: int  # negative: the signal that killed it
    seconds: float
    stopped: Verdict | None  # why the driver ended it, if it did


def environment(settings: Mapping[str, str], trusted: bool) -> dict[str, str]:
    """What a child process sees of this one's environment: no keys, but for code that is ours, and this checkout's
    `agent`."""
    env = {name: value for name, value in os.environ.items() if _allowed(name, trusted)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["PYTHONUNBUFFERED"] = "1"
    return env | dict(settings)


class Child:
    """A command in a session of its own, watched while somebody waits for something it does.

    When it is ended, an interruption included, nothing that it started is left. On Linux no file it writes can grow
    beyond a limit, and it leaves no core dump.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bool = False,
        stdout: Path | None = None,
        stderr: Path | None = None,
    ) -> None:
        process_tree.adopt_strays()
        self._others = process_tree.descendants()
        with ExitStack() as files:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=files.enter_context(stdout.open("ab")) if stdout else None,
                stderr=files.enter_context(stderr.open("ab")) if stderr else None,
                start_new_session=True,
            )
        if sys.platform == "linux":
            for limit, most in LIMITS.items():
                with suppress(ProcessLookupError):  # it has ended already
                    resource.prlimit(self._process.pid, limit, (most, most))

    @property
    def exited(self) -> bool:
        return self._process.poll() is not None

    def tell(self, line: str) -> None:
        """Write a line to its standard input; one that has ended is noticed by `wait`."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def wait(
        self,
        until: Callable[[], bool] = lambda: False,
        timeout: float | None = None,
        watch: Sequence[Watchdog] = (),
    ) -> Verdict | None:
        """Wait until it exits or `until` holds (None), a watchdog gives a verdict, or `timeout` seconds have passed."""
        start, pause = time.monotonic(), 0.01
        while not self.exited and not until():
            if stopped := next(filter(None, (watchdog() for watchdog in watch)), None):
                return stopped
            if timeout is not None and time.monotonic() - start > timeout:
                return Verdict(name="timed_out", evidence=f"still running after {timeout:.0f} s")
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(pause)
            pause = min(2 * pause, POLL_SECONDS)
        return None

    def end(self) -> int:
        """End it with everything that it started; its exit code, negative for the signal that killed it."""
        try:
            if self._process.stdin:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()
            _end_group(self._process)
        finally:
            process_tree.kill_strays(kept=self._others)
        return self._process.wait()


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: Path | None = None,
    stderr: Path | None = None,
    timeout: float | None = None,
    watch: Sequence[Watchdog] = (),
) -> ProcessResult:
    """Run a command until it ends, a watchdog gives a verdict or `timeout` seconds have passed."""
    start = time.monotonic()
    child = Child(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    stopped = None
    try:
        stopped = child.wait(timeout=timeout, watch=watch)
    finally:
        code = child.end()
    return ProcessResult(code, time.monotonic() - start, stopped)


def verdict_of_end(ended: ProcessResult, stderr: Path) -> Verdict | None:
    """Why the process failed, or None when it ended well by itself."""
    if ended.stopped or ended.code == 0:
        return ended.stopped
    said = tail(stderr)
    lower = "\n".join(said).lower()
    if said and (diagnosis := DIAGNOSIS.search(said[-1])) and diagnosis[1] in get_args(VerdictName):
        return Verdict.model_validate({"name": diagnosis[1], "evidence": diagnosis[2]})
    if ended.code < 0:
        evidence = f"killed by {signal.Signals(-ended.code).name}" + (f"; last said: {said[-1]}" if said else "")
    else:
        evidence = said[-1] if said else f"exit status {ended.code} and nothing on stderr"
    if any(sign in lower for sign in OUT_OF_MEMORY):
        return Verdict(name="out_of_memory", evidence=evidence)
    if "no space left" in lower:
        return Verdict(name="disk_full", evidence=evidence)
    return Verdict(name="killed" if ended.code < 0 else "crashed", evidence=evidence)


def tail(log: Path, lines: int = 5) -> list[str]:
    """The last lines of a log that are not empty; a progress bar counts as its last state."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
        text = file.read().decode(errors="replace")
    said = [line.strip().rsplit("\r", 1)[-1].strip()[:300] for line in text.split("\n")]
    return [line for line in said if line][-lines:]


def _allowed(name: str, trusted: bool) -> bool:
    allowed = ALLOWED.fullmatch(name) and not redact.NAMES.search(name)
    return bool(allowed or (trusted and TRUSTED.fullmatch(name)))


def _end_group(process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        alive = _signal_group(process, signal.SIGTERM)
        while alive and time.monotonic() < deadline:
            time.sleep(0.05)
            if process.poll() is not None:  # one that is not reaped would count as alive
                _reap_adopted(process.pid)
            alive = _signal_group(process, 0)
    finally:  # a second Ctrl-C cuts the grace short
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _reap_adopted(group: int) -> None:
    """Collect the ended members of a group whose leader is collected."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def _signal_group(process: "subprocess.Popen[Any]", number: int) -> bool:
    """Whether anything of the group was there to be signalled."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True
