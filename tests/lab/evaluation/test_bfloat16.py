"""One SAE on a language model in bfloat16 and in float32: the difference is less than that between two seeds."""

import statistics
from pathlib import Path
from typing import Any

import pytest
from small_lab import HOOK, TOKENS, experiment, load, save, train

from agent.lab import activations
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.results import Core

pytestmark = pytest.mark.slow

SEEDS = 5
FIGURES = ("ce_loss_score", "explained_variance_centered", "l0")


def scores(evaluator: Evaluator, run_dir: Path) -> Core:
    held_out = evaluator.held_out("dev")
    sae = evaluator.checkpoint_sae(evaluator.load_checkpoint(run_dir, held_out), held_out)
    return evaluator.score_core(sae, held_out, run_dir / str(id(evaluator)), "sae")[0]


def test_an_sae_scores_alike_in_both_dtypes(
    small_model: Path, evaluator: Evaluator, harvest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module, runs = load(experiment(tmp_path, small_model)), []
    for seed in range(SEEDS):
        sae = train(module, activations.stored_stream(*harvest, TOKENS, module.BATCH, seed))
        runs.append(save(tmp_path / f"seed {seed}", sae.requires_grad_(False), harvest[1]))
    exact = [scores(evaluator, run) for run in runs]
    monkeypatch.setenv("SAE_AGENT_DTYPE", "bfloat16")
    low = scores(Evaluator(str(small_model), HOOK), runs[0])
    for name in FIGURES:
        spread = statistics.stdev(getattr(core, name) for core in exact)
        assert 0 < abs(getattr(low, name) - getattr(exact[0], name)) < spread, name
