"""What a study went on with, in words, where a person had changed its language model or its limits."""

from agent.study.events import SettingsChanged
from agent.study.state import State


def models(state: State) -> str:
    """Return which language models proposed runs, and from which run on; "" if none did."""
    first = state.began.language_model
    later = [f"from run {run} on {change.model}" for run, change in state.changes if change.model]
    return ", ".join([first.model, *later]) if first else ""


def sentences(state: State) -> list[str]:
    """Return a sentence on each change."""
    return [f"From run {run} on: {', '.join(_parts(change))}." for run, change in state.changes]


def _parts(change: SettingsChanged) -> list[str]:
    parts = []
    if change.model is not None:
        parts.append(f"the language model {change.model}")
    if change.prices is not None:
        parts.append("prices of ${:g} and ${:g} per million tokens read and written".format(*change.prices))
    if change.max_runs is not None:
        parts.append(f"at most {change.max_runs} run{'s' * (change.max_runs > 1)}")
    if change.max_hours is not None:
        parts.append(f"at most {change.max_hours:g} hours")
    if change.max_tokens is not None:
        parts.append(f"at most {change.max_tokens:,} tokens of the model")
    if change.max_cost is not None:
        parts.append(f"at most ${change.max_cost:g} for the model")
    if change.track is not None:
        parts.append(f"runs logged with {change.track}")
    return parts
