"""Read a notes.txt: its runs with their figures, and every sentence with its line and run.

Reads our own notes and those of earlier systems, which have the same headings. Results are a Python or JSON dictionary,
which may be nested and may span lines.
"""

import ast
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent.report.sentences import CONTRADICTED_WORDS, IN_THE_MODELS_WORDS
from agent.report.splitting import split_sentences

INTENT_LABELS = (
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
_RUN = re.compile(r"run\s*#?\s*(\d{1,30})\b\s*[:.)\-–—]*\s*(.*)", re.IGNORECASE)
_BASELINE = re.compile(r"baseline(?: results?)?\s*:?$", re.IGNORECASE)
_RESULTS = re.compile(r"results?\b[^:{]{0,30}:\s*", re.IGNORECASE)
_NO_RESULTS = re.compile(r"results?:?\s*(?:none\b.*|n/?a|null)?", re.IGNORECASE)
_LABEL = re.compile(
    r"((?:(?:results?|experiment|run|plot|key|next) ?)?(?:"
    + "|".join(INTENT_LABELS)
    + r"|description|analysis|interpretation"
    r"|observations?|conclusions?|findings?|summary|comments?|notes?|takeaways?|discussion|outcome)(?: \w+)?"
    r"|[\w./-]+\.(?:png|pdf|svg|jpe?g)):(?:\s+|$)",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\A(?:[-*•]|\d{1,2}[.)])\s+")
_NOT_CLAIMS = (
    "title",
    "experiment description",
    "front over k",
    "test text",
    "test samples",
    "not tried",
    "glossary",
    "end",
)
_NO_ANSWER = re.compile(r"(?:question|failed|cost): ", re.IGNORECASE)  # lines of the section Answer
_MARK = CONTRADICTED_WORDS.wordings[0].partition("{")[0].strip()
_UNCHECKED = (IN_THE_MODELS_WORDS, _MARK)  # how paragraphs begin that are no claims of the notes
_PLANNED = (f"{IN_THE_MODELS_WORDS}, the change: ", "Next: ", "Plan after run ")  # those that speak of no result
_TABLE = re.compile(r"(run|metric|own measure) {2,}\S")
_CELLS = re.compile(r" {2,}")
_CALL = re.compile(
    r"(?<![\w.])[A-Za-z_][\w.]*\(([^()]*?)(?:,\s*\w+=[^()]*)?\)"
)  # np.float64(0.9), tensor(0.9, device='cuda')

MOST_RUNS = 1_000  # of a text: checks compare each run with the others
LONGEST_RESULTS = 100_000  # characters of a dictionary
DEEPEST = 20  # calls within calls, and dictionaries within dictionaries


@dataclass(frozen=True)
class Statement:
    """A sentence, the line its paragraph begins at, and the run whose section it stands in."""

    line: int
    run: int | None
    label: str  # that opens the paragraph, in lower case: description, why, l0_front.png
    text: str

    @property
    def is_intent(self) -> bool:
        return any(word in INTENT_LABELS for word in self.label.split())


@dataclass(frozen=True)
class Table:
    """A table of our own notes: `kind` is the head of its first column, and `run` that of its section."""

    kind: str  # run, metric, own measure
    run: int | None
    columns: list[str]
    rows: list[tuple[int, list[str]]]  # the line, and its cells


@dataclass
class ModelWords:
    """What a language model concluded of a run, or of all (None), and the sentences marked as contradicted."""

    line: int
    run: int | None
    text: str = ""
    marks: list[tuple[int, str]] = field(default_factory=list)  # the line, and the sentence it quotes


@dataclass
class NotesRun:
    """A run as notes describe it. Figures are by the path of their keys, joined by slashes."""

    number: int
    title: str
    line: int
    results: str = ""  # the line as it stands
    results_line: int = 0
    results_read: bool = False  # a dictionary was read
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # results that are text


@dataclass
class Notes:
    """The title, the description of the experiment, the runs and all sentences that may be claims."""

    title: str = ""
    description: str = ""
    runs: list[NotesRun] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    model_words: list[ModelWords] = field(default_factory=list)

    def add_model_words(self, block: str, line: int, run: int | None) -> None:
        """Add a paragraph of a language model's words, or a mark to the one above it."""
        if not block.startswith(_MARK):
            if not block.startswith(_PLANNED):
                self.model_words.append(ModelWords(line, run, block.partition(": ")[2].strip()))
            return
        if not self.model_words or self.model_words[-1].run != run:
            self.model_words.append(ModelWords(line, run))
        mark = CONTRADICTED_WORDS.read(block)
        self.model_words[-1].marks.append((line, mark["quoted"] if mark else block))

    def texts_by_run(self) -> dict[int | None, str]:
        """Return all sentences about each run, joined."""
        texts: dict[int | None, list[str]] = {}
        for statement in self.statements:
            texts.setdefault(statement.run, []).append(statement.text)
        return {run: " ".join(sentences) for run, sentences in texts.items()}


class NotNotes(ValueError):
    """A text that has none of the headings of notes."""


def parse(text: str) -> Notes:
    """Parse the text of notes. Raise NotNotes if it has none of their headings, or more than notes have."""
    if re.search(r"\d{400}", text):
        raise NotNotes("it has a number of 400 digits")
    reader, at = _Reader(text), 0
    while at < len(reader.lines):
        at = reader.read(at)
    reader.close_block()
    if not reader.has_heading:
        raise NotNotes("it has no line '# Title' and no line '## Run 0: ...'")
    return reader.notes


class _Reader:
    """What was read of notes so far, and the section, run and paragraph that the next line is in."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self.lines = [_plain(line) for line in lines]
        self.indented = [line[:1].isspace() for line in lines]
        self.notes, self.section, self.has_heading = Notes(), "", False
        self.run: NotesRun | None = None
        self.block: list[str] = []  # lines of the paragraph
        self.start = 0  # its first line

    @property
    def number(self) -> int | None:
        return self.run.number if self.run else None

    @property
    def is_unchecked(self) -> bool:
        return bool(self.block) and self.block[0].startswith(_UNCHECKED)

    @property
    def is_of_model(self) -> bool:
        return self.is_unchecked or self.section == IN_THE_MODELS_WORDS.lower()

    def read(self, at: int) -> int:
        """Read what begins at a line; return the line after its end."""
        line = self.lines[at]
        if line and self.indented[at] and self.block and self.is_of_model:
            self.block.append(line)
        elif heading := _HEADING.fullmatch(line):
            self.open_section(heading[1], line.startswith("# "), at)
        elif self.run and (opened := _RESULTS.match(line)) and (read := _dictionary(self.lines, at, opened.end())):
            self.close_block()
            value, end = read
            self.run.results, self.run.results_line = " ".join(" ".join(self.lines[at:end]).split()), at + 1
            self.run.results_read = value is not None
            _flatten(value, "", self.run.figures, self.run.settings)
            return end
        elif opened := _TABLE.match(line):
            self.close_block()
            table, end = _table(opened[1], self.number, self.lines, at)
            self.notes.tables.append(table)
            return end
        elif self.run and _NO_RESULTS.fullmatch(line):
            self.close_block()
            self.run.results, self.run.results_line = self.run.results or line, self.run.results_line or at + 1
        else:
            self.read_prose(line, at)
        return at + 1

    def open_section(self, heading: str, is_first_level: bool, at: int) -> None:
        """Begin the section of a heading; what follows its colon opens a paragraph, unless it is a run's title."""
        self.close_block()
        name, _, rest = heading.partition(":")
        self.section = name.strip().lower()
        numbered = _RUN.fullmatch(heading)
        self.has_heading = self.has_heading or bool(numbered) or self.section in ("title", "experiment description")
        if numbered or _BASELINE.fullmatch(heading):
            number, title = (int(numbered[1]), numbered[2]) if numbered else (0, "Baseline")
            self.run = NotesRun(number, title, at + 1)
            self.notes.runs.append(self.run)
            if len(self.notes.runs) > MOST_RUNS:
                raise NotNotes(f"it has more than {MOST_RUNS:,} headings of runs")
            return
        if is_first_level or self.section.startswith("plot"):
            self.run = None
        if rest.strip():
            self.block, self.start = [rest.strip()], at + 1

    def read_prose(self, line: str, at: int) -> None:
        """Add a line to the paragraph, or begin another with it."""
        ended = self.block and not self.indented[at] and (self.block[-1][-1] in ".!?:" or _ITEM.match(self.block[0]))
        begins = _ITEM.match(line) or _LABEL.match(line) or line.startswith(_UNCHECKED)
        if not line or ended or begins or self.is_unchecked:
            self.close_block()
        if line:
            self.start = self.start if self.block else at + 1
            self.block.append(line)

    def close_block(self) -> None:
        """Take the paragraph into the notes, as what its section holds."""
        if not self.block:
            return
        text = " ".join(self.block)
        if self.is_of_model:
            self.notes.add_model_words(text, self.start, self.number)
        elif self.section not in _NOT_CLAIMS and not (self.section == "answer" and _NO_ANSWER.match(self.block[0])):
            self.notes.statements.extend(_statements(text, self.start, self.number))
        elif self.section == "title":
            self.notes.title = self.notes.title or self.block[0]
        elif self.section == "experiment description":
            self.notes.description += text + "\n"
        self.block = []


def _plain(line: str) -> str:
    """Return a line without markup; one that opens or closes a block of code is empty."""
    if line.lstrip().startswith("```"):
        return ""
    return line.replace("+-", "±").replace("**", "").replace("`", "").strip()


def _table(kind: str, run: int | None, lines: list[str], at: int) -> tuple[Table, int]:
    """Read the table whose head is line `at`; return it and the line after its end."""
    columns, rows = _CELLS.split(lines[at]), []
    at += 1
    while at < len(lines) and len(cells := _CELLS.split(lines[at])) == len(columns):
        rows.append((at + 1, cells))
        at += 1
    return Table(kind, run, columns, rows), at


def _statements(block: str, line: int, run: int | None) -> list[Statement]:
    block = _ITEM.sub("", block)
    label = _LABEL.match(block)
    name, text = (label[1].lower(), block[label.end() :]) if label else ("", block)
    return [Statement(line, run, name, sentence) for sentence in split_sentences(text)]


def _dictionary(lines: list[str], at: int, start: int) -> tuple[Any, int] | None:
    """Read the dictionary that opens on a line, or on the next that is not empty; return it and the line after its end.

    Return None if none opens. The dictionary is None if it cannot be read.
    """
    rest = lines[at][start:]
    while not rest and at + 1 < len(lines) and (not lines[at + 1] or lines[at + 1].startswith("{")):
        at += 1
        rest = lines[at] if lines[at].startswith("{") else ""
    if not rest.startswith("{"):
        return None
    parts, open_brackets, length = [rest], rest.count("{") - rest.count("}"), len(rest)
    while open_brackets > 0 and at + 1 < len(lines) and not lines[at + 1].startswith("#"):
        at += 1
        parts.append(lines[at])
        open_brackets += lines[at].count("{") - lines[at].count("}")
        length += len(lines[at])
    text = "\n".join(parts) if length <= LONGEST_RESULTS else ""
    return _literal(text[: text.rfind("}") + 1]), at + 1


def _literal(text: str) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    for _ in range(DEEPEST):
        if (plain := _CALL.sub(r"\1", text)) == text:
            break
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
        for key, part in value.items() if path.count("/") < DEEPEST else ():
            _flatten(part, f"{path}/{key}" if path else str(key), figures, settings)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of hundreds of digits is no figure
            if math.isfinite(value):
                figures[path] = float(value)
    elif isinstance(value, str):
        settings[path] = value


def flatten(value: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the finite numbers and the texts of nested results, by the path of their keys."""
    figures: dict[str, float] = {}
    settings: dict[str, str] = {}
    _flatten(value, "", figures, settings)
    return figures, settings
