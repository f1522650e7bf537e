"""`agent audit`: every claim of a notes.txt, held against figures by rules.

supported: the figures say so. contradicted: they say otherwise. unsupported: there is no figure that could, or the runs
do not compare. What may happen, and what was done rather than measured, is no claim.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agent.audit import known_figures, notes_reader, rendered_sentences, structure
from agent.audit.finding import Finding
from agent.audit.judge import Sentence
from agent.audit.known_figures import Facts
from agent.audit.notes_reader import Notes, Statement
from agent.lab.errors import UserError
from agent.report.notes import edited
from agent.report.plots import DRAWN


def audit(path: Path, directory: Path | None = None) -> bool:
    """Print a line for each claim; whether all are supported. Raises UserError where there is nothing to audit."""
    found = findings(read(path), known_figures.from_directory(directory) if directory else None)
    for finding in found:
        print(finding)
    count = Counter(finding.verdict for finding in found)
    said = ", ".join(f"{count[verdict]} {verdict}" for verdict in ("supported", "contradicted", "unsupported"))
    print(f"{len(found)} claims: {said}")
    return count["supported"] == len(found)


def read(path: Path) -> Notes:
    """Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        notes = notes_reader.parse(text)
    except (OSError, UnicodeDecodeError, notes_reader.NotNotes) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is no notes.txt: {why}") from None
    if not edited(text):  # figures of an idea's own tell in its code's words what no results line has
        notes.statements = [each for each in notes.statements if each.label in DRAWN or not each.label.endswith(".png")]
    return notes


def findings(notes: Notes, measured: Facts | None = None) -> list[Finding]:
    """Every claim of notes, in their order. `measured`: figures from run directories, which then decide."""
    known = measured or known_figures.from_notes(notes)
    rendered_sentences.learn(notes, known)
    found = [*structure.order(notes), *structure.pasted(notes, known)]
    if measured:
        found += structure.against(notes, measured)
    for before, statement in zip([None, *notes.statements], notes.statements, strict=False):
        found += _judge(statement, before, known)
    return sorted(found, key=lambda finding: finding.line)


def _judge(statement: Statement, before: Statement | None, known: Facts) -> Iterator[Finding]:
    """A sentence comes to the worst that its claims come to."""
    if (judged := rendered_sentences.check(statement, known)) is None:
        judged = list(Sentence(statement, before, known).judge())
    if judged:
        worst, _ = max(judged, key=lambda each: ("supported", "unsupported", "contradicted").index(each[0]))
        evidence = dict.fromkeys(evidence for verdict, evidence in judged if verdict == worst and evidence)
        yield Finding(statement.line, statement.run, statement.text, worst, "; ".join(evidence))
