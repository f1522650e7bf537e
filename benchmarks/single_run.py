"""Measure how fast and how good a single run is: the table of the README.

    python benchmarks/single_run.py

Runs experiment.py twice with an empty cache (the second finds everything cached), checks that the same seed gives the
same metrics and that the baseline is healthy, and times one training step against SAELens' BatchTopK on the same
activations, the two in turn. Nothing else should run at the same time.
"""

import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.lab.activations import stream
from agent.lab.results import FinalInfo, read

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, STEPS = 5, 40  # of the step comparison


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


def our_step(data: list[Tensor]) -> Callable[[int], None]:
    """Return a training step of experiment.py as in its main(), without the guard."""
    experiment = runpy.run_path(str(ROOT / "experiment.py"))
    sae = experiment["SAE"](data[0].shape[1], experiment["D_SAE"], data[0].mean(0))
    optimizer = torch.optim.Adam(sae.parameters(), lr=experiment["LEARNING_RATE"])
    none_dead = torch.empty(0, dtype=torch.long)
    silent = torch.zeros(experiment["D_SAE"])

    def step(index: int) -> None:
        nonlocal silent
        x = data[index % len(data)]
        loss, latents, _ = experiment["compute_loss"](sae, x, none_dead)
        loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        experiment["constrain"](sae)
        silent = torch.where((latents.detach() > 0).any(0), 0, silent + len(x))

    return step


def sae_lens_step(data: list[Tensor], d_sae: int, k: int) -> Callable[[int], None]:
    """Return the same step with SAELens' BatchTopK as in its SAETrainer, without logging."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(0)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=data[0].shape[1], d_sae=d_sae, k=k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    silent = torch.zeros(d_sae)
    none_dead = torch.zeros(d_sae, dtype=torch.bool)

    def step(index: int) -> None:
        x = data[index % len(data)]
        step_input = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=none_dead, n_training_steps=index, is_logging_step=False
        )
        output = sae.training_forward_pass(step_input)
        fired = output.feature_acts.bool().float().sum(-2).bool()
        silent.add_(1)
        silent[fired] = 0
        output.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_steps() -> tuple[float, float]:
    """Return the median milliseconds of our step and of SAELens', measured in turn on the same machine."""
    constants = runpy.run_path(str(ROOT / "experiment.py"))
    source = stream(
        constants["MODEL"], constants["HOOK_NAME"], tokens=constants["TOKENS"], batch=constants["BATCH"], seed=0
    )
    data = [x.clone() for x, _ in zip(source, range(20), strict=False)]
    steps = our_step(data), sae_lens_step(data, constants["D_SAE"], constants["K"])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for step, milliseconds in zip(steps, times, strict=True):
            step(0)
            started = time.monotonic()
            for index in range(STEPS):
                step(index)
            milliseconds.append((time.monotonic() - started) / STEPS * 1000)
    return statistics.median(times[0]), statistics.median(times[1])


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
        ours, theirs = compare_steps()
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
        ("a training step", f"{ours:.1f} ms", "", True),
        ("SAELens' BatchTopK, same activations", f"{theirs:.1f} ms: {theirs / ours:.2f} times ours", "", True),
    ]
    print(f"\n| {torch.get_num_threads()} threads, {info.environment['device']} | measured | required | |")
    print("| --- | --- | --- | --- |")
    for name, measured, required, met in rows:
        print(f"| {name} | {measured} | {required} | {('met' if met else 'MISSED') if required else ''} |")


if __name__ == "__main__":
    main()
