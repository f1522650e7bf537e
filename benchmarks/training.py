"""Train one experiment for a benchmark."""

import os
import subprocess
import sys
from pathlib import Path


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
