"""SAE-Bench `sparse_probing_sae_probes`: evaluation/probing.py scores it."""

from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import probing
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

SUMMARY = "whether a few latents tell classes of short texts apart, as sae-probes has it"

PROMPTS = 11_124  # of the datasets together


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    made = all((place.folder / "probing" / f"{dataset}.made").exists() for dataset in probing.DATASETS)
    widest = 4 * requirements.residual_width(place.config)  # of an MLP
    return requirements.check_language_model(place, 1 if made else 4 * PROMPTS * widest / 1e6)
