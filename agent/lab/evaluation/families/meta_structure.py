"""SAE-Bench `meta_structure`: how much of the decoder a smaller SAE, trained on the decoder's rows, explains.

It reads nothing but the decoder, so it runs on any model, a synthetic world included. The decoder's rows are brought to
length 1 (see patching.UnitNorm). Only SAEs of one width are comparable: the smaller one has a quarter of it.
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
    """Return nothing: every SAE has a decoder."""
    return []


def score(_: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Run SAE-Bench's own training on the decoder; its entry point sets no seed. Raises EvaluationError."""
    from sae_bench.evals.meta_structure import main
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

    config, sae = MetaStructureEvalConfig(random_seed=SEED), patching.UnitNorm(sae)
    with patching.isolated_sae_bench(main, out, SEED):
        main.run_eval(config, [(name, sae)], str(sae.device), str(out.absolute()))  # type: ignore[list-item]
    metrics = patching.metrics(patching.read_answer(out, name))
    del metrics["train_time_seconds"]  # no property of the SAE, and never twice the same
    return FamilyScores(metrics=metrics)
