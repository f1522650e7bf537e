"""What a terminal shows: formatted figures, tables, live progress, questions."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Let ideas that were written for an earlier layout import `format_value` from here."""
    if name == "format_value":
        from agent.display.formatting import format_value

        return format_value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
