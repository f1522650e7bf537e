"""Ask the researcher to approve a proposed change (`--approve`)."""

import sys

from agent.display.console import make_console, print_diff
from agent.lab.errors import UserError
from agent.lab.visible import one_line

ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def require_terminal() -> None:
    """Raise UserError if standard input or output is not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "--approve asks before each run, but there is no terminal to ask on: use one, or leave --approve out"
        )


def approve(before: str, after: str, title: str) -> bool:
    """Show how the code `after` differs from `before`, and return True if the researcher approves it.

    Nothing else may write to the terminal meanwhile. Raise UserError without a terminal, KeyboardInterrupt at the end
    of the input.
    """
    require_terminal()
    console = make_console()
    console.print(one_line(title), style="bold", soft_wrap=True)
    print_diff(console, before, after)
    while (answer := _ask("run this? [y/n] ").strip().lower()) not in ANSWERS:
        print("type y to run it, n to reject it")
    return ANSWERS[answer]


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise KeyboardInterrupt from None
