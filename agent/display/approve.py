"""Ask the researcher to approve a proposed change (`--approve`)."""

import sys
from collections.abc import Mapping
from contextlib import suppress

from agent.display.console import make_console, print_diff
from agent.lab.errors import UserError
from agent.lab.visible import one_line, visible

ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def require_terminal() -> None:
    """Raise UserError if standard input or output is not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "--approve asks before each run, but there is no terminal to ask on: use one, or leave --approve out"
        )


def refusal(before: str, after: str, title: str, texts: Mapping[str, str]) -> str | None:
    """Show what is said of a change, by label, and how the code `after` differs from `before`. Return None if the
    researcher approves it, else the reason, which may be empty.

    Nothing else may write to the terminal meanwhile. Raise UserError without a terminal, KeyboardInterrupt at the end
    of the input.
    """
    require_terminal()
    console = make_console()
    console.print(one_line(title), style="bold", soft_wrap=True)
    for label, text in texts.items():
        if text:
            console.print(f"{label}: {visible(text)}")
    print_diff(console, before, after)
    while (answer := _ask("run this? [y/n] ").strip().lower()) not in ANSWERS:
        print("type y to run it, n to reject it")
    return None if ANSWERS[answer] else one_line(_ask("why not? (for the next attempt and the notes; may be empty) "))


def agrees(question: str) -> bool:
    """Ask a question with yes or no; no answer is no."""
    with suppress(EOFError, KeyboardInterrupt):
        return ANSWERS.get(input(f"{question} [y/N] ").strip().lower(), False)
    return False


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise KeyboardInterrupt from None
