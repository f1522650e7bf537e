"""Compare the baseline on a synthetic world with SAELens' BatchTopK on the same samples.

    python benchmarks/synthetic_world.py [--seeds 3]

Both train at the size of synth2k (width 512, K 8, 1M samples) in turn, seed by seed: ours as in experiment.py, SAELens'
with the settings of its published figures. Both are scored as saved (with a threshold instead of the top K of a batch)
by sae_lens.synthetic on the development samples. Required: mean F1 within 0.03 of each other.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from agent import ideas
from agent.ideas import Fixed
from agent.lab import defaults, results
from agent.lab.activations import stream
from agent.lab.evaluation import ground_truth
from agent.lab.evaluation.world_evaluator import WorldEvaluator

FIXED = Fixed(model="synth2k")
BATCH, LEARNING_RATE, DEAD_STEPS = 256, 1e-3, 150  # SAELens'
SHOWN = ("f1", "precision", "recall", "uniqueness", "mcc", "explained_variance", "absorption", "dead_latents", "l0")
CLOSE = 0.03  # of F1
Scores = dict[str, float | None]


def ours(seed: int) -> tuple[Scores, float]:
    """Return the scores of experiment.py, run by hand, and its seconds of training."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "experiment.py").write_text(ideas.render_baseline(FIXED.with_changes(seed=seed)))
        subprocess.run([sys.executable, "experiment.py", "--out_dir=run_0"], cwd=scratch, check=True)
        info = results.read(Path(scratch, "run_0"))
    assert info.verdict.ok, info.verdict
    assert info.training
    return info.evaluations["synthetic"].metrics, info.training.seconds


def sae_lens(seed: int, evaluator: WorldEvaluator) -> tuple[Scores, float]:
    """Return the same for SAELens' BatchTopK on the same samples in the same order, in the world's own units."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig
    from sae_lens.synthetic import SyntheticSAERunnerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    source = stream(FIXED.model, FIXED.hook_name, tokens=FIXED.tokens, batch=BATCH, seed=seed)

    def samples() -> Iterator[Tensor]:
        while True:  # the trainer reads some before it starts, and sees these again at its end
            yield from (x / source.manifest.scale for x in source)

    k = defaults.for_model(FIXED.model).k
    config = SyntheticSAERunnerConfig(
        synthetic_model=FIXED.model,  # not read: the samples are given
        sae=BatchTopKTrainingSAEConfig(d_in=source.d_in, d_sae=FIXED.d_sae, k=k),  # type: ignore[arg-type]
        training_samples=FIXED.tokens,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        dead_feature_window=DEAD_STEPS,
        logger=LoggingConfig(log_to_wandb=False),
    )
    torch.manual_seed(seed)
    trainer = SAETrainer(
        cfg=config.to_sae_trainer_config(),
        sae=BatchTopKTrainingSAE(config.sae),  # type: ignore[arg-type]
        data_provider=samples(),
        evaluator=None,
        save_checkpoint_fn=None,
    )
    started = time.monotonic()
    trained = trainer.fit()
    seconds = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
    scored, _ = ground_truth.measure(evaluator.world, saved, evaluator.held_out("dev").features)  # type: ignore[arg-type]
    return scored.metrics, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    evaluator = WorldEvaluator(FIXED.model, FIXED.hook_name)
    runs_of: dict[str, list[tuple[Scores, float]]] = {"experiment.py": [], "SAELens": []}
    for seed in seeds:
        runs_of["experiment.py"].append(ours(seed))
        runs_of["SAELens"].append(sae_lens(seed, evaluator))
    print(f"\n| {FIXED.model}, seed | " + " | ".join(SHOWN) + " | training |")
    print("| --- |" + " ---: |" * (len(SHOWN) + 1))
    for trainer, runs in runs_of.items():
        for seed, (scores, seconds) in zip(seeds, runs, strict=True):
            figures = [f"{scores[name]:.4g}" if scores[name] is not None else "-" for name in SHOWN]
            print(f"| {trainer}, {seed} | {' | '.join(figures)} | {seconds:.0f} s |")
    f1 = {trainer: statistics.mean(scores["f1"] or 0.0 for scores, _ in runs) for trainer, runs in runs_of.items()}
    difference = f1["experiment.py"] - f1["SAELens"]
    outcome = "met" if abs(difference) <= CLOSE else "MISSED"
    print(
        f"\nF1, mean: {f1['experiment.py']:.4f} and {f1['SAELens']:.4f}: {difference:+.4f}, within {CLOSE}: {outcome}"
    )


if __name__ == "__main__":
    main()
