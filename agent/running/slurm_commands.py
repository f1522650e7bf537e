"""The commands of SLURM: sbatch, squeue, sacct and scancel, run so that a scheduler that is down holds nothing up."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from agent.lab.visible import one_line
from agent.running.slurm_states import Record

ANSWER_SECONDS = 60.0  # that a command is given
MAY_PASS = re.compile(  # what a scheduler says that may take the same job later
    "temporarily unable|submit limit|MaxSubmit|Unable to contact|timed out|Zero Bytes|took more", re.IGNORECASE
)
AROUND = re.compile(r"^\w+( error)?: (error: )?|^allocation failure: |, sleeping and retrying.*")  # of a complaint
# Variables that would change what the options mean that are given here.
CHANGING = ("SQUEUE_", "SACCT_", "SCANCEL_", "SBATCH_ARRAY", "SBATCH_WAIT", "SBATCH_GET_USER_ENV")


class Command:
    """A command of SLURM's that was started, and may have ended."""

    def __init__(self, words: Sequence[str], script: str = "") -> None:
        self._name, self._folder = words[0], tempfile.TemporaryDirectory(prefix="sae-agent-")
        folder = Path(self._folder.name)
        self._output, self._errors, given = folder / "output", folder / "errors", folder / "script"
        given.write_text(script)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(CHANGING)}
        with given.open() as stdin, self._output.open("w") as stdout, self._errors.open("w") as stderr:
            self._process = subprocess.Popen(
                words,
                env=environment | {"LC_ALL": "C"},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # a Ctrl-C is the driver's
            )
        self._started, self._late = time.monotonic(), False

    @property
    def ended(self) -> bool:
        """True once it has ended; it is ended here if it takes too long, or would try again for minutes."""
        if self._process.poll() is not None:
            return True
        self._late = time.monotonic() - self._started > ANSWER_SECONDS
        if self._late or "retrying" in self._errors.read_text(errors="replace"):
            self.end()
        return self._process.poll() is not None

    @property
    def succeeded(self) -> bool:
        return self._process.returncode == 0

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def complaint(self) -> str:
        """What it says is wrong, as one line."""
        if self._late:
            return f"{self._name} took more than {ANSWER_SECONDS:.0f} s"
        errors = self._errors.read_text(errors="replace").splitlines()
        lines = (AROUND.sub("", line) for line in errors)
        return next((one_line(line) for line in lines if line.strip()), f"{self._name} did not say why")

    @property
    def may_pass(self) -> bool:
        """True if it failed for what may be over soon: a full queue, or a scheduler that does not answer."""
        return not self.succeeded and MAY_PASS.search(self.complaint) is not None

    def wait(self) -> "Command":
        while not self.ended:
            time.sleep(0.01)
        return self

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def accounted(id: str) -> Record | None:
    """Return what SLURM's accounting has of a job, or None if there is no accounting, or the job is not in it."""
    if not id or not shutil.which("sacct"):
        return None
    answer = Command(["sacct", "-X", "-n", "-P", "-j", id, "-o", "JobIDRaw,State,NodeList,Reason"]).wait()
    for line in answer.output.splitlines():
        found, state, node, reason = line.split("|", 3)
        if found == id and state:
            return Record(id, state.split()[0], node, reason)  # "CANCELLED by 1000"
    return None
