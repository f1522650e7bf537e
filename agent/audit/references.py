"""Check what our own notes say of SAEs that were trained elsewhere: their figures, and differences without intervals.

From notes alone their sentence is the record, by which the table at the top is checked; with a study's directory the
ledger is, and the sentences are claims too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from agent.audit.finding import CheckResult, result
from agent.audit.known_figures import KnownReference, KnownRuns
from agent.audit.notes_reader import Notes
from agent.audit.rounding import agrees, number
from agent.report import references, sentences
from agent.report.sentences import NUMBER, TITLE, TITLES

_ROW = re.compile(r"reference (?P<sae>[A-Za-z0-9.-]+)")
_SIGNED = re.compile(rf"(?P<title>{TITLE}) (?P<value>[+-]?{NUMBER})(?!\d|\.\d| ±)")
_RECORDS = (
    sentences.REFERENCE,
    sentences.REFERENCE_OFF,
    sentences.REFERENCE_NONE,
    sentences.REFERENCE_UNSCORED,
    sentences.REFERENCE_WARNING,
    sentences.REFERENCES_DRAWN,
)


def learn(notes: Notes, known: KnownRuns) -> None:
    """Add the figures of references that notes state, unless the ledger's are known."""
    for statement in notes.statements if not known.recorded else ():
        if scores := sentences.REFERENCE_SCORES.read(statement.text):
            figures = {"L0": number(scores["l0"]), **_figures(scores["figures"])}
            known.references.setdefault(scores["sae"], KnownReference(figures))
        elif (beside := sentences.REFERENCE_BESIDE.read(statement.text)) and beside["sae"] in known.references:
            figures = known.references[beside["sae"]].figures
            known.references[beside["sae"]] = KnownReference(figures, _figures(beside["differences"]))


def is_row(cells: Sequence[str]) -> bool:
    """Return True if cells of the table at the top are a reference's."""
    return not cells[0].isdigit() and _ROW.match(cells[1]) is not None


def check_row(cells: Mapping[str, str], known: KnownRuns) -> Iterator[CheckResult]:
    """Check the row of a reference in the table at the top."""
    named = _ROW.match(cells["change"])
    reference = known.references.get(named["sae"]) if named else None
    titles = {title: cell for title, cell in cells.items() if title in TITLES and re.fullmatch(NUMBER, cell)}
    if reference is None:
        if titles:
            yield "unsupported", "no such reference is known"
        return
    yield from _check(titles, reference.figures)
    primary = next((title for title in cells if title in TITLES and title != "L0"), "")
    stated = cells["from the baseline"]
    if re.fullmatch(rf"[+-]{NUMBER}", stated):
        yield from _check({primary: stated}, reference.differences)
    elif "±" in stated:
        yield "contradicted", "one SAE from elsewhere has no interval"
    outcome = cells["outcome"]
    yield result(outcome == references.OUTCOME, f"a reference is not judged, and so not {outcome}")


def check(text: str, known: KnownRuns) -> list[CheckResult] | None:
    """Check a sentence on a reference. Return an empty list for a record, None if the text is none."""
    if scores := sentences.REFERENCE_SCORES.read(text):
        stated = {"L0": scores["l0"], **_texts(scores["figures"])}
        return _check_stated(scores["sae"], stated, known, of_differences=False)
    if beside := sentences.REFERENCE_BESIDE.read(text):
        return _check_stated(beside["sae"], _texts(beside["differences"]), known, of_differences=True)
    return [] if any(record.opens(text) for record in _RECORDS) else None


def _check_stated(sae: str, stated: Mapping[str, str], known: KnownRuns, of_differences: bool) -> list[CheckResult]:
    reference = known.references.get(sae)
    if not known.recorded:
        return []
    if reference is None:
        return [("unsupported", f"the ledger has no scores of a reference {sae}")]
    return list(_check(stated, reference.differences if of_differences else reference.figures))


def _check(stated: Mapping[str, str], figures: Mapping[str, float]) -> Iterator[CheckResult]:
    for title, value in stated.items():
        known = figures.get(title)
        yield result(known is not None and agrees(value, known), f"{title} of the reference is {known}")


def _texts(figures: str) -> dict[str, str]:
    return {match["title"]: match["value"] for match in _SIGNED.finditer(figures)}


def _figures(figures: str) -> dict[str, float]:
    return {title: number(value) for title, value in _texts(figures).items()}
