"""`agent audit`: check every claim of a notes.txt against figures, by rules.

supported: the figures confirm it. contradicted: the figures say otherwise. unsupported: no figure could confirm it, or
the runs do not compare. What may happen, and what was done rather than measured, is no claim.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agent.audit import (
    known_figures,
    model_words,
    notes_reader,
    references,
    rendered_sentences,
    stated,
    structure,
    tables,
)
from agent.audit.finding import Finding
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRuns
from agent.audit.notes_reader import Notes, Statement
from agent.lab.errors import UserError
from agent.lab.files import MIB, read_plain_text
from agent.lab.visible import one_line
from agent.report.notes import edited
from agent.report.plots import STUDY_FIGURES

MOST_BYTES = 4 * MIB  # of notes


def audit(path: Path, directory: Path | None = None) -> bool:
    """Print a line for each claim. Return True if all are supported. Raise UserError if there is nothing to audit."""
    results = findings(read(path), known_figures.from_directory(directory) if directory else None)
    for finding in results:
        print(one_line(str(finding)))
    count = Counter(finding.status for finding in results)
    summary = ", ".join(f"{count[status]} {status}" for status in ("supported", "contradicted", "unsupported"))
    print(f"{len(results)} claims: {summary}")
    return count["supported"] == len(results)


def read(path: Path) -> Notes:
    """Read a notes.txt. Raise UserError if it is none."""
    try:
        text = read_plain_text(path, MOST_BYTES)
        notes = notes_reader.parse(text)
    except (FileNotFoundError, notes_reader.NotNotes) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is not a notes.txt: {why}") from None
    if not edited(
        text
    ):  # the descriptions of an idea's own figures are its code's words, about what no results line has
        notes.statements = [
            statement
            for statement in notes.statements
            if statement.label in STUDY_FIGURES or not statement.label.endswith(".png")
        ]
    return notes


def findings(notes: Notes, measured: KnownRuns | None = None) -> list[Finding]:
    """Check every claim of notes, in order. If given, the figures measured decide instead of the notes' own."""
    known = measured or known_figures.from_notes(notes)
    references.learn(notes, known)
    rendered_sentences.learn(notes, known)
    tables.learn(notes, known)
    rendered_sentences.learn_outcomes(notes, known)
    stated.learn(notes, known)
    results = [*structure.check_order(notes), *structure.check_origin(notes, known)]
    if measured:
        results += structure.check_results(notes, measured)
    results += tables.check(notes, known)
    results += model_words.check(notes, known)
    for before, statement in zip([None, *notes.statements], notes.statements, strict=False):
        results += _check(statement, before, known)
    return sorted(results, key=lambda finding: finding.line)


def _check(statement: Statement, before: Statement | None, known: KnownRuns) -> Iterator[Finding]:
    """Give a sentence the worst status of its claims."""
    if (results := references.check(statement.text, known)) is None:
        results = rendered_sentences.check(statement, known)
    if results is None:
        results = tables.check_answer(statement.text, known)
    if results is None:
        results = list(ProseSentence(statement, before, known).check())
    if results:
        worst, _ = max(results, key=lambda result: ("supported", "unsupported", "contradicted").index(result[0]))
        evidence = dict.fromkeys(evidence for status, evidence in results if status == worst and evidence)
        yield Finding(statement.line, statement.run, statement.text, worst, "; ".join(evidence))
