"""Train the baseline many times with other seeds and score each: the pool that benchmarks/calibration.py draws from.

    python benchmarks/reseeded_baselines.py OUT_DIR [--seeds 32]

Writes OUT_DIR/k16_seed100/ and so on, and the table benchmarks/reseeded_baselines.json. Runs already in OUT_DIR are not
repeated. Each training takes one thread, so that the machine stays usable; 32 seeds take most of an hour.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from training import train

from agent import ideas
from agent.comparison import matching
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.results import FinalInfo

TABLE = Path(__file__).with_suffix(".json")
K = 16
FIRST_SEED = 100  # above those that a study uses
NEIGHBOURS = (15, 17)
SEEDS_OF_NEIGHBOUR = 3


def baseline(out: Path, k: int, seed: int) -> Path:
    """Train one baseline in its own process, unless it exists already; return its directory."""
    source = ideas.render_baseline(Fixed(seed=seed))
    source, count = re.subn(r"(?m)^K = 16\b", f"K = {k}", source)
    assert count == 1
    script = out / f"k{k}_seed{seed}.py"
    script.write_text(source)
    return train(script, out / f"k{k}_seed{seed}")


def floor(info: FinalInfo) -> dict[str, float | None]:
    """Return the scores of a random untrained SAE of the same width and sparsity, as far as they were measured."""
    assert info.core
    assert info.floor
    assert info.probing
    score, with_ablation = info.floor.ce_loss_score, info.core.ce_loss_with_ablation
    assert score is not None
    assert with_ablation is not None
    assert info.core.ce_loss_without_sae is not None
    return {
        "l0": info.floor.k,
        "explained_variance_centered": info.floor.explained_variance_centered,
        "ce_loss_score": score,
        "loss_added": (1 - score) * (with_ablation - info.core.ce_loss_without_sae),  # as the score is defined
        "probing_auc_5": info.probing.random_auc[5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seeds", type=int, default=32)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    pairs = [(k, FIRST_SEED + seed) for seed in range(SEEDS_OF_NEIGHBOUR) for k in (K, *NEIGHBOURS)]
    pairs += [(K, FIRST_SEED + seed) for seed in range(SEEDS_OF_NEIGHBOUR, args.seeds)]
    run_dirs = [baseline(args.out_dir, k, seed) for k, seed in pairs]
    unscored = [str(run_dir) for run_dir in run_dirs if not (run_dir / "final_info.json").exists()]
    if unscored:
        subprocess.run([sys.executable, "-P", "-m", "agent.lab.evaluation", *unscored], check=True)
    table = []
    for (k, seed), run_dir in zip(pairs, run_dirs, strict=True):
        info = results.read(run_dir)
        assert info.verdict.ok, (k, seed, info.verdict)
        table.append({"k": k, "seed": seed, "figures": matching.all_metrics(info), "floor": floor(info)})
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
