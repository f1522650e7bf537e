"""Requirements that several evaluation families share."""

from typing import Any

from agent.lab import cache, hub, models, text
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.model_shape import HOOK


def check_language_model(target: EvalTarget, megabytes: float = 0) -> list[UnmetRequirement]:
    """Return what is missing to evaluate a language model on sae-probes' text and write `megabytes` to the cache."""
    return [*check_model_files(target), *_check_hook(target), *_check_text(), *check_disk(target, megabytes)]


def check_model_files(target: EvalTarget) -> list[UnmetRequirement]:
    """Return what is missing if the model is neither stored here nor to be had from the hub."""
    if target.config or not (refusal := hub.hub_error()):
        return []
    return [
        UnmetRequirement(
            f"{target.model} is not stored on this machine and the hub cannot be reached ({refusal})",
            "use tiny-lm, a local directory, or fetch it where there is a network",
        )
    ]


def check_disk(target: EvalTarget, megabytes: float) -> list[UnmetRequirement]:
    """Return what is missing to write `megabytes`, and a tenth more, to the cache."""
    if (free := cache.free_space(target.folder) / 1e6) >= 1.1 * megabytes:
        return []
    return [
        UnmetRequirement(
            f"{megabytes:,.0f} MB are needed and {free:,.0f} MB are free in {cache.root()}",
            "free some space or point SAE_AGENT_CACHE at another disk",
        )
    ]


def residual_width(config: Any) -> int:
    """Return the width of the residual stream by the model's config.json, or 4096 if it is not named there."""
    return next((config[name] for name in ("hidden_size", "n_embd", "d_model") if name in config), 4096)


def _check_hook(target: EvalTarget) -> list[UnmetRequirement]:
    hook_name = target.hook_name
    if not HOOK.fullmatch(hook_name):
        reason = f"hook {hook_name} has no per-token activation vector"
        return [UnmetRequirement(reason, "use one like blocks.1.hook_resid_post")]
    names = ("num_hidden_layers", "n_layer", "num_layers")
    layers = next((target.config[name] for name in names if name in target.config), None)
    if layers is None or models.layer_of(hook_name) < layers:
        return []
    return [UnmetRequirement(f"the model has no hook {hook_name}", f"its layers are 0 to {layers - 1}")]


def _check_text() -> list[UnmetRequirement]:
    try:
        text.check_datasets()
    except text.TextMissing as error:
        reason, _, remedy = str(error).rpartition(": ")
        return [UnmetRequirement(reason, remedy)]
    return []
