"""One child process of a study: its environment, its limits, and the verdict on how it ended."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import psutil

from agent import ROOT
from agent.lab.files import BadFile, open_plain
from agent.lab.verdicts import Verdict, VerdictName
from agent.lab.visible import visible
from agent.llm import redact
from agent.running import process_tree
from agent.running.process_tree import GRACE_SECONDS
from agent.running.sandbox import UNCONFINED, Sandbox, View
from agent.running.watchdogs import Watchdog

# How a child starts a module of ours, or a script: see start.py.
START = (sys.executable, "-s", "-P", str(ROOT / "agent/lab/start.py"))
POLL_SECONDS = 0.5
EXIT_POLL_SECONDS = 0.05
LOG_END = 16_384  # bytes of a log in which its last lines are looked for
# No core dump, and at most 8 GiB (in blocks of 512 bytes) in any one file but a model's that is fetched. A shell sets
# them before anything else runs, so that they hold inside a sandbox too. Memory is not limited here, because CUDA
# reserves address space beyond any limit; a watchdog measures it. Nor are processes, because that limit counts all
# those of a user.
MAX_FILE_BYTES = 8 * 2**30
LIMITS = '{ ulimit -c 0; [ "$1" = 0 ] || ulimit -f "$1"; } 2>/dev/null; shift; exec "$@"'

ALLOWED_VARIABLES = re.compile(
    "PATH|HOME|USER|SHELL|TERM|COLUMNS|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|(DY)?LD_LIBRARY_PATH|"
    r"(LC|XDG|CUDA|NVIDIA|HIP|OMP|MKL|OPENBLAS|MALLOC|THP|TORCH|PYTORCH|TRANSFORMERS|HF|SAE_AGENT)_\w+"
)
# Only processes that run our own code get any of these: what reaches a server, the hub's key, the judge's key.
NETWORK_VARIABLES = r"(HTTPS?|NO)_PROXY|(https?|no)_proxy|SSL_CERT_FILE|(REQUESTS_CA|CURL_CA)_BUNDLE"
JUDGE_VARIABLES = rf"OPENAI_\w+|{NETWORK_VARIABLES}"
ALL_VARIABLES = rf"HF_TOKEN|{JUDGE_VARIABLES}"
GUARD_MESSAGE = re.compile(r"stopped: (?!ok\b)(\w+): (.+)$")  # the last line of a training that its guard stopped
OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "outofmemoryerror",
    "memoryerror",
    "cannot allocate memory",
    "can't allocate memory",
)


@dataclass(frozen=True)
class ProcessResult:
    """The end of a child process."""

    exit_code: int  # negative: the signal that killed it
    seconds: float
    stop_verdict: Verdict | None  # why the driver ended it, if it did
    cpu_seconds: float = 0.0  # of the process and of all that it has started


def child_environment(settings: Mapping[str, str], secrets: str = "") -> dict[str, str]:
    """Return the environment of a child process: ours without secrets, with `settings`.

    `secrets` is a pattern of the names of variables that it gets nevertheless. This checkout is not on the Python path:
    start.py finds `agent`, and nothing else of the checkout.
    """
    env = {name: value for name, value in os.environ.items() if _is_allowed(name, secrets)}
    if path := [folder for folder in env.pop("PYTHONPATH", "").split(os.pathsep) if folder and Path(folder) != ROOT]:
        env["PYTHONPATH"] = os.pathsep.join(path)
    return env | {"PYTHONUNBUFFERED": "1"} | dict(settings)


class Child:
    """A command that runs in a session of its own, under watchdogs, and with a `view` confined by `sandbox`.

    `end` leaves nothing running that the command has started. It must be started by a thread that outlives it, as
    bubblewrap ends with the thread that has started it.
    """

    _running: ClassVar[list["Child"]] = []

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bool = False,
        stdout: Path | None = None,
        stderr: Path | None = None,
        pass_fds: Sequence[int] = (),
        sandbox: Sandbox = UNCONFINED,
        view: View | None = None,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """`pass_fds` are descriptors that it inherits under their numbers. Without a `view` it is not confined.

        `max_file_bytes` limits any one file that it writes; 0: nothing does.
        """
        self.cpu_seconds = 0.0  # known once `end` has returned
        self._sampled: dict[psutil.Process, float] = {}  # CPU seconds of each of its processes, while they ran
        self._sandbox, self._scratch = sandbox, None
        if view and sandbox.kind != "none":
            self._scratch = tempfile.TemporaryDirectory(prefix="sae-agent-")
            env = {name: value for name, value in env.items() if not name.startswith("XDG_")}
            env |= {"HOME": self._scratch.name, "TMPDIR": self._scratch.name}
        process_tree.adopt_strays()
        self._earlier_processes = process_tree.descendants()
        self._stdin: socket.socket | None = None
        with ExitStack() as files:
            theirs = subprocess.DEVNULL
            if stdin:  # no pipe, which any process of the same user could open and write to
                self._stdin, other_end = socket.socketpair()
                theirs = files.enter_context(other_end).fileno()
            if view and self._scratch:
                confined = sandbox.command(command, view, cwd=cwd, scratch=Path(self._scratch.name))
                command, descriptors = files.enter_context(confined)
                pass_fds = [*pass_fds, *descriptors]
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", LIMITS, "sh", str(max_file_bytes // 512), *command],
                cwd=cwd,
                env=env,
                stdin=theirs,
                stdout=files.enter_context(stdout.open("ab")) if stdout else None,
                stderr=files.enter_context(stderr.open("ab")) if stderr else None,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self._running.append(self)

    @property
    def cpu_seconds_so_far(self) -> float:
        """CPU seconds that it has used, and all that it has started, as of the last poll."""
        return sum(self._sampled.values())

    @property
    def exited(self) -> bool:
        """Return whether the process has ended; reap it if so, and record what it has used."""
        if self._process.returncode is None:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_seconds += usage.ru_utime + usage.ru_stime
        return self._process.returncode is not None

    def write_line(self, line: str) -> None:
        """Write a line to the standard input. A process that has ended is not an error here: `wait` notices it."""
        assert self._stdin
        with suppress(ConnectionError):
            self._stdin.sendall(line.encode() + b"\n")

    def wait(
        self,
        until: Callable[[], bool] = lambda: False,
        timeout: float | None = None,
        watchdogs: Sequence[Watchdog] = (),
    ) -> Verdict | None:
        """Wait for the process to exit or for `until` to hold. Return a verdict if a watchdog gives one before that, or
        if `timeout` seconds have passed; the process then still runs."""
        start, pause = time.monotonic(), 0.01
        while not self.exited and not until():
            if verdict := next(filter(None, (watchdog() for watchdog in watchdogs)), None):
                return verdict
            if timeout is not None and time.monotonic() - start > timeout:
                return Verdict(name="timed_out", evidence=f"still running after {timeout:.0f} s")
            self._sample_cpu_seconds()
            self._wait_for_exit(pause)
            pause = min(2 * pause, POLL_SECONDS)
        return None

    def end(self) -> int:
        """End the process and everything that it has started. Return its exit code, negative if a signal killed it."""
        try:
            if self._stdin:
                self._stdin.close()
            self._end_group()
        finally:
            self._running.remove(self)
            others = process_tree.processes_below([child._process.pid for child in self._running])
            self.cpu_seconds += process_tree.kill_descendants(spared={*self._earlier_processes, *others})
            self.cpu_seconds = max(self.cpu_seconds, self.cpu_seconds_so_far)
            if self._scratch:
                self._scratch.cleanup()
        code = self._process.wait()
        return self._sandbox.exit_code(code) if self._scratch else code

    def _sample_cpu_seconds(self) -> None:
        """Note what each of its processes has used: a parent that ignores SIGCHLD is not told of its children's."""
        for child in process_tree.processes_below([self._process.pid]):
            self._sampled[child] = max(process_tree.cpu_seconds(child), self._sampled.get(child, 0.0))

    def _wait_for_exit(self, seconds: float) -> None:
        """Wait until the process has exited, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.exited and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, EXIT_POLL_SECONDS))

    def _end_group(self) -> None:
        """Ask the process group to end, then kill what is left of it after GRACE_SECONDS."""
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            alive = _signal_group(self._process, signal.SIGTERM)
            while alive and time.monotonic() < deadline:
                time.sleep(EXIT_POLL_SECONDS)
                if self.exited:  # a group with an unreaped member counts as alive
                    self.cpu_seconds += _reap_adopted(self._process.pid)
                alive = _signal_group(self._process, 0)
        finally:  # also when a second Ctrl-C cuts the grace period short
            _signal_group(self._process, signal.SIGKILL)
            while not self.exited:
                time.sleep(EXIT_POLL_SECONDS)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: Path | None = None,
    stderr: Path | None = None,
    timeout: float | None = None,
    watchdogs: Sequence[Watchdog] = (),
    observer: Callable[[float], None] = lambda _: None,
    pass_fds: Sequence[int] = (),
    sandbox: Sandbox = UNCONFINED,
    view: View | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> ProcessResult:
    """Run a command until it ends, a watchdog gives a verdict, or `timeout` seconds have passed.

    `observer` is called at every poll, with the CPU seconds used so far.
    """
    start = time.monotonic()
    child = Child(
        command,
        cwd=cwd,
        env=env,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        sandbox=sandbox,
        view=view,
        max_file_bytes=max_file_bytes,
    )
    try:
        observed = [*watchdogs, lambda: observer(child.cpu_seconds_so_far)]
        stop_verdict = child.wait(timeout=timeout, watchdogs=observed)
    finally:
        exit_code = child.end()
    return ProcessResult(exit_code, time.monotonic() - start, stop_verdict, child.cpu_seconds)


def exit_verdict(result: ProcessResult, stderr: Path) -> Verdict | None:
    """Return why the process failed, read from its exit code and the log of its errors, or None if it succeeded."""
    if result.stop_verdict or result.exit_code == 0:
        return result.stop_verdict
    lines = last_lines(stderr)
    text = "\n".join(lines).lower()
    if lines and (message := GUARD_MESSAGE.search(lines[-1])) and message[1] in get_args(VerdictName):
        return Verdict.model_validate({"name": message[1], "evidence": message[2]})
    if result.exit_code < 0:
        evidence = f"killed by {signal.Signals(-result.exit_code).name}"
        evidence += f"; its last line: {lines[-1]}" if lines else ""
    else:
        evidence = lines[-1] if lines else f"exit status {result.exit_code} and nothing on stderr"
    if any(message in text for message in OUT_OF_MEMORY_MESSAGES):
        return Verdict(name="out_of_memory", evidence=evidence)
    if "no space left" in text:
        return Verdict(name="disk_full", evidence=evidence)
    return Verdict(name="killed" if result.exit_code < 0 else "crashed", evidence=evidence)


def last_lines(log: Path, lines: int = 5) -> list[str]:
    """Return the last lines of a log that are not empty, each cut to 300 characters; none if there is no log.

    A progress bar, which redraws one line, counts as its last state.
    """
    try:
        with open_plain(log, only_name=True) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_END))
            text = file.read(LOG_END).decode(errors="replace")
    except FileNotFoundError:
        return []
    except BadFile as error:  # an experiment put it in the place of its log
        return [str(error)]
    last_states = (line.strip().rsplit("\r", 1)[-1].strip()[:300] for line in text.split("\n"))
    return [visible(line) for line in last_states if line][-lines:]


def _is_allowed(variable: str, secrets: str) -> bool:
    allowed = ALLOWED_VARIABLES.fullmatch(variable) and not redact.NAMES.search(variable)
    return bool(allowed or re.fullmatch(secrets, variable))


def _reap_adopted(group: int) -> float:
    """Reap the ended members of a process group whose leader is reaped; return the CPU seconds that they used."""
    seconds = 0.0
    with suppress(ChildProcessError):
        while (reaped := os.wait4(-group, os.WNOHANG))[0]:
            seconds += reaped[2].ru_utime + reaped[2].ru_stime
    return seconds


def _signal_group(process: "subprocess.Popen[Any]", number: int) -> bool:
    """Signal the process group. Return False if nothing of it is left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
        return False
    return True
