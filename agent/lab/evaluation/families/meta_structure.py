"""SAE-Bench `meta_structure`: how much of the decoder a smaller SAE, trained on the decoder's rows, explains.

It reads nothing but the decoder, so it runs on any model, a synthetic world included. The rows are shown to it at
length 1 (see stock.UnitNorm). Two SAEs are compared at the same width: the smaller one has a quarter of it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "how much of the decoder an SAE of a quarter of its width explains"

SEED = 42


def unmet_requirements(_: EvalTarget) -> list[UnmetRequirement]:
    """Every SAE has a decoder."""
    return []


def score(_: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """SAE-Bench's own training on the decoder, from its seed: its entry point sets none. Raises EvaluationError."""
    from sae_bench.evals.meta_structure import main
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

    config, sae = MetaStructureEvalConfig(random_seed=SEED), patching.UnitNorm(sae)
    with patching.isolated_sae_bench(main, out, SEED):
        main.run_eval(config, [(name, sae)], str(sae.device), str(out.absolute()))  # type: ignore[list-item]
    metrics = patching.metrics(patching.answer(out, name))
    del metrics["train_time_seconds"]  # says nothing of the SAE, and differs from time to time
    return FamilyScores(metrics=metrics)
