"""Claims about all runs of a study or none of them: each must bear them out."""

import re
from collections.abc import Iterator
from dataclasses import replace

from agent.audit import claims, comparisons, verdicts
from agent.audit.claims import Direction
from agent.audit.clauses import BASELINE, clauses
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRun
from agent.audit.quantities import L0
from agent.audit.word_lists import NEGATION, pattern

_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
_COUNT = "|".join(_NUMBERS)
_RUNS = r"(?:runs?|changes?|ideas?|variants?|modifications?|experiments?|additions?|attempts?)\b"
_OF_RUNS = (
    rf"(?: of)?(?: (?:the|our|these|those))?(?: first (?P<{{0}}first>{_COUNT}))?(?: (?:{_COUNT}))?"
    rf"(?: (?!in\b|other)[a-z]+)? {_RUNS}"
)
_EVERY = re.compile(r"\b(?:all|each|every)" + _OF_RUNS.format("e_"), re.IGNORECASE)
_NONE = re.compile(
    rf"\b(?:(?:none|not one) of{_OF_RUNS.format('n_').removeprefix('(?: of)?')}|no (?:single )?(?:run|variant)s?\b)",
    re.IGNORECASE,
)
_OF_SUBJECT = re.compile(r"(?:^|\b(?:with|in|for|across|through|under))\s*$", re.IGNORECASE)  # not: it beats all runs
_EXCEPT = pattern("but except save apart~from other only if both")
_ONLY = re.compile(r"\bonly (?:in )?run (\d+)\b|\brun (\d+) (?:is|was) the only\b", re.IGNORECASE)
_PRAISED = re.compile(r"\b(?:improv\w+|helps?|helped|pa(?:ys?|id) off|works?|worked|beats?|is better|gains?)\b", re.I)


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause about all runs or none that a run does not bear out, and the evidence."""
    yield from _only(sentence)
    if _EXCEPT.search(sentence.text):
        return
    for clause in clauses(sentence.text, sentence.keys):
        every, none = _EVERY.search(clause.text), _NONE.search(clause.text)
        if not (said := every or none) or not _OF_SUBJECT.search(clause.text[: said.start()]):
            continue
        before, after = clause.text[: said.start()], clause.text[said.end() :]
        reading = claims.read(f"{before} it {after}", sentence.keys, clause.last)
        first = said["e_first" if every else "n_first"]
        upto = _NUMBERS.index(first.lower()) + 1 if first else max(sentence.known.runs, default=0)
        runs = [run for number, run in sentence.known.runs.items() if BASELINE < number <= upto and run.differences]
        directions = [each for each in reading.directions if each.way in ("up", "down", "better", "worse")]
        for run in runs:
            if evidence := _denied(sentence, run, directions, after, bool(every)):
                yield clause.text, evidence
                break


def _only(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause that says of one run alone what the figures show of another too."""
    for clause in clauses(sentence.text, sentence.keys):
        if not (only := _ONLY.search(clause.text)):
            continue
        alone = int(only[1] or only[2])
        directions = claims.read(clause.text, sentence.keys).directions
        others = [run for n, run in sentence.known.runs.items() if n not in (BASELINE, alone) and run.differences]
        for run in others:
            if evidence := _denied(sentence, run, directions, "", every=False):
                yield clause.text, evidence
                break


def _denied(sentence: ProseSentence, run: KnownRun, directions: list[Direction], text: str, every: bool) -> str:
    """Return the evidence if a run is not as every run, or is as no run, is said to be; else nothing."""
    known = sentence.known
    for direction in directions:
        if direction.quantity in (None, L0) or direction.negated:
            continue
        claim = replace(direction, negated=False, subject=run.number, reference=BASELINE, trend=False)
        status, evidence = comparisons.check_direction(known, claim, run.number, BASELINE, sentence.text) or ("", "")
        noise = evidence.endswith(comparisons.WITHIN_NOISE)
        if (every and (status == "contradicted" or noise)) or (not every and status == "supported"):
            return evidence
    measured = any(direction.quantity not in (None, L0) for direction in directions)
    if measured or not run.outcome or NEGATION.search(text) or not _PRAISED.search(text):
        return ""
    wrong = verdicts.NO_GAIN if every else verdicts.GAIN
    return verdicts.outcome_of(run) if run.outcome in wrong else ""
