"""What a language model answers, read strictly: sections under headings, each with a form of its own.

A part that is missing or malformed is an error whose message goes back to the model; nothing is guessed.
"""

import re
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from agent.ideas import Direction
from agent.lab.errors import nearest
from agent.proposers import edits
from agent.proposers.edits import Edit
from agent.study.records import PlannedRun

ALL_COMPLETED = "ALL_COMPLETED"

_HEADING = re.compile(r"#{1,6}[ \t]+(\w+)[ \t]*:?[ \t]*")
_PREDICTION = re.compile(r"[-*]?\s*`?(\w+)`?\s*:\s*(\w+)\.?")
_ITEM = re.compile(r"\d+[.)]\s+\[from (baseline|run (\d+))\]\s+([^:]+?):\s+(.+)", re.DOTALL)
_ITEM_FORM = "`1. [from baseline] Title: what is changed and why`, or [from run 2] to go on from that run's file"
LONGEST_TITLE = 80  # characters


class BadAnswer(ValueError):
    """An answer that lacks a part, or has it in another form. The message says what and is for the model."""


@dataclass(frozen=True)
class Experiment:
    """The answer to a request for a proposal."""

    reasoning: str
    description: str
    predictions: dict[str, Direction]
    edits: list[Edit]


def experiment(answer: str, headline: Sequence[str]) -> Experiment:
    """`headline`: the metrics that are to be predicted. Raises BadAnswer or EditError."""
    parts = _sections(answer, ("Reasoning", "Description", "Predictions", "Edits"))
    blocks = edits.parse(answer)
    if not blocks:
        raise BadAnswer("the section `## Edits` holds no SEARCH/REPLACE block: " + edits.FORM)
    predictions = _predictions(parts["Predictions"], headline)
    return Experiment(" ".join(parts["Reasoning"].split()), _paragraph(parts["Description"]), predictions, blocks)


def plan(answer: str, most: int, starts: Container[int]) -> list[PlannedRun]:
    """The runs of a plan, at most `most`, each from the file of one of `starts`; none where the model says that all is
    done. Raises BadAnswer."""
    text = _sections(answer, ("Reasoning", "Plan"))["Plan"]
    if re.fullmatch(rf"\W*{ALL_COMPLETED}\W*", text):
        return []
    items = re.split(r"\n(?=\s*\d+[.)]\s)", "\n" + text)
    if items[0].strip():
        raise BadAnswer(f"the section `## Plan` begins with something else than a run: each is an item {_ITEM_FORM}")
    runs = [_planned(item, starts) for item in items[1:]]
    if not runs:
        raise BadAnswer(f"the plan is empty: say {ALL_COMPLETED} if nothing is left to try")
    if len(runs) > most:
        raise BadAnswer(f"the plan holds {len(runs)} runs, and {most} can still be made: keep the most telling ones")
    return runs


def description(answer: str) -> str:
    """Raises BadAnswer."""
    return _paragraph(_sections(answer, ("Description",))["Description"])


def _planned(item: str, starts: Container[int]) -> PlannedRun:
    found = _ITEM.fullmatch(item.strip())
    if not found:
        line = item.strip().split("\n")[0]
        raise BadAnswer(f"`{line}` is no item of a plan: the form is {_ITEM_FORM}")
    start, title = int(found[2] or 0), " ".join(found[3].strip(" *`").split())
    if start not in starts:
        raise BadAnswer(f"`{title}` starts from run {start}, which has no result: start from a run that has one")
    if "{{" in title:
        raise BadAnswer(f"`{title}` holds a placeholder: a title says what is changed, and no figure")
    if len(title) > LONGEST_TITLE:
        raise BadAnswer(f"`{title}` is longer than the {LONGEST_TITLE} characters of a title")
    return PlannedRun(title=title, what=" ".join(found[4].split()), start=start)


def _sections(answer: str, names: Sequence[str]) -> dict[str, str]:
    """The text under each heading; edits are not looked into. Raises BadAnswer."""
    found: dict[str, list[str]] = {}
    at: list[str] = []
    for line in answer.splitlines():
        heading = _HEADING.fullmatch(line.strip())
        name = heading[1].capitalize() if heading else ""
        if name in names and "Edits" not in found:
            if name in found:
                raise BadAnswer(f"there are two sections `## {name}`: write one")
            at = found[name] = []
        else:
            at.append(line)
    parts = {name: _visible("\n".join(lines)).strip() for name, lines in found.items()}
    if missing := [f"`## {name}`" for name in names if not parts.get(name)]:
        form = ", ".join(f"`## {name}`" for name in names)
        raise BadAnswer(f"{' and '.join(missing)} missing or empty: an answer holds the sections {form}, in this order")
    return parts


def _visible(text: str) -> str:
    """Without characters that nobody sees, which could split a word or change how a terminal shows the rest."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter)[0] != "C")


def _paragraph(text: str) -> str:
    if re.search(r"\n\s*\n", text) or "```" in text:
        raise BadAnswer("the section `## Description` is to be one paragraph of plain sentences")
    return " ".join(text.split())


def _predictions(text: str, headline: Sequence[str]) -> dict[str, Direction]:
    said: dict[str, Direction] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        found = _PREDICTION.fullmatch(line)
        if not found or found[2].lower() not in get_args(Direction):
            raise BadAnswer(f"`{line}` is no prediction: the form is `{headline[0]}: up`, or down, or same")
        if found[1] not in headline:
            raise BadAnswer(f"`{found[1]}` is no headline metric: {nearest(found[1], headline)}")
        said[found[1]] = cast(Direction, found[2].lower())
    if missing := [name for name in headline if name not in said]:
        raise BadAnswer(f"no prediction for {', '.join(missing)}: each headline metric needs one, up, down or same")
    return said
