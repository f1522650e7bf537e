"""Ground truth: an SAE's latents against the true features of a synthetic world.

F1, precision, recall, MCC, uniqueness and dead latents are computed by sae_lens.synthetic, absorption by ground_truth.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab import worlds
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.evaluation.ground_truth import MATCHED, descendants, measure
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

__all__ = [
    "MATCHED",
    "SUMMARY",
    "descendants",
    "score",
    "unmet_requirements",
]  # MATCHED and descendants for ideas written for an earlier layout

SUMMARY = "F1, MCC, uniqueness and absorption against a world's true features"


def unmet_requirements(_: EvalTarget) -> list[UnmetRequirement]:
    """Return nothing: the features of every world are known."""
    return []


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Score an SAE on a world's samples; sae_lens's own JSON, with absorption by parent, is kept in `out`."""
    assert isinstance(evaluator, WorldEvaluator)
    scored, record = measure(evaluator.world, sae, evaluator.held_out(evaluator.split).features)
    (out / f"{name}_synthetic.json").write_text(json.dumps(record, indent=2) + "\n")
    if evaluator.model_name in worlds.SIZES:
        scored.remark = "local equivalent: the world was built here, and equals the published recipe in distribution"
    return scored
