"""notes.txt as data: its runs with their figures, and every sentence with where it stands.

Reads our own notes and those of earlier systems, whose headings are the same and whose results, a Python or JSON
dictionary that may be nested and may span lines, stand in the notes themselves.
"""

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.report.claim_words import sentences

INTENT = (
    "why",
    "hypothesis",
    "motivation",
    "rationale",
    "plan",
    "goal",
    "expected",
    "idea",
    "aim",
    "objective",
    "next",
)
_HEADING = re.compile(r"#{1,6}\s*(.*)")
_RUN = re.compile(r"run\s*#?\s*(\d+)\b\s*[:.)\-–—]*\s*(.*)", re.IGNORECASE)
_BASELINE = re.compile(r"baseline(?: results?)?\s*:?$", re.IGNORECASE)
_RESULTS = re.compile(r"results?\b[^:{]{0,30}:\s*", re.IGNORECASE)
_LABEL = re.compile(
    r"((?:(?:results?|experiment|run|plot|key|next) ?)?(?:" + "|".join(INTENT) + r"|description|analysis|interpretation"
    r"|observations?|conclusions?|findings?|summary|comments?|notes?|takeaways?|discussion|outcome)(?: \w+)?"
    r"|[\w./-]+\.(?:png|pdf|svg|jpe?g)):(?:\s+|$)",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\A(?:[-*•]|\d{1,2}[.)])\s+")
_NOT_CLAIMS = ("title", "experiment description", "test text", "test samples", "not tried", "end")
_CALL = re.compile(r"[A-Za-z_][\w.]*\(([^()]*?)(?:,\s*\w+=[^()]*)?\)")  # np.float64(0.9), tensor(0.9, device='cuda')


@dataclass(frozen=True)
class Statement:
    """A sentence, the number of the line its paragraph begins at, and the run whose section it stands in."""

    line: int
    run: int | None
    label: str  # what the paragraph is introduced as, in lower case: description, why, l0_front.png
    text: str

    @property
    def intent(self) -> bool:
        return any(word in INTENT for word in self.label.split())


@dataclass
class NotedRun:
    """A run as notes have it. Figures by the path of their keys, joined by slashes."""

    number: int
    title: str
    line: int
    results: str = ""  # the line as it stands
    results_line: int = 0
    found: bool = False  # a dictionary was read
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # what is text among the results


@dataclass
class Notes:
    title: str = ""
    description: str = ""
    runs: list[NotedRun] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


class NotNotes(ValueError):
    """The text has none of the headings of notes."""


def parse(text: str) -> Notes:
    """Raises NotNotes."""
    notes, section, run = Notes(), "", None
    indented = [line[:1].isspace() for line in text.splitlines()]
    plain = re.sub(r"(?m)^\s*```.*$", "", text).replace("+-", "±").replace("**", "").replace("`", "")
    lines = [line.strip() for line in plain.splitlines()]
    block: list[str] = []
    start, at = 0, 0

    def close() -> None:
        if block and section not in _NOT_CLAIMS:
            notes.statements.extend(_statements(" ".join(block), start, run.number if run else None))
        elif block and section == "title":
            notes.title = notes.title or block[0]
        elif block and section == "experiment description":
            notes.description += " ".join(block) + "\n"
        block.clear()

    headed = False
    while at < len(lines):
        line = lines[at]
        if heading := _HEADING.fullmatch(line):
            close()
            name, _, rest = heading[1].partition(":")
            section, block[:], start = name.strip().lower(), [rest.strip()] if rest.strip() else [], at + 1
            numbered = _RUN.fullmatch(heading[1])
            headed = headed or bool(numbered) or section in ("title", "experiment description")
            if numbered or _BASELINE.fullmatch(heading[1]):
                run = NotedRun(int(numbered[1]) if numbered else 0, numbered[2] if numbered else "Baseline", at + 1)
                notes.runs.append(run)
                block.clear()
            elif line.startswith("# ") or section.startswith("plot"):
                run = None
        elif run and (opened := _RESULTS.match(line)) and (read := _dictionary(lines, at, opened.end())):
            close()
            value, end = read
            run.results, run.results_line = " ".join(" ".join(lines[at:end]).split()), at + 1
            run.found = value is not None
            _flatten(value, "", run.figures, run.settings)
            at = end
            continue
        elif run and re.fullmatch(r"results?:?\s*(?:none\b.*|n/?a|null)?", line, re.IGNORECASE):
            close()
            run.results, run.results_line = run.results or line, run.results_line or at + 1
        else:
            ended = block and (block[-1][-1] in ".!?:" or (_ITEM.match(block[0]) and not indented[at]))
            if not line or ended or _ITEM.match(line) or _LABEL.match(line):
                close()
            if line:
                start = start if block else at + 1
                block.append(line)
        at += 1
    close()
    if not headed:
        raise NotNotes("it has neither a line '# Title' nor a line '## Run 0: ...'")
    return notes


def _statements(block: str, line: int, run: int | None) -> list[Statement]:
    block = _ITEM.sub("", block)
    label = _LABEL.match(block)
    name, text = (label[1].lower(), block[label.end() :]) if label else ("", block)
    return [Statement(line, run, name, said) for said in sentences(text)]


def _dictionary(lines: list[str], at: int, start: int) -> tuple[Any, int] | None:
    """The dictionary that opens on a line, or on the next that is not empty, and the line after its end.

    None where none opens; its value is None where it cannot be read.
    """
    rest = lines[at][start:]
    while not rest and at + 1 < len(lines) and (not lines[at + 1] or lines[at + 1].startswith("{")):
        at += 1
        rest = lines[at] if lines[at].startswith("{") else ""
    if not rest.startswith("{"):
        return None
    text = rest
    while text.count("{") > text.count("}") and at + 1 < len(lines) and not lines[at + 1].startswith("#"):
        at += 1
        text += "\n" + lines[at]
    return _literal(text[: text.rfind("}") + 1]), at + 1


def _literal(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except ValueError:
        pass
    while (plain := _CALL.sub(r"\1", text)) != text:
        text = plain
    for name, value in (("nan", "None"), ("null", "None"), ("inf", "1e999"), ("true", "True"), ("false", "False")):
        text = re.sub(rf"(?<![\w'\"]){name}(?![\w'\"])", value, text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _flatten(value: Any, path: str, figures: dict[str, float], settings: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(part, f"{path}/{key}" if path else str(key), figures, settings)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            figures[path] = float(value)
    elif isinstance(value, str):
        settings[path] = value


def flatten(value: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """The finite numbers and the texts of nested results, by the path of their keys."""
    figures: dict[str, float] = {}
    settings: dict[str, str] = {}
    _flatten(value, "", figures, settings)
    return figures, settings
