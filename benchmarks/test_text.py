"""Score a study's baselines on both held-out texts: how far a training's figures move from one to the other.

    python benchmarks/test_text.py BASELINES [BASELINES ...]

BASELINES is a folder of the cache that a study filled: ~/.cache/sae-agent/baselines/tiny-lm-... . Its baselines with K
16 and the neighbours are copied and scored; the table is benchmarks/test_text.json, from which
benchmarks/calibration.py takes the noise of the test text. Takes about 20 seconds a baseline.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reseeded_baselines import NEIGHBOURS, K

from agent.comparison import matching
from agent.lab import results
from agent.lab.evaluation.requests import Score, Split
from agent.lab.metrics import HEADLINE

TABLE = Path(__file__).with_suffix(".json")
OUT: dict[Split, str] = {"dev": "final_info.json", "test": "test_info.json"}


def score(run_dirs: list[Path]) -> None:
    """Have each checkpoint scored on both texts by one evaluator."""
    requests = [
        Score(run_dir=run, out=out, split=split, evals=("core",)) for run in run_dirs for split, out in OUT.items()
    ]
    evaluator = [sys.executable, "-P", "-m", "agent.lab.evaluation", "--serve"]
    lines = "".join(request.model_dump_json() + "\n" for request in requests)
    subprocess.run(evaluator, input=lines, text=True, check=True)


def figures(run_dir: Path, split: Split) -> dict[str, float]:
    """Return the headline figures of core on a text."""
    info = results.read(run_dir, OUT[split])
    assert info.verdict.ok, (run_dir, info.verdict)
    return {name: value for name, value in matching.all_metrics(info).items() if name in HEADLINE and value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baselines", type=Path, nargs="+")
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, folder in enumerate(parser.parse_args().baselines):
            copies = [
                Path(shutil.copytree(run / "checkpoint", Path(scratch) / f"{number}_{run.name}" / "checkpoint")).parent
                for k in (K, *NEIGHBOURS)
                for run in sorted(folder.glob(f"k{k}_seed*"))
            ]
            score(copies)
            for run_dir in copies:
                training = results.read(run_dir).training
                assert training
                about = {"tokens": training.tokens, "d_sae": training.d_sae, "k": training.settings["K"]}
                table.append(about | {"seed": training.seed} | {split: figures(run_dir, split) for split in OUT})
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
