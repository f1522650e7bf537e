"""Try each idea's main constant halved and doubled, on training text alone.

    python benchmarks/tuning.py OUT_DIR [--model tiny-lm] [--tokens 500_000]

Each try trains a step of an idea's plan, or the baseline, unchanged or with one constant halved or doubled, on fewer
tokens than a study has. It is judged on training data: by the mean squared error over the last tenth of its training
tokens (each is seen once, so they were new) and on a world by F1 on 50,000 of the training samples. No held-out text is
read. Two trainings run at a time, one thread each; tries already in OUT_DIR are not repeated.
"""

import argparse
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from training import train

from agent import ideas
from agent.ideas import Fixed
from agent.lab import checkpoint, results, worlds
from agent.lab.defaults import WORLD_HOOK, is_world
from agent.lab.evaluation import ground_truth
from agent.lab.evaluation.sae_adapter import CheckpointSAE, bench_config

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

SAMPLES = 50_000
# For each idea the step with its mechanisms, and its most important own constant. What all share with the baseline
# (learning rate, batch, K) is not tuned for any.
TRIES = {
    "baseline": (None, "AUX_COEFFICIENT"),
    "matryoshka_sae": ("eighths", "AUX_COEFFICIENT"),
    "hierarchical_sae": ("curriculum", "COMPOSITION_COEFFICIENT"),
    "tree_sae": ("full", "CONSISTENCY_COEFFICIENT"),
    "adaptive_orthogonal_sae": ("adaptive", "ORTHOGONALITY_COEFFICIENT"),
    "absorption_prevention_sae": ("full", "K_START"),
}
FACTORS = (0.5, 2)


def sources(idea: str, fixed: Fixed) -> dict[str, str]:
    """Return the sources of an idea's tries, by name."""
    step_name, constant = TRIES[idea]
    if step_name is None:
        source = ideas.render_baseline(fixed)
    else:
        loaded = ideas.load(idea)
        source = ideas.render_step(loaded, next(s for s in loaded.plan if s.name == step_name), fixed)
    tries = {f"{idea} as it stands": source}
    for factor in FACTORS:
        changed, count = re.subn(
            rf"(?m)^({constant} = )([^#\n]*?)(  #.*)?$", rf"\g<1>{factor:g} * (\g<2>)\g<3>", source
        )
        assert count == 1, f"{idea} has no constant {constant}"
        tries[f"{idea} {constant} x{factor:g}"] = changed
    return tries


def training_scores(run_dir: Path, world: "SyntheticModel | None", features: list[torch.Tensor]) -> dict[str, float]:
    """Return the error on the last tenth of the training tokens, and on a world the ground-truth metrics on samples."""
    rows = results.read_metrics(run_dir)
    last = [row.mse for row in rows if row.tokens > 0.9 * rows[-1].tokens and row.mse is not None]
    scores = {"mse": sum(last) / len(last), "l0": rows[-1].l0 or 0.0}
    if world:
        loaded = checkpoint.load(run_dir / "checkpoint")
        cfg = bench_config("world", WORLD_HOOK, loaded.header.d_in, loaded.header.d_sae, 128)
        sae = CheckpointSAE(cfg, loaded, world.feature_dict(features[0].to_dense())[:64])
        scored, _ = ground_truth.measure(world, sae, features)
        for name in ("f1", "uniqueness", "absorption"):
            scores[name] = scored.metrics[name] or 0.0
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--model", default="tiny-lm")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--ideas", nargs="*", default=list(TRIES))
    args = parser.parse_args()
    out: Path = args.out_dir.absolute()
    out.mkdir(parents=True, exist_ok=True)
    fixed = Fixed(model=args.model, tokens=args.tokens)
    tries = {name: source for idea in args.ideas for name, source in sources(idea, fixed).items()}
    with ThreadPoolExecutor(2) as two:
        names = [re.sub(r"\W+", "_", name) for name in tries]
        for name, source in zip(names, tries.values(), strict=True):
            (out / f"{name}.py").write_text(source)
        run_dirs = dict(zip(tries, two.map(lambda name: train(out / f"{name}.py", out / name), names), strict=True))
    world, features = None, []
    if is_world(args.model):
        world = worlds.load(args.model)
        features = [truth.to_sparse() for _, truth in worlds.samples(world, SAMPLES, "sae")]
    scored = {name: training_scores(run_dir, world, features) for name, run_dir in run_dirs.items()}
    columns = list(next(iter(scored.values())))
    print("| try | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, scores in scored.items():
        print(f"| {name} | " + " | ".join(f"{scores[column]:.4f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
