"""The record: what happened in a study, what it adds up to, and where it lies. It knows no process."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Let ideas that were written for an earlier layout import `Run` from here."""
    if name == "Run":
        from agent.study.runs import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
