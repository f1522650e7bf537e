"""Time what confinement costs: to start a process, and to train the baseline of tiny-lm.

    python benchmarks/confinement.py [TOKENS]

Under each kind that works here, and under none: medians of 31 starts of `true` and of Python with the view of a
training, and the wall and CPU seconds of a whole training of 300,000 tokens.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import prepared, slot_of, train_in

from agent import ideas
from agent.ideas import Fixed
from agent.running import sandbox, views
from agent.running.sandbox import UNCONFINED, Sandbox
from agent.study import workspace

STARTS = 31
PROGRAMS = {"true": ["/bin/true"], "python": [sys.executable, "-s", "-P", "-c", "pass"]}


def main(tokens: int) -> None:
    found = [sandbox.find_bubblewrap(), sandbox.find_landlock(), UNCONFINED]
    kinds = [kind for kind in found if isinstance(kind, Sandbox)]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for kind in kinds:
            medians = {name: _start(kind, command, root) for name, command in PROGRAMS.items()}
            print(f"{kind.kind}: " + ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in medians.items()))
        fixed = Fixed(tokens=tokens, evals="core")
        lab = prepared(root, fixed)
        for kind in kinds:
            print(f"{kind.kind}: {_train(kind, fixed, root, lab)}", flush=True)


def _start(kind: Sandbox, command: list[str], root: Path) -> float:
    """Return the median seconds of a start."""
    folders = [root / name for name in ("run", "scratch")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    script, (run_dir, scratch) = root / "experiment.py", folders
    script.touch()
    view, seconds = views.for_training(script, run_dir, os.environ), []
    for _ in range(STARTS):
        start = time.perf_counter()
        with kind.command(command, view, cwd=root, scratch=scratch) as (confined, descriptors):
            subprocess.run(confined, pass_fds=descriptors, cwd=root, check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _train(kind: Sandbox, fixed: Fixed, root: Path, lab: dict[str, Any]) -> str:
    """Return what a training of the baseline took."""
    study = workspace.create_study(root, kind.kind)
    with slot_of(study, fixed, lab, kind) as slot:
        start = time.perf_counter()
        work = train_in(slot, ideas.render_baseline(fixed), study.directory / "run_0", timeout=600)
    return f"a training of {fixed.tokens:,} tokens {time.perf_counter() - start:.1f} s, CPU {work.cpu_seconds:.1f} s"


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 300_000)
