"""Read a sentence as claims: figures of runs, and directions in which a quantity of a run went against another run.

A number or a direction belongs to the nearest quantity in its clause, or to the last one named before.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from agent.audit import word_lists
from agent.audit.clauses import BASELINE, PREVIOUS, Clause, clauses, is_change_of, is_rival, run_number
from agent.audit.quantities import L0, Mention, Quantity

ANOTHER_VERB = 40  # characters that `and` before a verb counts for
Kind = Literal["value", "difference", "percent", "factor"]


_AMOUNTS_TO = re.compile(r" (?:is|was|of|amounts to|comes to|at)(?: only| about| just| roughly)? ")


@dataclass(frozen=True)
class Direction:
    """A claim that a quantity of a run went some way against another run."""

    quantity: Quantity | None  # None: results as a whole
    wording: str  # how the quantity is named
    way: str  # a key of word_lists.WAYS
    word: str  # that says so
    negated: bool = False
    subject: int | None = None  # None: the run of the section
    reference: int | None = None  # None: no run is named
    trend: bool = False

    @property
    def extreme(self) -> bool:
        return self.way in word_lists.EXTREME.values()

    @property
    def praises(self) -> bool:
        """Return True if the claim is that it went the better way."""
        better = self.quantity.better if self.quantity else "none"
        return (
            self.way == "better" or self.way in {"higher": ("up",), "lower": ("down",), "none": ("up", "down")}[better]
        )


@dataclass(frozen=True)
class Figure:
    """A number that is given for a quantity of a run."""

    quantity: Quantity
    wording: str  # how the quantity is named
    number: str
    kind: Kind  # a value, or a change against the reference: absolute, in per cent, by a factor
    subject: int | None
    reference: int | None
    either: bool = False  # it may be of any other run, as the sentence names none: from 3.1
    bracketed: bool = False

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
    """The claims of a sentence."""

    directions: list[Direction]
    figures: list[Figure]
    trends: list[Quantity]  # of which a trend without a direction is claimed
    success: list[str]  # words that claim that a run worked, and nothing measurable


def read(sentence: str, keys: Iterable[str] = (), before: Mention | None = None) -> Reading:
    """Return the claims of a sentence.

    `keys`: names that results use besides the known quantities. `before`: the quantity that `it` and `this` stand for,
    from the sentence before.
    """
    reading = Reading([], [], [], [])
    for clause in clauses(sentence, keys, before):
        _add_claims(clause, reading)
    return replace(reading, figures=_one_of_several(reading.figures))


def _add_claims(clause: Clause, reading: Reading) -> None:
    directions = _directions(clause)
    reading.directions.extend(directions)
    reading.figures.extend(_figures(clause))
    if not directions and word_lists.TREND_WORD.search(clause.text):
        about = clause.mentions or ([clause.last] if clause.last else [])
        reading.trends.extend(mention.quantity for mention in about)
    reading.success.extend(
        match.group()
        for match in word_lists.SUCCESS.finditer(clause.text)
        if not word_lists.NEGATION.search(clause.text[: match.start()])
    )


def _directions(clause: Clause) -> list[Direction]:
    text = clause.text
    ways = [
        match
        for match in word_lists.WAY.finditer(text)
        if not word_lists.NOT_A_WAY_AFTER.match(text[match.end() :])
        and not word_lists.NOT_A_WAY_BEFORE.search(text[: match.start()])
        and not (
            re.match("improvement|gain|reduction", match.group()) and word_lists.VANISHED.search(text[match.end() :])
        )
        and not any(mention.start <= match.start() < mention.end for mention in clause.mentions)
    ]
    if not ways:
        return []
    about = clause.mentions
    goes_on = clause.opened == "which" or word_lists.CONTINUES.match(text) or ways[0].start() <= 1
    directions, used = [], set()
    for mention in about or ([clause.last] if clause.last and goes_on else []):
        way = min(ways, key=lambda match: _distance(match, mention) if about else match.start())
        if len(about) > 1 and mention.quantity is L0 and word_lists.PLACE.search(text[: mention.start]):
            continue  # at L0 16
        if about and _of_another(text, way, mention, about):
            continue
        used.add(way.start())
        directions += _direction(clause, way, mention.quantity, mention.text)
    for way in ways:
        whole = way.lastgroup in ("better", "worse", "best") and (clause.against or word_lists.OF_RESULTS.search(text))
        as_good = clause.against and word_lists.AS_GOOD.fullmatch(way.group())
        if way.start() not in used and (whole or (as_good and not about)):
            directions += _direction(clause, way, None, "")
    return directions


def _of_another(text: str, way: re.Match[str], mention: Mention, about: list[Mention]) -> bool:
    """Return True if a direction is not said of a quantity: the attribute of another (MSE is 3.1 at a higher L0), said
    of a nearer one (F1 is up with hardly any loss of explained variance), or of what a number of latents brings.
    """
    if way.lastgroup in ("better", "worse") and _is_size_of_code(mention):
        return True
    if way.lastgroup != "same" and way.start() > mention.end and is_change_of(text, mention):
        return True
    attribute = any(
        mention.end <= way.start() and way.end() <= other.start and not text[way.end() : other.start].strip()
        for other in about
    )
    nearest = min(about, key=lambda other: _distance(way, other))
    between = text[min(mention.end, nearest.end) : max(mention.start, nearest.start)]
    return attribute or (nearest is not mention and bool(word_lists.ASIDE.search(between)))


def _is_size_of_code(mention: Mention) -> bool:
    return mention.text.lower().endswith(("latents", "features")) and mention.quantity is L0


def _distance(way: re.Match[str], mention: Mention) -> int:
    """Return the characters between; a second verb (it is better in F1 and loses less) is further off."""
    of_next_verb = way.start() > mention.end and way.string[mention.end : way.start()].endswith(" and ")
    return max(mention.start - way.end(), way.start() - mention.end, 0) + ANOTHER_VERB * of_next_verb


def _direction(clause: Clause, match: re.Match[str], quantity: Quantity | None, wording: str) -> list[Direction]:
    """Return one direction for each pair of runs that is compared."""
    text, way = clause.text, match.lastgroup or ""
    if word_lists.OTHERS.search(text[match.start() :]):
        way = word_lists.EXTREME.get(way, way)
    further = not clause.against and re.search(r"\b(?:further|even|again)\b", text, re.IGNORECASE)
    against = clause.against or (clause.later if further else ())
    negated = bool(word_lists.NEGATION.search(text[: match.start()]))
    trend = bool(word_lists.TREND.search(text))
    return [
        Direction(quantity, wording, way, match.group(), negated, subject, reference, trend)
        for subject in clause.subjects or (None,)
        for reference in against or (PREVIOUS,) * bool(further) or (None,)
    ]


def _figures(clause: Clause) -> list[Figure]:
    text, figures = clause.text, []
    for match in word_lists.NUMBER.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        if (
            word_lists.NOT_A_FIGURE_BEFORE.search(before)
            or word_lists.BOUND_BEFORE.search(before)
            or any(m.start <= match.start() < m.end for m in clause.mentions)
        ):
            continue
        if not match["unit"] and word_lists.NOT_A_FIGURE_AFTER.match(after):
            continue
        mention = _quantity_of(clause, match)
        if mention and not (_is_size_of_code(mention) and word_lists.STARTS.search(text)):
            given = is_change_of(text, mention) and _AMOUNTS_TO.fullmatch(text[mention.end : match.start()])
            kind = "difference" if given else _kind(match, before, after)
            against = clause.against[0] if clause.against else None
            if (other := word_lists.AGAINST.search(after)) and not other["loose"]:
                against = run_number(other, "r_")
            whose = _runs_of_value(clause, before, after) if kind == "value" else (clause.subject, against, False)
            sign = "-" if match["sign"] in "-−" and match["sign"] else ""
            number = sign + match["digits"] + (match["unit"] or "").strip()
            figures.append(Figure(mention.quantity, mention.text, number, kind, *whose, clause.opened == "("))
    return [*figures, *_factors(clause)]


def _one_of_several(figures: list[Figure]) -> list[Figure]:
    """Leave open which runs figures in brackets are of, if a sentence has several of a quantity and names no run."""
    counts = Counter(figure.quantity for figure in figures if figure.bracketed and figure.subject is None)
    return [
        replace(figure, either=True) if figure.bracketed and counts[figure.quantity] > 1 else figure
        for figure in figures
    ]


def _factors(clause: Clause) -> list[Figure]:
    """Return factors in words (halved, doubled) of quantities at most three words away."""
    figures = []
    for factor, words in word_lists.FACTORS.items():
        for match in re.finditer(rf"\b(?:{words})", clause.text, re.IGNORECASE):
            for mention in clause.mentions if not word_lists.CHANGED_BY_FACTOR.search(clause.text) else ():
                between = clause.text[min(mention.end, match.end()) : max(mention.start, match.start())]
                if len(between.split()) <= 3 and not re.search(r"\b(?:coefficient|width|rate|size|penalty)\b", between):
                    against = clause.against[0] if clause.against else None
                    name = (mention.quantity, mention.text)
                    figures.append(Figure(*name, f"{factor:g}x", "factor", clause.subject, against))
    return figures


def _quantity_of(clause: Clause, match: re.Match[str]) -> Mention | None:
    """Return the quantity a number belongs to: the last named before it, or the one right after it."""
    text = clause.text
    before = [mention for mention in clause.mentions if mention.end <= match.start()]
    if len(before) > 1 and before[-1].quantity is L0 and word_lists.AT_L0.search(text[: match.start()]):
        before.pop()  # explained variance at L0 16 rose to 0.85
    after = [mention for mention in clause.mentions if mention.start >= match.end()]
    given = before and re.fullmatch(r"\s*(?:\(|of|is|was|=|:|at)?\s*", text[before[-1].end : match.start()])
    if after and not given and word_lists.BEFORE_QUANTITY.fullmatch(text[match.end() : after[0].start]):
        return after[0]
    if not before and word_lists.OTHER_QUANTITY.match(word_lists.NAMED.sub("", text[: match.start()])):
        return None
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
    signed = match["sign"] == "+" or re.match(r"\s*±", after)
    return "difference" if by or signed or (changes and not re.match(r"\s*than", after)) else "value"


def _runs_of_value(clause: Clause, before: str, after: str) -> tuple[int | None, int | None, bool]:
    """Return the run a number is given for, the other run of the sentence, and whether it may be of any other run."""
    against = clause.against[0] if clause.against else None
    other = (against if against is not None else PREVIOUS), BASELINE, against is None
    if word_lists.FROM_BEFORE.search(before) or word_lists.TO_AFTER.match(after):
        return other
    if word_lists.RANGE_BEFORE.search(before):
        return clause.subject, against, True
    if of := word_lists.OF_RUN_AFTER.match(after):
        return run_number(of), against, False
    rivals = list(word_lists.AGAINST.finditer(before))
    if rivals and not re.search(r"\bto\b[^,]*$", before[rivals[-1].end() :]):
        return run_number(rivals[-1], "r_"), clause.subject, False
    if word_lists.RIVAL_BEFORE.search(before):
        return other
    if named := [each for each in word_lists.NAMED.finditer(before) if not is_rival(each, rivals)]:
        return run_number(named[-1]), against, False
    named_elsewhere = clause.several or word_lists.NAMED.search(after)
    return clause.subject, against, bool(named_elsewhere) and clause.subject is not None
