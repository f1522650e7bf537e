"""Ranks of runs as wholes: better than run 1, the best so far. The primary metric decides."""

import re
from collections.abc import Iterator

from agent.audit import claims, verdicts
from agent.audit.clauses import BASELINE, OWN, PREVIOUS, Clause, clauses
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRun, is_within
from agent.audit.word_lists import NEGATION

_NOUN = r"(?:runs?|results?|SAEs?|variants?|changes?|additions?|ideas?|models?|of (?:all|the)\b|so far|yet)"
_RANK = re.compile(
    rf"\b(?:(?P<second>second[- ]best|runner-up)|(?P<first>best|strongest)|(?P<last>worst|weakest|poorest))"
    rf"\b(?= {_NOUN})",
    re.IGNORECASE,
)


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause that ranks a run as a whole other than the primary metric does, and the evidence."""
    for clause in clauses(sentence.text, sentence.keys):
        if clause.mentions:
            continue
        for number in sentence.subjects(clause.subject):
            if run := sentence.known.runs.get(number):
                evidence = _rank(clause, run, sentence) or _beside(clause, run, sentence)
                if evidence:
                    yield clause.text, evidence


def _rank(clause: Clause, run: KnownRun, sentence: ProseSentence) -> str:
    known = sentence.known
    said = _RANK.search(clause.text)
    gains = {n: each.gain(known.primary) for n, each in known.runs.items() if known.primary in each.differences}
    if not said or NEGATION.search(clause.text[: said.start()]) or run.number not in gains or len(gains) == 1:
        return ""
    better = sum(gain > gains[run.number] for gain in (0.0, *gains.values()))
    worse = sum(gain < gains[run.number] for gain in gains.values())
    right = better == 0 if said["first"] else better == 1 if said["second"] else worse == 0
    listed = ", ".join(f"{gain:+.4g} in run {n}" for n, gain in sorted(gains.items()))
    return "" if right else f"gain in {known.primary}: {listed}"


def _beside(clause: Clause, run: KnownRun, sentence: ProseSentence) -> str:
    """Return the evidence that a run is not better, or not worse, than another, or nothing."""
    known, last = sentence.known, clause.last
    if last and not known.is_primary(last.quantity):
        return ""
    for claim in claims.read(clause.text, sentence.keys).directions:
        if (
            claim.negated
            or claim.quantity
            or claim.way not in ("better", "worse")
            or claim.reference in (None, OWN, PREVIOUS)
        ):
            continue
        other = known.runs.get(claim.reference)
        if other is None or other is run or known.primary not in run.differences:
            continue
        if other.number == BASELINE:
            wrong = verdicts.NO_GAIN if claim.way == "better" else verdicts.GAIN
            if run.outcome in wrong:
                return verdicts.outcome_of(run)
        elif known.primary in other.differences and not known.why_l0_apart(run.number, other.number):
            ahead = run.gain(known.primary) - other.gain(known.primary)
            noise = max(each.differences[known.primary].half_width for each in (run, other))
            if not is_within(ahead, noise * 0.5) and (ahead > 0) != (claim.way == "better"):
                gains = [f"{each.gain(known.primary):+.4g} in run {each.number}" for each in (run, other)]
                return f"gain in {known.primary}: {gains[0]}, {gains[1]}"
    return ""
