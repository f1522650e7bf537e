"""SAE-Bench `scr`, spurious correlation removal: can a probe be freed of a confound by ablating a few latents?

As in SHIFT (Marks et al. 2024, arXiv 2403.19647) the bias is constructed. Two files of prompts of different kinds ask
the same of both: clickbait headlines and spam messages, against plain ones (`lure`); articles and headlines about
politics, against others (`politics`). A probe is trained on prompts of which all of one kind have the one label and all
of the other kind the other: it learns the kind, the label, or both. Its accuracy on the label of all four combinations
in equal parts (on tiny-lm 0.50 where an unbiased probe has 0.93) shows what it learnt. Ablating the latents that move a
probe of the kind most should bring back what was lost: the score is the part of it that came back.

SAE-Bench writes its own first example into the names of the classes: "professor / nurse" is the kind of text, "male /
female" the label. The prompts are held out, none is in training and test (labelled.CONFOUNDED).
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

SUMMARY = "whether a probe is freed of a confound by ablating a few latents"


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    used = [each for confounded in labelled_datasets.CONFOUNDED.values() for each in confounded.kinds.values()]
    each = sum(probe_ablation.SIZES[True]) // 2 + 2
    return labelled_datasets.unmet_requirements(place, used, each)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """SAE-Bench's scr_metric_threshold_N, and scr_dir1 and scr_dir2 for either direction, for N latents ablated."""
    asked = probe_ablation.config(
        sae.cfg.model_name, True, models.context_size(evaluator.model), models.device_config().dtype
    )
    return probe_ablation.score(evaluator, sae, out, name, asked)
