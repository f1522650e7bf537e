"""A sentence read as claims: which figure it gives of which run, which way it says a quantity went, against what.

Claims about what should, might or is meant to happen are none. A clause is what stands between commas and
conjunctions; a number or a direction belongs to the nearest quantity in its clause, or to the last one named before.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from agent.audit import word_lists
from agent.audit.quantities import Mention, Quantity, mentions

PREVIOUS = -1  # the run before the one a claim is about
BASELINE = 0
Kind = Literal["value", "difference", "percent", "factor"]


@dataclass(frozen=True)
class Direction:
    """That a quantity (None: results as a whole) of a run went some way against another run."""

    quantity: Quantity | None
    said: str  # how the quantity is named
    way: str  # a key of word_lists.WAYS
    word: str  # by which it is said
    negated: bool = False
    subject: int | None = None  # None: the run of the section
    reference: int | None = None  # None: nothing is named
    trend: bool = False

    @property
    def extreme(self) -> bool:
        return self.way in word_lists.EXTREME.values()

    @property
    def praises(self) -> bool:
        """Whether it is said to have gone the better way."""
        better = self.quantity.better if self.quantity else "none"
        return (
            self.way == "better" or self.way in {"higher": ("up",), "lower": ("down",), "none": ("up", "down")}[better]
        )


@dataclass(frozen=True)
class Figure:
    """A number given of a quantity."""

    quantity: Quantity
    said: str
    number: str
    kind: Kind  # a value, or a change against the reference: absolute, per cent, a factor
    subject: int | None
    reference: int | None
    either: bool = False  # it may be of another run, which the sentence does not name: from 3.1

    @property
    def percent(self) -> bool:
        return bool(re.search(r"%|per ?cent", self.number))

    @property
    def digits(self) -> str:
        return re.match(r"[-+]?[\d.,eE+-]*\d", self.number)[0]  # pyright: ignore[reportOptionalSubscript]

    @property
    def value(self) -> float:
        return float(self.digits.replace(",", ""))


@dataclass(frozen=True)
class Reading:
    directions: list[Direction]
    figures: list[Figure]
    trends: list[Quantity]  # of which a trend is claimed, and no direction
    success: list[str]  # words that claim that a run worked, and nothing one could measure


@dataclass(frozen=True)
class _Clause:
    """A clause, how it was opened, and what the sentence was about before it."""

    text: str
    opened: str
    mentions: list[Mention]
    last: Mention | None
    subjects: tuple[int | None, ...]
    against: tuple[int | None, ...]

    @property
    def subject(self) -> int | None:
        return self.subjects[0] if self.subjects else None


class _Naming(NamedTuple):
    subjects: tuple[int | None, ...]
    against: tuple[int | None, ...]
    last: int | None  # the run that the clause ends with


def _spelled_out(match: re.Match[str]) -> str:
    """Runs 1 to 3: run 1 and run 2 and run 3."""
    first, rest = int(match[1]), [int(number) for number in re.findall(r"\d+", match[2])]
    listed = re.search(r",|and|&|or", match[2])
    return " and ".join(f"run {each}" for each in ([first, *rest] if listed else range(first, rest[0] + 1)))


def read(sentence: str, keys: Iterable[str] = (), before: Mention | None = None) -> Reading:
    """What a sentence claims. `keys`: names that results use besides the known quantities; `before`: what the sentence
    before spoke of, which `it` and `this` stand for."""
    sentence = word_lists.IDIOM.sub(lambda idiom: " " * len(idiom.group()), sentence)
    sentence = word_lists.RUNS.sub(_spelled_out, sentence)
    found, reading = mentions(sentence, keys), Reading([], [], [], [])
    last = before if re.match(r"(?:It|This|They|These|The (?:clear )?trend)\b", sentence) else None
    subjects: tuple[int | None, ...] = ()
    carried: tuple[int | None, ...] = ()
    hypothetical, ends_with = False, None
    for start, end, opened in _clauses(sentence):
        text = sentence[start:end]
        inside = [
            replace(each, start=each.start - start, end=each.end - start) for each in found if start <= each.start < end
        ]
        named = _named(text)
        subjects = named.subjects or subjects
        if named.against and not inside and not word_lists.WAY.search(text):
            carried = named.against  # "Compared with run 2, ..."
        whose = (ends_with,) if opened == "(" and ends_with is not None and not named.subjects else subjects
        clause = _Clause(text, opened, inside, last, whose, named.against or carried)
        ends_with = named.last
        follows = opened in ("resulting in", "leading to", "which")
        hypothetical = bool(word_lists.HYPOTHETICAL.search(text)) or (hypothetical and follows)
        if not hypothetical:
            _take(clause, reading)
        last = inside[-1] if inside else last
    return reading


def _take(clause: _Clause, reading: Reading) -> None:
    directions = _directions(clause)
    reading.directions.extend(directions)
    reading.figures.extend(_figures(clause))
    if not directions and word_lists.TREND_WORD.search(clause.text):
        about = clause.mentions or ([clause.last] if clause.last else [])
        reading.trends.extend(each.quantity for each in about)
    reading.success.extend(
        match.group()
        for match in word_lists.SUCCESS.finditer(clause.text)
        if not word_lists.NEGATION.search(clause.text[: match.start()])
    )


def _clauses(sentence: str) -> list[tuple[int, int, str]]:
    """Start, end and the word or mark before, of each clause."""
    found, start, opened = [], 0, ""
    for mark in word_lists.CLAUSE.finditer(sentence):
        if mark.group().startswith("and") and re.search(r"\brun \d+\s+$", sentence[: mark.start()]):
            continue  # run 1 and run 2
        found.append((start, mark.start(), opened))
        start, opened = mark.end(), mark.group().strip().lower()
    return [each for each in [*found, (start, len(sentence), opened)] if sentence[each[0] : each[1]].strip()]


def _which(match: re.Match[str], prefix: str = "") -> int | None:
    if match[f"{prefix}number"]:
        return int(match[f"{prefix}number"])
    if match[f"{prefix}baseline"]:
        return BASELINE
    return PREVIOUS if match[f"{prefix}previous"] else None


def _named(clause: str) -> _Naming:
    """The run a clause is about, and those it compares with."""
    against = None
    for match in word_lists.AGAINST.finditer(clause):
        if not match["loose"] or word_lists.ALIKE.search(clause):
            against = match
    free = [
        match
        for match in word_lists.NAMED.finditer(clause)
        if not match["own"] and not (against and against.start() <= match.start() <= against.end())
    ]
    subjects = tuple(dict.fromkeys(_which(match) for match in free[:1] + [m for m in free[1:] if _joined(clause, m)]))
    compared = (_which(against, "r_"), *([_which(against, "s_")] if against["and"] else [])) if against else ()
    ending = [match for match in word_lists.NAMED.finditer(clause) if not clause[match.end() :].strip()]
    return _Naming(subjects, compared, _which(ending[0]) if ending else None)


def _joined(clause: str, match: re.Match[str]) -> bool:
    return bool(re.search(r"(?:\band|\bor|&|,)\s*$", clause[: match.start()]))


def _directions(clause: _Clause) -> list[Direction]:
    text = clause.text
    ways = [
        match
        for match in word_lists.WAY.finditer(text)
        if not word_lists.NOT_A_WAY_AFTER.match(text[match.end() :])
        and not word_lists.NOT_A_WAY_BEFORE.search(text[: match.start()])
    ]
    if not ways:
        return []
    about, goes_on = (
        clause.mentions,
        clause.opened == "which" or word_lists.CONTINUES.match(text) or ways[0].start() <= 1,
    )
    found, used = [], set()
    for mention in about or ([clause.last] if clause.last and goes_on else []):
        way = min(ways, key=lambda each: _distance(each, mention) if about else each.start())
        if about and _of_another(text, way, mention, about):
            continue
        used.add(way.start())
        found += _direction(clause, way, mention.quantity, mention.text)
    for way in ways:
        whole = way.lastgroup in ("better", "worse", "best") and (clause.against or word_lists.OF_RESULTS.search(text))
        if way.start() not in used and whole:
            found += _direction(clause, way, None, "")
    return found


def _of_another(text: str, way: re.Match[str], mention: Mention, about: list[Mention]) -> bool:
    """Whether a direction stands before another quantity, as its attribute: MSE is 3.1 at a higher L0."""
    return any(
        mention.end <= way.start() and way.end() <= each.start and not text[way.end() : each.start].strip()
        for each in about
    )


def _distance(way: re.Match[str], mention: Mention) -> int:
    return max(mention.start - way.end(), way.start() - mention.end, 0)


def _direction(clause: _Clause, match: re.Match[str], quantity: Quantity | None, said: str) -> list[Direction]:
    """One for each run that is compared with."""
    text, way = clause.text, match.lastgroup or ""
    if word_lists.OTHERS.search(text[match.start() :]):
        way = word_lists.EXTREME.get(way, way)
    further = not clause.against and re.search(r"\b(?:further|even|again)\b", text, re.IGNORECASE)
    negated = way != "same" and bool(word_lists.NEGATION.search(text[: match.start()]))
    trend = bool(word_lists.TREND.search(text))
    return [
        Direction(quantity, said, way, match.group(), negated, subject, reference, trend)
        for subject in clause.subjects or (None,)
        for reference in (PREVIOUS,) * bool(further) or clause.against or (None,)
    ]


def _figures(clause: _Clause) -> list[Figure]:
    text, found = clause.text, []
    for match in word_lists.NUMBER.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        if word_lists.NOT_A_FIGURE_BEFORE.search(before) or any(
            m.start <= match.start() < m.end for m in clause.mentions
        ):
            continue
        if not match["unit"] and word_lists.NOT_A_FIGURE_AFTER.match(after):
            continue
        if mention := _bound(clause, match):
            kind = _kind(match, before, after)
            against = clause.against[0] if clause.against else None
            whose = _whose(clause, before, after) if kind == "value" else (clause.subject, against, False)
            sign = "-" if match["sign"] in "-−" and match["sign"] else ""
            number = sign + match["digits"] + (match["unit"] or "").strip()
            found.append(Figure(mention.quantity, mention.text, number, kind, *whose))
    return [*found, *_factors(clause)]


def _factors(clause: _Clause) -> list[Figure]:
    """Halved, doubled: of a quantity at most three words away."""
    found = []
    for factor, said in word_lists.FACTORS.items():
        for match in re.finditer(rf"\b(?:{said})", clause.text, re.IGNORECASE):
            for each in clause.mentions:
                between = clause.text[min(each.end, match.end()) : max(each.start, match.start())]
                if len(between.split()) <= 3 and not re.search(r"\b(?:coefficient|width|rate|size|penalty)\b", between):
                    against = clause.against[0] if clause.against else None
                    found.append(Figure(each.quantity, each.text, f"{factor:g}x", "factor", clause.subject, against))
    return found


def _bound(clause: _Clause, match: re.Match[str]) -> Mention | None:
    """The quantity a number belongs to: the last named before it, or the one right after it."""
    text = clause.text
    before = [each for each in clause.mentions if each.end <= match.start()]
    after = [each for each in clause.mentions if each.start >= match.end()]
    given = before and re.fullmatch(r"\s*(?:\(|of|is|was|=|:|at)?\s*", text[before[-1].end : match.start()])
    if after and not given and word_lists.BEFORE_QUANTITY.fullmatch(text[match.end() : after[0].start]):
        return after[0]
    between = text[before[-1].end if before else 0 : match.start()]
    if len(between.split()) > 9 or word_lists.NOT_A_LINK.search(between):
        return None
    if before:
        return before[-1]
    return clause.last if word_lists.NUMBER_CONTINUES.match(text) else None


def _kind(match: re.Match[str], before: str, after: str) -> Kind:
    unit = (match["unit"] or "").strip().lower()
    changes, by = word_lists.CHANGE_AFTER.match(after), word_lists.CHANGE_BEFORE.search(before)
    if unit in ("x", "×", "fold", "-fold", "times"):
        return "factor"
    if unit:
        return "percent" if changes or by else "value"
    return "difference" if by or match["sign"] == "+" or (changes and not re.match(r"\s*than", after)) else "value"


def _whose(clause: _Clause, before: str, after: str) -> tuple[int | None, int | None, bool]:
    """Which run a number is given of, and the other run there is talk of; the last: it may be of any other."""
    against = clause.against[0] if clause.against else None
    other = (against if against is not None else PREVIOUS), BASELINE, against is None
    if word_lists.FROM_BEFORE.search(before) or word_lists.TO_AFTER.match(after):
        return other
    if of := word_lists.OF_RUN_AFTER.match(after):
        return _which(of), against, False
    rivals = list(word_lists.AGAINST.finditer(before))
    if rivals and not re.search(r"\bto\b[^,]*$", before[rivals[-1].end() :]):
        return _which(rivals[-1], "r_"), clause.subject, False
    if word_lists.RIVAL_BEFORE.search(before):
        return other
    if named := list(word_lists.NAMED.finditer(before)):
        return _which(named[-1]), against, False
    return clause.subject, against, False
