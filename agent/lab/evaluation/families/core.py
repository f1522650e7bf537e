"""SAE-Bench `core`; bench/core.py scores it."""

from agent.lab.evaluation import requirements
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

SUMMARY = "how well activations are rebuilt, and what the model loses by it"

MEGABYTES = 50  # token windows, and the scores of random SAEs


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    if target.world:  # sparsity and reconstruction alone are scored, without text
        return requirements.check_disk(target, MEGABYTES)
    return requirements.check_language_model(target, MEGABYTES)
