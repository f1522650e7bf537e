"""The place of a study's jobs: this machine or a SLURM cluster, and how many of them at once."""

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.ideas import Fixed
from agent.lab.errors import UserError
from agent.lab.machine import memory_limit
from agent.running import lab_processes, process, slurm
from agent.running.executor import Executor, NotSubmitted
from agent.running.jobs import OUTCOME
from agent.running.local import SLOT, LocalSlots, default_slots, visible_gpus
from agent.running.sandbox import Sandbox
from agent.running.slurm import Slurm
from agent.running.slurm_states import LOG
from agent.study.imported import PRINTED

CLUSTER_JOBS = 8  # in the queue at once, unless more are asked for
POLL_SECONDS = 0.5
REMOVAL_SECONDS = 10.0
MOST_LINES = 30  # of what the job that prepares a study printed
KEEP_WHAT_IS_PRINTED = ("/bin/sh", "-c", '"$@" > "$0.partial" && mv "$0.partial" "$0"')  # in the file that follows


class Unprepared(Exception):
    """The lab could not prepare a study, and has said why; `exit_code` is that of its process."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


@contextmanager
def _temporary_folder(place: Path | None) -> Iterator[Path]:
    """Give a folder in `place`, or where the system has its temporary files, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix=".prepare-", dir=place))
    try:
        yield folder
    finally:
        end = time.monotonic() + REMOVAL_SECONDS
        shutil.rmtree(folder, ignore_errors=True)
        while folder.exists() and time.monotonic() < end:  # a job's script notes its exit after the job's outcome
            time.sleep(POLL_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Place:
    """This machine, or the cluster that takes jobs with the `slurm` options of sbatch."""

    slurm: Mapping[str, str] | None = None

    @property
    def description(self) -> str:
        """Say where jobs run."""
        if self.slurm is None:
            return "on this machine"
        return f"on the SLURM cluster ({slurm.as_text(self.slurm)})" if self.slurm else "on the SLURM cluster"

    def check(self) -> None:
        """Raise UserError if no job could be submitted."""
        if self.slurm is not None:
            slurm.check(self.slurm)

    def prepare(
        self, root: Path, fixed: Fixed, required: str, device: str | None, trainings: int = 0, jobs: int | None = None
    ) -> dict[str, Any]:
        """Harvest the activations where jobs run; return the fingerprint, the evaluations, and the cache's folders.

        What so many `trainings`, so many `jobs` at once, need is said and refused before. Raise Unprepared.
        """
        runs = root / "runs"  # all nodes see it
        runs.mkdir(exist_ok=True)
        place = None if self.slurm is None else runs
        with _temporary_folder(place) as folder:
            out = folder / OUTCOME
            at_once = jobs if jobs and self.slurm is None else 1  # a job of a cluster has a node's share to itself
            command = lab_processes.prepare_command(fixed, required, out, trainings, at_once)
            self._carry_out(command, root, fixed, device, out)
            return json.loads(out.read_text())

    def import_sae(self, root: Path, source: str, run_dir: Path, fixed: Fixed, device: str | None) -> None:
        """Convert an SAE from elsewhere into the checkpoint of `run_dir`, which is made, where jobs run.

        What the lab found is left in PRINTED there, a line of JSON. The folder around `run_dir` is for the job alone.
        Raise Unprepared.
        """
        out = run_dir.with_name(OUTCOME)
        command = lab_processes.import_command(fixed, source, run_dir)
        self._carry_out([*KEEP_WHAT_IS_PRINTED, str(out), *command], root, fixed, device, out)
        out.rename(run_dir / PRINTED)

    def _carry_out(self, command: list[str], root: Path, fixed: Fixed, device: str | None, out: Path) -> None:
        """Run a command of the lab that writes `out`, where jobs run. Raise Unprepared if it fails."""
        if self.slurm is None:
            code = lab_processes.run_lab(command, root, fixed, device)
        else:
            code = self._prepare_by_job(self.slurm, command, fixed, device, out)
        if code:
            raise Unprepared(code)

    def count(self, wish: int | None, lab: Mapping[str, Any], sandbox: Sandbox) -> int:
        """Return how many jobs run at once: on this machine one a GPU, or as many as its cores have room for.

        One at a time if they are not confined, unless more are asked for: what one changes of another's is noticed only
        where they follow one another. Raise UserError for more jobs than GPUs.
        """
        gpus = lab["gpus"]
        if wish and gpus and wish > gpus and self.slurm is None:
            raise UserError(f"--jobs {wish}: {gpus} GPU{'s' * (gpus > 1)} can be seen here, and each job has its own")
        if wish or sandbox.kind == "none":
            return wish or 1
        if self.slurm is not None:
            return CLUSTER_JOBS
        if gpus:
            return max(1, min(gpus, memory_limit() // lab["job_bytes"]))
        return default_slots(int(lab["parts"]["threads"]), lab["job_bytes"])

    def executor(self, setup: Path, count: int, gpus: int) -> Executor:
        """Return what carries out the jobs of the study with this setup, `count` at once."""
        if self.slurm is None:
            return LocalSlots(setup, count, visible_gpus(gpus) if gpus > 1 else [])
        return Slurm(self.slurm, [*SLOT, str(setup)], process.child_environment({}))

    def _prepare_by_job(
        self, options: Mapping[str, str], command: list[str], fixed: Fixed, device: str | None, out: Path
    ) -> int:
        """Have a job prepare the study, show what it printed, and return 0, 1, or 2 for the user's mistake."""
        folder = out.parent
        shell = ["/bin/sh", "-c", f"exec {shlex.join(command)}"]  # the directory and the attempt are its $0 and $1
        environment = process.child_environment(lab_processes.computation(fixed, device), process.NETWORK_VARIABLES)
        executor = Slurm(options, shell, environment)
        try:
            executor.submit(folder)
        except NotSubmitted as refused:
            raise UserError(f"the job that prepares the study was not submitted: {refused.reason}") from None
        try:
            status, shown = executor.poll()[folder], ""
            while status.state != "ended":
                if status.words != shown:
                    print(f"preparing, in a job: {status.words}", flush=True)
                time.sleep(POLL_SECONDS)
                status, shown = executor.poll()[folder], status.words
        except KeyboardInterrupt:
            executor.cancel(folder)
            raise
        finally:
            executor.close()
        lines = process.last_lines(folder / LOG, MOST_LINES)
        print("\n".join(lines), file=sys.stderr if status.verdict else sys.stdout, flush=True)
        if status.verdict is None:
            return 0
        if not (by_user := lines[-1:] and lines[-1].startswith("error: ")):
            print(f"error: {status.verdict.evidence}", file=sys.stderr, flush=True)
        return 2 if by_user else 1
