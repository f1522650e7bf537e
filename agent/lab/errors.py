"""Errors that a user can act on: the message tells what happened, where, and what to do; the exit code is 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake or a condition that the user can mend; shown as one line, without a traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the known names closest to a mistyped one, as the end of an error message.

    >>> did_you_mean("basline", ["activations", "baselines", "worlds"])
    'did you mean baselines?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:8]
    return f"did you mean {' or '.join(close)}?" if close else "none is known"


def describe(error: Exception) -> str:
    """Return an exception as one line: its type and the first line of its message.

    >>> describe(ValueError("no such hook\\nin this model"))
    'ValueError: no such hook'
    """
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
