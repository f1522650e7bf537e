"""What `agent resume` may change of a study: the language model, how much is run and spent, the tracker."""

import math
import shlex

from agent.lab.errors import UserError
from agent.llm.client import Limits
from agent.study.events import LanguageModel, SettingsChanged, StudyStarted
from agent.study.state import State

OF_THE_MODEL = {
    "model": "--llm",
    "max_tokens": "--max-llm-tokens",
    "max_cost": "--max-cost",
    "prices": "--price-in",
}


def changes(study: str, state: State, wished: SettingsChanged) -> SettingsChanged | None:
    """Return what of the settings that are wished for differs from those of a study, or None if nothing does.

    Raise UserError for what the study cannot go on with.
    """
    started, begun = state.started, state.runs_begun
    if wished.max_runs is not None and wished.max_runs < begun:
        raise UserError(f"--max-runs {wished.max_runs} is fewer than {study} has begun: give {begun} or more")
    if wished.max_hours is not None and not 0 < wished.max_hours < math.inf:
        raise UserError(f"--max-hours {wished.max_hours:g}: give a number of hours above 0")
    wishes = wished.model_dump(include={"max_runs", "max_hours", "track", *OF_THE_MODEL}, exclude_none=True)
    if given := [option for name, option in OF_THE_MODEL.items() if name in wishes]:
        _require_askable(study, started, given[0])
    settings = started.model_dump(include={"max_runs", "max_hours", "track"})
    settings |= started.language_model.model_dump() if started.language_model else {}
    changed = {name: value for name, value in wishes.items() if value != settings[name]}
    if not changed:
        return None
    if "model" in changed and wished.prices:
        changed["prices"] = wished.prices  # also where the model before had the same
    change = SettingsChanged.model_validate(changed)
    if model := change.applied(started).language_model:
        _require_usable(model)
    return change


def _require_askable(study: str, started: StudyStarted, option: str) -> None:
    """Raise UserError unless a study asks a language model."""
    if started.language_model is None:
        idea = shlex.quote(started.idea_folder or started.idea)
        raise UserError(
            f"{option}: {study} follows the idea's own plan: start a study with agent run --idea {idea} --llm MODEL, "
            "or leave it out"
        )
    if started.language_model.replay:
        raise UserError(
            f"{option}: {study} replays a transcript and asks no language model: start a study with --llm MODEL, or "
            "leave it out"
        )


def _require_usable(model: LanguageModel) -> None:
    """Raise UserError for an empty name, or limits that cannot be kept."""
    if not model.model:
        raise UserError("--llm is empty: give the name of a model, or leave it out")
    Limits(model.max_tokens, model.max_cost, model.prices)
