"""What changed between two versions of experiment.py, as lines in ins and del, highlighted by classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from markupsafe import Markup, escape

from agent.lab.visible import visible

CONTEXT = 3  # unchanged lines around a change
MOST_LINES, MOST_CHARACTERS = 1500, 200_000  # of a diff, and of a file: longer ones are not highlighted


@dataclass(frozen=True)
class Diff:
    """The changed lines of a file; `html` is empty if none is."""

    html: Markup
    added: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.html)


def diff(before: str, after: str, highlighted: bool = True) -> Diff:
    """Compare two versions of a Python file. Highlighting takes most of the time, and hundreds of runs go without."""
    old, new = visible(before), visible(after)
    if old == new:
        return Diff(Markup())
    old_lines, new_lines = old.splitlines(), new.splitlines()
    groups = list(SequenceMatcher(None, old_lines, new_lines, autojunk=False).get_grouped_opcodes(CONTEXT))
    lines = _highlighted if highlighted else _plain
    rows = list(_rows(groups, lines(old), lines(new)))
    shown = rows[:MOST_LINES]
    if len(rows) > MOST_LINES:
        shown.append(
            Markup('<span class="skipped">{:,} more lines are not shown</span>').format(len(rows) - MOST_LINES)
        )
    changes = [opcode for group in groups for opcode in group if opcode[0] != "equal"]
    added, removed = sum(new_end - start for *_, start, new_end in changes), sum(c[2] - c[1] for c in changes)
    return Diff(Markup("\n").join(shown), added, removed)


def _rows(groups: list[list[tuple[str, int, int, int, int]]], old: list[Markup], new: list[Markup]) -> Iterator[Markup]:
    for number, group in enumerate(groups):
        if number:
            yield Markup('<span class="skipped">⋯</span>')
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                yield from (Markup("<span>{}</span>").format(line) for line in new[new_start:new_end])
                continue
            yield from (Markup("<del>{}</del>").format(line) for line in old[old_start:old_end])
            yield from (Markup("<ins>{}</ins>").format(line) for line in new[new_start:new_end])


@lru_cache(maxsize=512)
def _highlighted(text: str) -> list[Markup]:
    """Return the lines of a Python file with the classes of its tokens."""
    if len(text) > MOST_CHARACTERS:
        return _plain(text)
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    lexer = PythonLexer(stripnl=False, ensurenl=False)
    lines = [Markup(line) for line in highlight(text, lexer, HtmlFormatter(nowrap=True)).split("\n")]
    return lines if len(lines) >= len(text.splitlines()) else _plain(text)


def _plain(text: str) -> list[Markup]:
    return [escape(line) for line in text.splitlines()]


def styles() -> str:
    """Return the style sheet of highlighted code, for paper and light screens and then for dark ones."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name).get_token_style_defs(".code") for name in ("friendly", "github-dark"))
    return "\n".join([*light, "@media screen and (prefers-color-scheme: dark) {", *dark, "}"])
