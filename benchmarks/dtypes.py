"""python benchmarks/dtypes.py RUN_DIR [RUN_DIR ...]: score runs on their model in float32 and in bfloat16.

Printed are the figures of core in both dtypes, and the standard deviation over the runs: give reseeded baselines of one
study, of one model and hook.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

from agent.lab import checkpoint
from agent.lab.defaults import DTYPES
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.results import Core

FIGURES = ("explained_variance_centered", "ce_loss_score", "loss_added", "kl_div_score", "l0")


def score(run_dirs: list[Path], dtype: str) -> list[Core]:
    """Return core of each run, with the model in this dtype."""
    os.environ["SAE_AGENT_DTYPE"] = dtype
    header = checkpoint.read_header(run_dirs[0] / "checkpoint")
    evaluator = Evaluator(header.model, header.hook_name)
    held_out, cores = evaluator.held_out("dev"), []
    for run_dir in run_dirs:
        sae = evaluator.checkpoint_sae(evaluator.load_checkpoint(run_dir, held_out), held_out)
        with tempfile.TemporaryDirectory() as out:
            cores.append(evaluator.score_core(sae, held_out, Path(out), "sae")[0])
    return cores


def main() -> None:
    run_dirs = [Path(path) for path in sys.argv[1:]]
    float32, bfloat16 = (score(run_dirs, dtype) for dtype in DTYPES)
    print("| run | figure | float32 | bfloat16 | difference | standard deviation over the runs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run_dir, one, other in zip(run_dirs, float32, bfloat16, strict=True):
        for name in FIGURES:
            exact, low = getattr(one, name), getattr(other, name)
            spread = f"{statistics.stdev(getattr(core, name) for core in float32):.2g}" if run_dirs[1:] else ""
            print(f"| {run_dir.name} | {name} | {exact:.6f} | {low:.6f} | {low - exact:+.2g} | {spread} |")


if __name__ == "__main__":
    main()
