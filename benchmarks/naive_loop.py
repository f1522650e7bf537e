"""Compare a study with the loop that one would write without sae-agent: six trainings, each scored, nothing kept.

    python benchmarks/naive_loop.py

- The naive way: naive_run.py, six times (a baseline and five runs), each in a fresh process that loads the model, runs
  it over the text, trains SAELens' BatchTopK, and scores it by SAE-Bench core and sae-probes, on our text and datasets
  and as much of them. Model and text lie ready in files.
- Ours, from nothing: `agent run --idea hierarchical_sae --max-runs 5` with an empty cache. It does more: it measures
  the noise by further baselines, and trains winners again with fresh seeds.
- Ours, cached: the same command again.

A line of the table has what a careful loop would take, one that runs the model over the text and the prompts only once.
numpy has one BLAS thread in the naive way, torch as many as by default.

Nothing else should run at the same time. It takes about three quarters of an hour on 2 cores, and ends with 1 if an aim
is missed. `--tokens 200000 --runs 1` is a trial of the benchmark itself: six runs are then reckoned from one.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import naive_run
import yaml

ROOT = Path(__file__).resolve().parent.parent
TOKENS, IDEA = 1_500_000, "hierarchical_sae"
RUNS = 6  # a baseline and five runs
ONCE = ("harvest", "probing the model")  # stages that do not depend on the SAE
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# As it is before agent.lab, which prepare() imports, adds its own settings.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in THREADS}


def prepare(folder: Path) -> None:
    """Write the model and the text that naive_run.py reads, and check that it scores as much as we do."""
    from agent.lab import text
    from agent.lab.defaults import CONTEXT
    from agent.lab.evaluation.bench import core_text, probing

    ours = (core_text.BATCH_WINDOWS, core_text.RECONSTRUCTION_BATCHES, core_text.VARIANCE_BATCHES, CONTEXT)
    naive = (naive_run.BATCH_WINDOWS, naive_run.RECONSTRUCTION_BATCHES, naive_run.VARIANCE_BATCHES, naive_run.CONTEXT)
    assert (*ours, list(probing.DATASETS), probing.KS) == (*naive, naive_run.PROBED, naive_run.PROBE_KS)
    shutil.copytree(ROOT / "agent/lab/tiny_lm", folder / naive_run.MODEL)
    splits: dict[str, text.Split] = {"train": "sae", "held_out": "dev"}
    for name, split in splits.items():
        documents = list(text.prompts(split))
        random.Random(0).shuffle(documents)
        (folder / name).mkdir()
        lines = (json.dumps({"text": document}) + "\n" for document in documents)
        (folder / name / "train.jsonl").write_text("".join(lines))


def run_naively(folder: Path, seed: int, tokens: int) -> dict[str, Any]:
    """Run naive_run.py; return its last line, with the seconds of its process as `total`."""
    command = [sys.executable, ROOT / "benchmarks/naive_run.py", folder, str(seed), str(tokens)]
    started = time.monotonic()
    with (folder / f"run_{seed}.log").open("w") as log:
        result = subprocess.run(
            command, env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    if result.returncode:
        sys.exit((folder / f"run_{seed}.log").read_text()[-3000:])
    answer = json.loads(result.stdout.splitlines()[-1])
    answer["total"] = time.monotonic() - started
    show = ", ".join(f"{name} {seconds:.0f}" for name, seconds in answer["seconds"].items())
    print(f"naive run {seed}: {answer['total']:.0f} s ({show})", file=sys.stderr, flush=True)
    return answer


def make_checkout(folder: Path, tokens: int) -> Path:
    """Create a copy of this checkout, whose idea trains on `tokens`."""
    for name in ("agent", "templates"):
        shutil.copytree(ROOT / name, folder / name)
    if tokens != TOKENS:
        path = folder / "templates/ideas" / IDEA / "idea.yaml"
        idea = yaml.safe_load(path.read_text())
        idea["fixed"] = idea.get("fixed", {}) | {"tokens": tokens}
        path.write_text(yaml.safe_dump(idea))
    return folder


@dataclass(frozen=True)
class OurStudy:
    """The seconds of a study, its trainings, and the figures of its baseline."""

    seconds: float
    trainings: int
    figures: dict[str, float]


def run_ours(checkout: Path) -> OurStudy:
    """Run a study in a checkout, with the cache in it."""
    env = ENVIRONMENT | {"PYTHONPATH": str(checkout), "SAE_AGENT_CACHE": str(checkout / "cache")}
    command = [sys.executable, "-P", "-m", "agent", "run", "--idea", IDEA, "--max-runs", str(RUNS - 1)]
    started = time.monotonic()
    subprocess.run(command, cwd=checkout, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)
    seconds = time.monotonic() - started
    study = max(checkout.glob("runs/*/"))
    events = [json.loads(line) for line in (study / "events.jsonl").read_text().splitlines()]
    jobs = [event["job"] for event in events if event["event"] == "job_submitted"]
    info = json.loads((study / "run_0/final_info.json").read_text())
    figures = {name: info["core"][name] for name in ("l0", "ce_loss_score")}
    figures["probing_auc_5"] = info["probing"]["auc"]["5"]
    trainings = [job for job in jobs if re.match(r"run_\d+_(attempt|seed)_|baseline_", job)]
    return OurStudy(seconds, len(trainings), figures)


def mean(runs: list[dict[str, Any]], group: str) -> dict[str, float]:
    return {name: sum(run[group][name] for run in runs) / len(runs) for name in runs[0][group]}


def show_figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def report(naive: list[dict[str, Any]], first: OurStudy, cached: OurStudy) -> bool:
    """Print both tables; return whether the aims are met."""
    total, stages = RUNS * sum(run["total"] for run in naive) / len(naive), mean(naive, "seconds")
    stages["start and end of the process"] = total / RUNS - sum(stages.values())
    print("\n| a naive run | seconds |\n| --- | --- |")
    for name, seconds in stages.items():
        print(f"| {name} | {seconds:.1f} |")
    count = f"{RUNS} runs" if len(naive) == RUNS else f"{RUNS} runs, reckoned from {len(naive)}"
    once = total - (RUNS - 1) * sum(stages[name] for name in ONCE)
    rows: list[tuple[str, float, float]] = [
        (f"naive, {count}", total, 0),
        ("naive, with the model run once", once, 0),
        (f"ours, from nothing, {first.trainings} trainings", first.seconds, 1),
        (f"ours, cached, {cached.trainings} trainings", cached.seconds, 4),
    ]
    print(f"\n| {os.cpu_count()} cores | seconds | times as fast as naive | aim | |\n| --- | --- | --- | --- | --- |")
    for name, seconds, aim in rows:
        ratio = total / seconds
        verdict = f"at least {aim:g} | {'met' if ratio >= aim else 'MISSED'}" if aim else "|"
        print(f"| {name} | {seconds:.0f} | {ratio:.2f} | {verdict} |")
    print(
        f"\nThe naive SAEs, mean: {show_figures(mean(naive, 'figures'))}. Our baseline: {show_figures(first.figures)}."
    )
    return all(total / seconds >= aim for _, seconds, aim in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=int,
        choices=range(1, RUNS + 1),
        default=RUNS,
        help="naive runs to measure; the rest are reckoned from them",
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each training, on both sides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "naive")
        folder.mkdir()
        prepare(folder)
        naive = [run_naively(folder, seed, args.tokens) for seed in range(args.runs)]
        checkout = make_checkout(Path(scratch, "ours"), args.tokens)
        first, cached = run_ours(checkout), run_ours(checkout)
    sys.exit(not report(naive, first, cached))


if __name__ == "__main__":
    main()
