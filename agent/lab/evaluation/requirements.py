"""What several evaluation families need alike of the place where they run."""

from typing import Any

from agent.lab import cache, models, text
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement


def check_language_model(place: EvalTarget, megabytes: float = 0) -> list[UnmetRequirement]:
    """What is missing for an evaluation of a language model on the project's text that writes so much to the cache."""
    return [*check_model_files(place), *_check_hook(place), *_check_text(), *check_disk(place, megabytes)]


def residual_width(config: Any) -> int:
    """The model's residual stream, as its config.json has it."""
    return next((config[name] for name in ("hidden_size", "n_embd", "d_model") if name in config), 4096)


def check_model_files(place: EvalTarget) -> list[UnmetRequirement]:
    """What is missing to have the model's files."""
    if place.config or not (refusal := models.hub_refusal()):
        return []
    return [
        UnmetRequirement(
            f"{place.model} is not stored on this machine and the hub cannot be reached ({refusal})",
            "use tiny-lm, a local directory, or fetch it where there is a network",
        )
    ]


def _check_hook(place: EvalTarget) -> list[UnmetRequirement]:
    if not models.HOOK.fullmatch(place.hook_name):
        return [UnmetRequirement(f"{place.hook_name} gives no vector a token", "use one like blocks.1.hook_resid_post")]
    layers = next((place.config[name] for name in ("num_hidden_layers", "n_layer") if name in place.config), None)
    if layers is None or models.layer_of(place.hook_name) < layers:
        return []
    return [UnmetRequirement(f"the model has no hook {place.hook_name}", f"its layers are 0 to {layers - 1}")]


def _check_text() -> list[UnmetRequirement]:
    try:
        text.check()
    except text.TextMissing as error:
        why, _, do = str(error).rpartition(": ")
        return [UnmetRequirement(why, do)]
    return []


def check_disk(place: EvalTarget, megabytes: float) -> list[UnmetRequirement]:
    """What is missing to write so much to the cache, and a tenth more."""
    if (free := cache.free_space(place.folder) / 1e6) >= 1.1 * megabytes:
        return []
    return [
        UnmetRequirement(
            f"{megabytes:,.0f} MB are needed and {free:,.0f} MB are free in {cache.root()}",
            "free some space or point SAE_AGENT_CACHE at another disk",
        )
    ]
