"""The process that serves activations to the trainings of a study, and counts what each of them reads."""

import json
import os
import platform
import re
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from agent.ideas import Fixed
from agent.lab.verdicts import Verdict
from agent.running import process, views
from agent.running.sandbox import Sandbox

SERVE = (*process.START, "agent.lab.serve")
REPORT_SECONDS = 30.0  # for the count of a training that has ended


class ServedTraining:
    """A training's socket to the server, and the pipe that tells how many rows it was served."""

    def __init__(self, socket_: socket.socket, report: int) -> None:
        self._socket, self._report = socket_, report
        self._told: dict[str, Any] = {}  # by the server
        self._rest = b""

    @property
    def descriptor(self) -> int:
        """The end of the socket that the training inherits."""
        return self._socket.fileno()

    def report(self) -> tuple[int, Verdict | None]:
        """Return the rows served to a training that has ended, and a verdict if they were not what was harvested."""
        self._socket.close()
        while "rows" not in self._told and self._pull(REPORT_SECONDS):
            pass
        if "rows" not in self._told:
            evidence = "the process that serves activations ended; stream.log holds its reason"
            return 0, Verdict(name="killed", evidence=evidence)
        damage = self._told["damage"]
        return self._told["rows"], Verdict(name="tampered", evidence=damage) if damage else None

    def saved_rows(self) -> int:
        """Return the rows that had been served when the training last saved its state; 0 if it has not."""
        while self._pull(0.0):
            pass
        return self._told.get("saved", 0)

    def _pull(self, seconds: float) -> bool:
        """Take in what the server writes within so many seconds; return False if that is nothing."""
        ready = select.select([self._report], [], [], seconds)[0]
        if not ready or not (part := os.read(self._report, 4096)):
            return False
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            self._told |= json.loads(line)
        return True


class ActivationServer:
    """Starts the server when it is first needed, and again if it has ended. `log` receives its output.

    A harvest that is `sealed` so need not be hashed again.
    """

    def __init__(self, fixed: Fixed, settings: dict[str, str], log: Path, sandbox: Sandbox, sealed: str = "") -> None:
        self.fixed, self.settings, self.log, self.sandbox, self.sealed = fixed, settings, log, sandbox, sealed
        self._child: process.Child | None = None

    @contextmanager
    def training(self, total: int, skip: int = 0) -> Iterator[ServedTraining]:
        """Have at most `total` rows served to one training; one that goes on from a saved state has `skip` of them."""
        servers, trainings = socket.socketpair()
        report, reported = os.pipe()
        with servers, trainings:
            try:
                self._hand_over({"total": total, "skip": skip}, [servers.fileno(), reported])
            finally:
                os.close(reported)
                servers.close()
            try:
                yield ServedTraining(trainings, report)
            finally:
                os.close(report)

    def end(self) -> None:
        """End the server."""
        child, self._child = self._child, None
        if child:
            self._socket.close()
            child.end()

    def _hand_over(self, training: dict[str, int], descriptors: list[int]) -> None:
        """Give the server the ends of one training. One that is being killed is found out by its closed socket."""
        order = [json.dumps(training).encode()]
        try:
            socket.send_fds(self._control(), order, descriptors)
        except BrokenPipeError:
            self.end()
            socket.send_fds(self._control(), order, descriptors)

    def _control(self) -> socket.socket:
        """Return the driver's socket to a server that runs."""
        if self._child is None or self._child.exited:
            self.end()
            self._socket, servers = socket.socketpair()
            names = ("model", "hook_name", "text", "tokens")
            options = [part for name in names for part in (f"--{name}", str(getattr(self.fixed, name)))]
            options += ["--sealed", self.sealed, *["--stream"] * self.fixed.stream]
            env = process.child_environment(self.settings | views.folders())
            with servers:
                self._child = process.Child(
                    [*SERVE, *options, "--control", str(servers.fileno())],
                    cwd=self.log.parent,
                    env=env,
                    stdout=self.log,
                    stderr=self.log,
                    pass_fds=[servers.fileno()],
                    sandbox=self.sandbox,
                    view=views.for_server(self.fixed, env),
                )
        return self._socket


@cache
def machine(threads: int | None) -> str:
    """Return the processor and the threads that a training uses here: work is compared between equal ones alone."""
    own = threads or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"(?m)^model name\s*: (.+)$", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{own} threads of {models[0] if models else platform.processor() or platform.machine()}"
