"""What benchmarks share with the tests: a checkout in which nothing is trained, and a SLURM cluster on this machine."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
make_checkout = runpy.run_path(str(TESTS / "standin/__init__.py"))["make_checkout"]
slurm_cluster = runpy.run_path(str(TESTS / "slurm_cluster.py"))["slurm_cluster"]
FOR_SLURM = ("PATH", "SLURM_CONF")  # of the environment: how the cluster is found


def start(checkout: Any, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Start `agent` in a stand-in checkout; what it prints is appended to agent.log in it."""
    home = checkout.root.parent / "home"
    home.mkdir(exist_ok=True)
    found = {name: os.environ[name] for name in FOR_SLURM if name in os.environ}
    with (checkout.root / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", *arguments],
            cwd=checkout.root.parent,
            env=found | {"HOME": str(home), "PYTHONPATH": str(checkout.root), "OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def last_line(checkout: Any) -> str:
    """Return the last line that `agent` printed."""
    return (checkout.root / "agent.log").read_text(errors="replace").strip().rpartition("\n")[2]
