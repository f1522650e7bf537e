"""Parse a language model's answers strictly: sections under headings, each with a fixed form.

A missing or malformed section is an error whose message goes back to the model; nothing is guessed.
"""

import re
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from agent.ideas import Direction
from agent.lab.errors import did_you_mean
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
    """An answer with a missing or malformed section. The message is for the model: what is wrong, what to do."""


@dataclass(frozen=True)
class Experiment:
    """The parsed answer to a request for a proposal."""

    reasoning: str
    description: str
    predictions: dict[str, Direction]
    edits: list[Edit]


def parse_experiment(answer: str, headline: Sequence[str]) -> Experiment:
    """Parse an answer that predicts every metric of `headline`. Raise BadAnswer or EditError if it is malformed."""
    parts = _sections(answer, ("Reasoning", "Description", "Predictions", "Edits"))
    blocks = edits.parse(answer)
    if not blocks:
        raise BadAnswer("the section `## Edits` has no SEARCH/REPLACE block: " + edits.FORM)
    predictions = _predictions(parts["Predictions"], headline)
    return Experiment(" ".join(parts["Reasoning"].split()), _paragraph(parts["Description"]), predictions, blocks)


def parse_plan(answer: str, max_runs: int, starts: Container[int]) -> list[PlannedRun]:
    """Return the planned runs, each starting from one of the runs `starts`, or [] if the model says ALL_COMPLETED.

    Raise BadAnswer if the plan is malformed or has more than `max_runs` runs.
    """
    text = _sections(answer, ("Reasoning", "Plan"))["Plan"]
    if re.fullmatch(rf"\W*{ALL_COMPLETED}\W*", text):
        return []
    items = re.split(r"\n(?=\s*\d+[.)]\s)", "\n" + text)
    if items[0].strip():
        raise BadAnswer(f"the section `## Plan` must begin with a run, in the form {_ITEM_FORM}")
    runs = [_planned_run(item, starts) for item in items[1:]]
    if not runs:
        raise BadAnswer(f"the plan is empty: write {ALL_COMPLETED} if nothing is left to try")
    if len(runs) > max_runs:
        raise BadAnswer(f"the plan has {len(runs)} runs, but only {max_runs} are left: keep the most informative ones")
    return runs


def parse_description(answer: str) -> str:
    """Return the paragraph of an answer. Raise BadAnswer if there is none."""
    return _paragraph(_sections(answer, ("Description",))["Description"])


def _planned_run(item: str, starts: Container[int]) -> PlannedRun:
    match = _ITEM.fullmatch(item.strip())
    if not match:
        line = item.strip().split("\n")[0]
        raise BadAnswer(f"`{line}` is not a valid item of a plan: the form is {_ITEM_FORM}")
    start, title = int(match[2] or 0), " ".join(match[3].strip(" *`").split())
    if start not in starts:
        raise BadAnswer(f"`{title}` starts from run {start}, which has no result: start from a run that has one")
    if "{{" in title:
        raise BadAnswer(f"`{title}` contains a placeholder: a title says what is changed, without figures")
    if len(title) > LONGEST_TITLE:
        raise BadAnswer(f"`{title}` is longer than the {LONGEST_TITLE} characters of a title")
    return PlannedRun(title=title, what=" ".join(match[4].split()), start=start)


def _sections(answer: str, names: Sequence[str]) -> dict[str, str]:
    """Return the text under each heading, ignoring headings inside the edits. Raise BadAnswer if one is missing."""
    sections: dict[str, list[str]] = {}
    section: list[str] = []
    for line in answer.splitlines():
        heading = _HEADING.fullmatch(line.strip())
        name = heading[1].capitalize() if heading else ""
        if name in names and "Edits" not in sections:
            if name in sections:
                raise BadAnswer(f"there are two sections `## {name}`: write one")
            section = sections[name] = []
        else:
            section.append(line)
    parts = {name: _visible("\n".join(lines)).strip() for name, lines in sections.items()}
    if missing := [f"`## {name}`" for name in names if not parts.get(name)]:
        form = ", ".join(f"`## {name}`" for name in names)
        raise BadAnswer(f"{' and '.join(missing)} missing or empty: an answer has the sections {form}, in this order")
    return parts


def _visible(text: str) -> str:
    """Drop invisible characters, which could split a word or change how a terminal shows the rest."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter)[0] != "C")


def _paragraph(text: str) -> str:
    if re.search(r"\n\s*\n", text) or "```" in text:
        raise BadAnswer("the section `## Description` must be one paragraph of plain sentences")
    return " ".join(text.split())


def _predictions(text: str, headline: Sequence[str]) -> dict[str, Direction]:
    predictions: dict[str, Direction] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _PREDICTION.fullmatch(line)
        if not match or match[2].lower() not in get_args(Direction):
            raise BadAnswer(f"`{line}` is not a valid prediction: the form is `{headline[0]}: up`, or down, or same")
        if match[1] not in headline:
            raise BadAnswer(f"`{match[1]}` is not a headline metric: {did_you_mean(match[1], headline)}")
        predictions[match[1]] = cast(Direction, match[2].lower())
    if missing := [name for name in headline if name not in predictions]:
        raise BadAnswer(f"no prediction for {', '.join(missing)}: each headline metric needs one, up, down or same")
    return predictions
