"""A proposed change, shown to a person who says whether it runs."""

import difflib
import sys

from agent.display.console import make_console
from agent.lab.errors import UserError

STYLES = {"@": "cyan", "+": "green", "-": "red"}
ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def require_terminal() -> None:
    """Raises UserError where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("--approve asks before each run, and there is no terminal to ask on: use one, or leave it out")


def approve(before: str, after: str, title: str) -> bool:
    """Whether the person at the terminal lets `after` run; shows how it differs from `before`.

    Nothing else may write to the terminal meanwhile. Raises UserError where there is no terminal, KeyboardInterrupt
    where the input ends.
    """
    require_terminal()
    console = make_console()
    console.print(_visible(title), style="bold", soft_wrap=True)
    for line in list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))[2:]:  # without names
        console.print(_visible(line), style=STYLES.get(line[0]), soft_wrap=True)
    while (answer := _ask("run this? [y/n] ").strip().lower()) not in ANSWERS:
        print("y runs it, n does not")
    return ANSWERS[answer]


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise KeyboardInterrupt from None


def _visible(line: str) -> str:
    """Control and direction characters as escapes: they could make the terminal show other code than will run."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
