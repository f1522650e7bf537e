"""Take figures that only a run's text states as that run's, so that its relations to other runs can be checked."""

import re

from agent.audit import rendered_sentences, tables, word_lists
from agent.audit.claims import Figure
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRuns
from agent.audit.notes_reader import Notes
from agent.audit.word_lists import pattern

# Of a target, a setting, another model, a part of the SAE or a moment of the training.
_NO_RESULT = pattern(
    r"""targets? targeted desired goal thresholds? budget set~to fixed~at published papers? et~al literature random
        untrained initial(?:ly)? starts? started starting halfway midway after~[\d,]+~(?:steps|tokens)
        (?:step|epoch)~\d+ early tiers? groups? blocks? seeds? per(?!~token) each respectively"""
)
_LOOSELY = re.compile(
    rf"(?:{word_lists.LOOSELY}|\b(?:below|above|under|at least|at most|less than|more than|up to|only)|[<>≤≥])\s*$",
    re.IGNORECASE,
)


def learn(notes: Notes, known: KnownRuns) -> None:
    """Add a run's first statement of a figure to what is known of it, if neither dictionary nor directory has one."""
    for before, statement in zip([None, *notes.statements], notes.statements, strict=False):
        run = known.run(statement.run)
        if run is None or not run.counts or statement.is_intent or _NO_RESULT.search(statement.text):
            continue
        if rendered_sentences.check(statement, known) is not None or tables.check_answer(statement.text, known):
            continue
        for figure in ProseSentence(statement, before, known).read().figures:
            own = figure.subject in (None, run.number) and not figure.either
            if own and _is_value(figure, statement.text) and not run.figures_of(figure.quantity, figure.wording):
                run.stated.setdefault(figure.quantity.stated_as(figure.wording), figure.value)


def _is_value(figure: Figure, text: str) -> bool:
    before = text[: text.find(figure.digits)]
    return figure.kind == "value" and not figure.percent and not _LOOSELY.search(before)
