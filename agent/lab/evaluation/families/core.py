"""SAE-Bench `core`: evaluation/core.py scores it."""

from agent.lab.evaluation import requirements
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

SUMMARY = "how well activations are rebuilt, and what the model loses by it"

MEGABYTES = 50  # token windows, and the figures of random SAEs


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    """On a synthetic world it has figures of sparsity and reconstruction, and needs no text."""
    if place.world:
        return requirements.check_disk(place, MEGABYTES)
    return requirements.check_language_model(place, MEGABYTES)
