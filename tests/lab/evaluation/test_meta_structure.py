"""Meta-structure: SAE-Bench's own metrics, reproducible, for decoder rows of any length."""

import json
import random
from pathlib import Path

import pytest
import torch
from small_lab import HOOK, K

from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import meta_structure
from agent.lab.evaluation.sae_adapter import BenchSAE

WIDTH = 16


def score(evaluator: Evaluator, sae: BenchSAE, out: Path) -> dict[str, float | None]:
    out.mkdir()
    return meta_structure.score(evaluator, sae, out, "sae").metrics


@pytest.mark.slow
def test_the_metrics_equal_sae_benchs_whatever_the_lengths_of_decoder_rows(evaluator: Evaluator, tmp_path: Path):
    from sae_bench.evals.meta_structure import main
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

    sae = evaluator.random_sae(WIDTH, K)
    random.seed(meta_structure.SEED)
    torch.manual_seed(meta_structure.SEED)
    with torch.enable_grad():
        main.run_eval(MetaStructureEvalConfig(), [("sae", sae)], "cpu", str(tmp_path / "theirs"))  # type: ignore[list-item]

    theirs = json.loads((tmp_path / "theirs" / "sae_custom_sae_eval_results.json").read_text())
    figures = theirs["eval_result_metrics"]["meta_structure"]
    sae.W_dec = sae.W_dec * torch.linspace(0.1, 3, WIDTH)[:, None]
    with torch.no_grad():  # another evaluation may have switched gradients off
        ours = score(evaluator, sae, tmp_path / "ours")
    assert ours == pytest.approx({name: figures[name] for name in ours}, abs=1e-4)
    assert 0.05 < ours["decoder_fraction_variance_explained"] < 0.95  # type: ignore[operator]


def test_it_has_no_requirements(tmp_path: Path):
    assert meta_structure.unmet_requirements(EvalTarget("synth2k", HOOK, True, {}, lambda: None, tmp_path, {})) == []
