"""SAE-Bench `core`: evaluation/core.py scores it."""

from agent.lab.evaluation import preconditions
from agent.lab.evaluation.families import Lack, Place

SAYS = "how well activations are rebuilt, and what the model loses by it"

MEGABYTES = 50  # token windows, and the figures of random SAEs


def lacks(place: Place) -> list[Lack]:
    return preconditions.language_model(place, MEGABYTES)
