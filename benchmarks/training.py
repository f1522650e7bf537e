"""Train one experiment for a benchmark."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.ideas import Fixed
from agent.lab.results import Work
from agent.running.jobs import Setup, Training
from agent.running.kept_state import StateKeeper
from agent.running.places import Place, Unprepared
from agent.running.sandbox import Sandbox
from agent.running.slot import Slot
from agent.running.training_process import TrainingProcess
from agent.study.workspace import Study


def train(script: Path, run_dir: Path, seed: int | None = None) -> Path:
    """Run an experiment in its own process, on one thread and without evaluation, unless run_dir has its checkpoint.

    `seed` replaces the experiment's own. Return run_dir.
    """
    if not (run_dir / "checkpoint").exists():
        env = os.environ | {"SAE_AGENT_DRIVEN": "1", "OMP_NUM_THREADS": "1"}
        if seed is not None:
            env["SAE_AGENT_SEED"] = str(seed)
        subprocess.run([sys.executable, str(script), f"--out_dir={run_dir}"], env=env, check=True)
    return run_dir


def slot_of(study: Study, fixed: Fixed, prepared: dict[str, Any], sandbox: Sandbox) -> Slot:
    """Return a slot for jobs that core alone scores; `prepared` is what the lab wrote."""
    artefacts = Path(prepared["artefacts"])
    setup = Setup(
        study=study.directory, fixed=fixed, evals=("core",), device="cpu", kind=sandbox.kind, artefacts=artefacts
    )
    return Slot(setup, sandbox, study.directory)


def prepared(root: Path, fixed: Fixed) -> dict[str, Any]:
    """Harvest the activations of studies under `root` that core alone scores, and return what the lab wrote of them.

    Exits with 1 if it cannot.
    """
    try:
        return Place().prepare(root, fixed, "core", "cpu")
    except Unprepared:
        raise SystemExit(1) from None


def train_in(slot: Slot, source: str, run_dir: Path, timeout: float) -> Work:
    """Train an experiment as a study does, and return what it read and used. Raise RunFailed."""
    training = Training(source=source, directory=run_dir.name, seed=0, timeout=timeout)
    keeper = StateKeeper(run_dir.parent, training)
    return slot.train(TrainingProcess(training, run_dir, run_dir.name, keeper, []))
