"""Split a sentence into clauses, with the quantities and runs that each is about.

A clause is what stands between commas and conjunctions. What should, might or is meant to happen is left out.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.audit import word_lists
from agent.audit.quantities import Mention, mentions

_GOES_ON_HYPOTHETICALLY = re.compile(r"\s*(?:at|with|without|by|and) ", re.IGNORECASE)
_FROM_TO = re.compile(r"\bfrom (?:run (\d+)|the baseline) to run (\d+)\b", re.IGNORECASE)
OWN = -2  # the run of the section
PREVIOUS = -1  # the run before the one a claim is about
BASELINE = 0


@dataclass(frozen=True)
class Clause:
    """A clause, the word or mark that opens it, and what the sentence was about before it."""

    text: str
    opened: str
    mentions: list[Mention]
    last: Mention | None
    subjects: tuple[int | None, ...]
    against: tuple[int | None, ...]
    later: tuple[int | None, ...]  # the runs that a later clause compares with
    several: bool  # the sentence names more than one run

    @property
    def subject(self) -> int | None:
        return self.subjects[0] if self.subjects else None


class _NamedRuns(NamedTuple):
    subjects: tuple[int | None, ...]
    against: tuple[int | None, ...]
    last: int | None  # the run that the clause ends with


def _spelled_out(match: re.Match[str]) -> str:
    """Spell out runs 1 to 3 as run 1 and run 2 and run 3."""
    first, rest = int(match[1]), [int(number) for number in re.findall(r"\d+", match[2])]
    listed = re.search(r",|and|&|or", match[2])
    return " and ".join(f"run {number}" for number in ([first, *rest] if listed else range(first, rest[0] + 1)))


def clauses(sentence: str, keys: Iterable[str] = (), before: Mention | None = None) -> Iterator[Clause]:
    """Yield the clauses of a sentence that are not hypothetical."""
    sentence = word_lists.IDIOM.sub(lambda idiom: " " * len(idiom.group()), sentence)
    sentence = word_lists.RUNS.sub(_spelled_out, sentence)
    mentioned = mentions(sentence, keys)
    last = before if re.match(r"(?:It|This|They|These|The (?:clear )?trend)\b", sentence) else None
    subjects: tuple[int | None, ...] = ()
    carried: tuple[int | None, ...] = ()
    topic: Mention | None = None  # By F1, ...
    hypothetical, conditional, ends_with = False, False, None
    stretches = _stretches(sentence)
    all_named = [_named_runs(sentence[start:end]) for start, end, _ in stretches]
    several = len({run for named in all_named for run in (*named.subjects, *named.against)}) > 1
    for at, (start, end, opened) in enumerate(stretches):
        text, named = sentence[start:end], all_named[at]
        inside = [
            replace(mention, start=mention.start - start, end=mention.end - start)
            for mention in mentioned
            if start <= mention.start < end
        ]
        if topic and not inside:
            inside = [replace(topic, start=0, end=0)]
        topic = inside[0] if len(inside) == 1 and word_lists.TOPIC.fullmatch(text[: inside[0].start]) else None
        subjects = named.subjects or subjects
        if named.against and not inside and not word_lists.WAY.search(text):
            carried = named.against  # "Compared with run 2, ..."
        of_last = opened == "which" or (opened == "(" and not word_lists.RIVAL.search(text))
        whose = (ends_with,) if of_last and ends_with is not None and not named.subjects else subjects
        later = next((each.against for each in all_named[at + 1 :] if each.against), ())
        clause = Clause(text, opened, inside, last, whose, named.against or carried, later, several)
        ends_with = named.last
        follows = (
            opened in ("resulting in", "leading to", "which") or _GOES_ON_HYPOTHETICALLY.match(text) or conditional
        )
        hypothetical = bool(word_lists.HYPOTHETICAL.search(text)) or (hypothetical and follows)
        if not hypothetical:
            yield clause
        conditional = bool(re.match(r"\s*(?:if|unless|should|had)\b", text, re.IGNORECASE))
        if inside:
            of_several = len({mention.quantity.name for mention in inside}) > 1 and word_lists.ALONGSIDE.search(text)
            last = None if of_several or is_change_of(text, inside[-1]) else inside[-1]


def is_change_of(text: str, mention: Mention) -> bool:
    """Return True for `the loss of explained variance`: what is said of it is said of the loss."""
    return bool(word_lists.CHANGE_OF.search(text[: mention.start]))


def _stretches(sentence: str) -> list[tuple[int, int, str]]:
    """Return the start and end of each clause, and the word or mark that opens it."""
    stretches, start, opened = [], 0, ""
    for mark in word_lists.CLAUSE.finditer(sentence):
        if mark.group().startswith("and") and re.search(r"\brun \d+\s+$", sentence[: mark.start()]):
            continue  # run 1 and run 2
        stretches.append((start, mark.start(), opened))
        start, opened = mark.end(), mark.group().strip().lower()
    stretches.append((start, len(sentence), opened))
    return [stretch for stretch in stretches if sentence[stretch[0] : stretch[1]].strip()]


def run_number(match: re.Match[str], prefix: str = "") -> int:
    if match[f"{prefix}number"]:
        return int(match[f"{prefix}number"])
    if match[f"{prefix}baseline"]:
        return BASELINE
    return PREVIOUS if match[f"{prefix}previous"] else OWN


def _named_runs(clause: str) -> _NamedRuns:
    """Return the runs a clause is about, and those it compares with."""
    if onward := _FROM_TO.search(clause):
        return _NamedRuns((int(onward[2]),), (int(onward[1] or BASELINE),), None)
    rivals = [
        match for match in word_lists.AGAINST.finditer(clause) if not match["loose"] or word_lists.ALIKE.search(clause)
    ]
    against = rivals[-1] if rivals else None
    free = [
        match
        for match in word_lists.NAMED.finditer(clause)
        if not match["own"]
        and not is_rival(match, rivals)
        and not word_lists.NO_SUBJECT_BEFORE.search(clause[: match.start()])
    ]
    subjects = tuple(
        dict.fromkeys(run_number(match) for match in free[:1] + [m for m in free[1:] if _joined(clause, m)])
    )
    compared = (run_number(against, "r_"), *([run_number(against, "s_")] if against["and"] else [])) if against else ()
    ending = [match for match in word_lists.NAMED.finditer(clause) if not clause[match.end() :].strip()]
    return _NamedRuns(subjects, compared, run_number(ending[0]) if ending else None)


def _joined(clause: str, match: re.Match[str]) -> bool:
    return bool(re.search(r"(?:\band|\bor|&|,)\s*$", clause[: match.start()]))


def is_rival(named: re.Match[str], rivals: list[re.Match[str]]) -> bool:
    return any(rival.start() <= named.start() <= rival.end() for rival in rivals)
