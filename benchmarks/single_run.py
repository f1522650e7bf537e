"""Measure how fast and how good a single run is: the table of the README.

    python benchmarks/single_run.py

Runs experiment.py twice with an empty cache (the second finds everything cached), and checks that the same seed gives
the same metrics and that the baseline is healthy. benchmarks/step.py times a training step. Nothing else should run at
the same time.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from agent.lab.results import FinalInfo, read

ROOT = Path(__file__).resolve().parent.parent


def run_once(out_dir: Path) -> tuple[float, FinalInfo]:
    """Run experiment.py; return its wall-clock seconds and its results."""
    started = time.monotonic()
    subprocess.run([sys.executable, "experiment.py", f"--out_dir={out_dir}"], cwd=ROOT, check=True)
    return time.monotonic() - started, read(out_dir)


def figures(run_dir: Path) -> str:
    """Return a run's results without times and environment, which differ between two runs of the same seed."""
    info = json.loads((run_dir / "final_info.json").read_text())
    for name in ("environment", "evaluation_seconds"):
        info.pop(name)
    info["training"].pop("seconds")
    return json.dumps(info)


def help_seconds() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "agent", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SAE_AGENT_CACHE"] = str(Path(scratch, "cache"))
        first, info = run_once(Path(scratch, "run_0"))
        second, _ = run_once(Path(scratch, "run_1"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kilobytes on Linux
        same = figures(Path(scratch, "run_0")) == figures(Path(scratch, "run_1"))
    assert info.core
    assert info.latents
    assert info.probing
    assert info.training
    k = info.training.settings["K"]
    rows = [
        ("first run, nothing cached", f"{first:.0f} s", "at most 180 s", first <= 180),
        ("next run", f"{second:.0f} s", "at most 100 s", second <= 100),
        ("peak memory of a process", f"{peak:.2f} GB", "under 3 GB", peak < 3),
        ("agent --help", f"{(seconds := help_seconds()):.2f} s", "under 1 s", seconds < 1),
        ("same seed, same figures", "yes" if same else "no", "yes", same),
        ("L0", f"{info.core.l0:.2f}", f"within 5% of {k}", abs((info.core.l0 or 0) / k - 1) <= 0.05),
        (
            "explained variance, centred",
            f"{info.core.explained_variance_centered:.4f}",
            "at least 0.80",
            (info.core.explained_variance_centered or 0) >= 0.8,
        ),
        ("CE-loss score", f"{info.core.ce_loss_score:.4f}", "at least 0.95", (info.core.ce_loss_score or 0) >= 0.95),
        ("loss added", f"{info.core.loss_added:.3f} nats", "", True),
        ("alive fraction", f"{info.latents.alive_fraction:.3f}", "", True),
        (
            "probing AUC, top 5 (model / random encoder)",
            f"{info.probing.auc[5]:.3f} ({info.probing.llm_auc:.3f} / {info.probing.random_auc[5]:.3f})",
            "",
            True,
        ),
    ]
    print(f"\n| {torch.get_num_threads()} threads, {info.environment['device']} | measured | required | |")
    print("| --- | --- | --- | --- |")
    for name, measured, required, met in rows:
        print(f"| {name} | {measured} | {required} | {('met' if met else 'MISSED') if required else ''} |")


if __name__ == "__main__":
    main()
