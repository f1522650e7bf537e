"""Measure how many jobs at once, with how many threads each, are fastest on this machine's cores.

    python benchmarks/slots.py [JOBS] [TOKENS]

Trains and scores baselines with other seeds on tiny-lm, JOBS of TOKENS for each way: with one slot that has a thread a
core, and with a slot of one thread for each core. A slot has an evaluator of its own; one that all slots shared would
do no more in a second than the first way's, which has all cores for itself. With 6 jobs of 1,500,000 tokens, the
default, it takes some 15 minutes on 2 cores; nothing else should run at the same time.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from training import prepared

from agent import ideas
from agent.ideas import Fixed
from agent.lab.evaluation.requests import Score
from agent.running.jobs import JOB, OUTCOME, Job, Outcome, Setup, Training
from agent.running.local import LocalSlots
from agent.running.sandbox import settle
from agent.study import workspace

EVALS = ("core", "sparse_probing_sae_probes")


def main(jobs: int, tokens: int) -> None:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as directory:
        for slots, threads in ((1, cores), (cores, 1)):
            fixed = Fixed(tokens=tokens, threads=threads)
            seconds, outcomes = carry_out(Path(directory), fixed, slots, jobs)
            training = sum(each.training_seconds for each in outcomes) / jobs
            evaluation = sum(each.evaluation_seconds for each in outcomes) / jobs
            print(
                f"{slots} at once, {threads} threads each: {seconds / jobs:.1f} s a job (a training {training:.1f} s, "
                f"an evaluation {evaluation:.1f} s, so {evaluation / slots:.1f} s of the machine)",
                flush=True,
            )


def carry_out(root: Path, fixed: Fixed, slots: int, jobs: int) -> tuple[float, list[Outcome]]:
    """Carry out jobs in warm slots; return the seconds that all of them took, and what came out."""
    lab = prepared(root, fixed)
    study = workspace.create_study(root, f"slots_{slots}")
    setup = study.directory / "setup.json"
    artefacts = Path(lab["artefacts"])
    kind = settle("auto").kind
    about = {"study": study.directory, "fixed": fixed, "evals": EVALS, "device": "cpu", "artefacts": artefacts}
    Setup.model_validate(about | {"kind": kind}).write(setup)
    executor = LocalSlots(setup, slots, [])
    try:
        _wait_for(executor, [_submit(executor, study.directory, fixed, -number) for number in range(1, slots + 1)])
        start = time.monotonic()
        directories = [_submit(executor, study.directory, fixed, seed) for seed in range(jobs)]
        _wait_for(executor, directories)
        return time.monotonic() - start, [Outcome.read(directory / OUTCOME) for directory in directories]
    finally:
        executor.close()


def _submit(executor: LocalSlots, study: Path, fixed: Fixed, seed: int) -> Path:
    directory = study / "jobs" / f"seed_{seed}"
    directory.mkdir(parents=True)
    training = Training(source=ideas.render_baseline(fixed), directory="run", seed=seed, timeout=3600)
    request = Score(run_dir=directory, evals=EVALS)
    Job(label=directory.name, training=training, request=request, timeout=3600).write(directory / JOB)
    executor.submit(directory)
    return directory


def _wait_for(executor: LocalSlots, directories: list[Path]) -> None:
    while not all((directory / OUTCOME).exists() for directory in directories):
        for directory, status in executor.poll().items():
            if status.verdict:
                sys.exit(f"{directory.name}: {status.verdict.name}: {status.verdict.evidence}")
        time.sleep(0.2)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [6, 1_500_000][len(given) :]))
