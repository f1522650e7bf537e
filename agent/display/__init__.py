"""What a terminal shows: formatted numbers, tables, live progress and questions."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `format_value`, which ideas written for an earlier layout import from here."""
    if name == "format_value":
        from agent.display.formatting import format_value

        return format_value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
