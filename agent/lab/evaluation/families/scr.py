"""SAE-Bench `scr`, spurious correlation removal: whether ablating a few latents frees a probe of a confound.

As in SHIFT (Marks et al. 2024, arXiv 2403.19647) the bias is constructed. Two files of prompts of different kinds share
a label: clickbait headlines and spam messages, against plain ones (`lure`); articles and headlines about politics,
against others (`politics`). A probe is trained on prompts where all of one kind have one label and all of the other
kind the other: it learns the kind, the label, or both. Its accuracy on the label over all four combinations in equal
parts (on tiny-lm 0.50, where an unbiased probe has 0.93) shows what it learnt. Ablating the latents that a probe of the
kind depends on most should restore the lost accuracy: the score is the part that is restored.

SAE-Bench has its own first example in the names of the classes: "professor / nurse" is the kind of text, "male /
female" the label. The prompts are held out; none is in both training and test (labelled_datasets.CONFOUNDED).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.evaluation.bench import labelled_datasets, probe_ablation
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "whether a probe is freed of a confound by ablating a few latents"


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    datasets = [labelled for pair in labelled_datasets.CONFOUNDED.values() for labelled in pair.kinds.values()]
    per_class = sum(probe_ablation.SIZES[True]) // 2 + 2
    return labelled_datasets.unmet_requirements(target, datasets, per_class)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Return SAE-Bench's scr_metric_threshold_N for N ablated latents, and scr_dir1_... and scr_dir2_... likewise."""
    return probe_ablation.score_family(evaluator, sae, out, name, "scr")
