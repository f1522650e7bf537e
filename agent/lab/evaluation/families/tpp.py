"""SAE-Bench `tpp`, targeted probe perturbation: whether ablating one class's latents leaves the other classes alone.

A probe is trained for every class on the model's mean activations, and the n latents that affect it most are ablated.
The score is the accuracy that the class's own probe loses, less the mean of what the others lose.

Classes: four kinds of news and the places of five countries (labelled_datasets.MANY_WAY), on held-out prompts of the
probing texts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.evaluation.bench import labelled_datasets, probe_ablation
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "whether ablating the latents of one class leaves the others alone"


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    datasets = list(labelled_datasets.MANY_WAY.values())
    per_class = sum(probe_ablation.SIZES[False]) // 2
    return labelled_datasets.unmet_requirements(target, datasets, per_class)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Return SAE-Bench's tpp_threshold_N_{total_metric,intended_diff_only,unintended_diff_only} for N latents."""
    return probe_ablation.score_family(evaluator, sae, out, name, "tpp")
