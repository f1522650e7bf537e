"""SAE-Bench `core`: evaluation/core.py scores it."""

from agent.lab.evaluation import preconditions
from agent.lab.evaluation.families import Lack, Place

SAYS = "how well activations are rebuilt, and what the model loses by it"

MEGABYTES = 50  # token windows, and the figures of random SAEs


def lacks(place: Place) -> list[Lack]:
    """On a synthetic world it has figures of sparsity and reconstruction, and needs no text."""
    if place.world:
        return preconditions.disk(place, MEGABYTES)
    return preconditions.language_model(place, MEGABYTES)
