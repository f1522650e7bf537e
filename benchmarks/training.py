"""Train one experiment for a benchmark."""

import os
import subprocess
import sys
from pathlib import Path

from agent.display.live import PlainDisplay
from agent.ideas import Fixed
from agent.running.sandbox import Sandbox
from agent.running.workers import Workers
from agent.study.custody import driver_custody
from agent.study.events import StudyStarted
from agent.study.ledger import Ledger
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


def workers_of(study: Study, fixed: Fixed, prepared: dict[str, str], sandbox: Sandbox) -> Workers:
    """Return the child processes of a study without a plan, scored by core alone; `prepared` is what the lab wrote."""
    started = StudyStarted(
        idea="baseline",
        title="The baseline",
        description="",
        hypothesis="",
        primary_metric="ce_loss_score",
        smallest_effect=0.005,
        fixed=fixed,
        evals=("core",),
        fingerprint="",
        device="cpu",
        max_runs=1,
    )
    ledger = Ledger(study.ledger)
    ledger.append(started)
    study.commit("begun")
    return Workers(study, started, PlainDisplay(), driver_custody(study, ledger, prepared), sandbox)
