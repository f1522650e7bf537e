"""SAE-Bench `tpp`, targeted probe perturbation: does ablating the latents of one class leave the other classes alone?

A probe is trained for each class on the model's mean activations; the n latents that move it most are ablated. The
score is the accuracy this takes from the class's own probe, less the mean of what it takes from the others.

Classes: four kinds of news and the places of five countries (labelled.MANY_WAY), held-out prompts of the probing texts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab import models
from agent.lab.evaluation.bench import labelled_datasets, probe_ablation
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "whether ablating the latents of one class leaves the others alone"


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    used = list(labelled_datasets.MANY_WAY.values())
    each = sum(probe_ablation.SIZES[False]) // 2
    return labelled_datasets.unmet_requirements(place, used, each)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """SAE-Bench's tpp_threshold_N_total_metric, ..._intended_diff_only and ..._unintended_diff_only, for N latents."""
    asked = probe_ablation.config(
        sae.cfg.model_name, False, models.context_size(evaluator.model), models.device_config().dtype
    )
    return probe_ablation.score(evaluator, sae, out, name, asked)
