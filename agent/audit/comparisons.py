"""Runs held beside each other: what the figures say of a direction, an extreme, a trend."""

import re
from collections.abc import Iterator
from itertools import pairwise

from agent.audit import word_lists
from agent.audit.claims import BASELINE, PREVIOUS, Direction
from agent.audit.finding import Judged
from agent.audit.known_figures import Facts
from agent.audit.quantities import QUANTITIES, Quantity

SIMILAR = 0.02  # what is called similar may differ by this share
SAME = 0.001  # what is called identical or unchanged

DECIDE = [  # what better is counted over, where it is said of no quantity in particular
    quantity
    for quantity in QUANTITIES
    if quantity.better != "none"
    and not quantity.designed
    and quantity.name not in ("L0", "L1", "sparsity", "reconstruction")
]
_NOT: dict[str, Judged] = {"supported": ("contradicted", ""), "contradicted": ("supported", "")}


def sides(known: Facts, quantity: Quantity, said: str, subject: int, reference: int) -> list[tuple[str, float, float]]:
    """The figures of both runs, by path; at the same L0 where notes have such a comparison with the baseline."""
    one, two = known.runs[subject], known.runs[reference]
    if reference == BASELINE and (title := one.compared(quantity, said)):
        return [(title, one.differences[title].value, one.differences[title].reference)]
    mine, theirs = one.of(quantity, said), two.of(quantity, said)
    if common := [path for path in mine if path in theirs]:
        return [(path, mine[path], theirs[path]) for path in common]
    return [(path, mine[path], next(iter(theirs.values()))) for path in list(mine)[:1]] if theirs else []


def beside(known: Facts, path: str, subject: int, a: float, reference: int, b: float) -> str:
    return f"{path} is {a:.6g} in {known.name(subject)}, {b:.6g} in {known.name(reference)}"


def compared(known: Facts, claim: Direction, subject: int, reference: int, text: str) -> Judged | None:
    """A direction against another run; None where it says nothing that figures could decide."""
    if claim.negated:
        judged = _plain(known, claim, subject, reference)
        return (_NOT[judged[0]][0], judged[1]) if judged and judged[0] in _NOT else None
    if claim.praises and (why := known.runs[subject].untrained):
        return "contradicted", f"nothing was trained in {known.name(subject)}: {why}"
    if claim.way != "same" and known.identical(subject, reference):
        return "contradicted", f"{known.name(subject)} and {known.name(reference)} have the same figures throughout"
    judged = _plain(known, claim, subject, reference)
    if judged is None or judged[0] == "contradicted" or not (claim.quantity is None or claim.quantity.follows_l0):
        return judged
    if known.runs[subject].untrained:
        return judged
    owned_up = claim.way in ("up", "down", "same") and word_lists.L0.search(text)
    if (why := known.l0_apart(subject, reference)) and not owned_up and not word_lists.DISCLAIMED.search(text):
        return "unsupported", why
    return judged


def _plain(known: Facts, claim: Direction, subject: int, reference: int) -> Judged | None:
    """What the figures say, whether or not the runs compare."""
    quantity = claim.quantity
    if quantity is None:
        return overall(known, claim.way, subject, reference)
    found = sides(known, quantity, claim.said, subject, reference)
    if not found:
        undecided = quantity.designed or (quantity.better == "none" and quantity not in QUANTITIES)
        return None if undecided else ("unsupported", _lacking(known, quantity, subject, reference))
    shown = "; ".join(beside(known, path, subject, a, reference, b) for path, a, b in found[:3])
    one = known.runs[subject]
    title = one.compared(quantity, claim.said) if reference == BASELINE else None
    noisy = bool(title) and one.differences[title].within_noise
    if claim.way == "same":
        share = SAME if word_lists.UNCHANGED.search(claim.word) else SIMILAR
        held = [noisy or abs(a - b) <= share * max(abs(a), abs(b)) for _, a, b in found]
    elif noisy:
        return "unsupported", f"{shown}: within the noise"
    else:
        held = [went(claim, a, b) for _, a, b in found]
    if None in held:
        return "unsupported", f"{shown}, and no direction of {quantity.name} is better by itself"
    if len(set(held)) > 1:
        return "unsupported", f"{shown}: some one way, some the other"
    return ("supported" if held[0] else "contradicted"), shown


def _lacking(known: Facts, quantity: Quantity, subject: int, reference: int) -> str:
    if not any(run.of(quantity) for run in known.runs.values()):
        return f"no run has a value of {quantity.name}"
    absent = reference if known.runs[subject].of(quantity) else subject
    return f"{known.name(absent)} has no value of {quantity.name}"


def went(claim: Direction, a: float, b: float) -> bool | None:
    """Whether a figure went from b to a the way that is said; None where no way of it is better."""
    quantity = claim.quantity
    assert quantity
    if claim.way in ("better", "worse"):
        if quantity.better == "none":
            return None
        up = (quantity.better == "higher") == (claim.way == "better")
    else:
        up = claim.way == "up"
    return a > b if up != quantity.inverse else a < b


def overall(known: Facts, way: str, subject: int, reference: int) -> Judged:
    """Better or worse, of no quantity in particular: by every quantity that has a better way."""
    won, lost = [], []
    for quantity in DECIDE:
        for path, a, b in sides(known, quantity, "", subject, reference)[:1]:
            if a != b:
                better = (a > b) == (quantity.better == "higher")
                (won if better else lost).append(beside(known, path, subject, a, reference, b))
    if way == "worse":
        won, lost = lost, won
    if won and lost:
        return "unsupported", f"{len(won)} figures say so, {len(lost)} say otherwise: {lost[0]}"
    if not won and not lost:
        return "unsupported", f"no figure of {known.name(subject)} and {known.name(reference)} says so"
    return ("supported" if won else "contradicted"), "; ".join((won or lost)[:3])


def superlative(known: Facts, claim: Direction, subject: int) -> Judged | None:
    """Best, worst, highest, lowest: of all runs, or of those so far."""
    quantity = claim.quantity
    if claim.negated or (quantity is None and claim.way != "best"):
        return None
    if quantity is None:  # wrong where another run is better in everything
        others = [number for number in known.runs if number not in (subject, BASELINE)]
        judged = [overall(known, "better", subject, other) for other in others]
        return next((each for each in judged if each[0] == "contradicted"), None)
    measured = _values(known, quantity, claim.said)
    if subject not in measured:
        return "unsupported", f"{known.name(subject)} has no value of {quantity.name}"
    if claim.way in ("best", "worst") and quantity.better == "none":
        return "unsupported", f"no direction of {quantity.name} is better by itself"
    high = claim.way == "highest" or (claim.way != "lowest" and (quantity.better == "higher") == (claim.way == "best"))
    pick = max if high != quantity.inverse else min
    shown = f"{quantity.name}: {_listed(known, measured)}"
    so_far = {number: value for number, value in measured.items() if number <= subject}
    if not any(each[subject] == pick(each.values()) for each in (measured, so_far) if len(each) > 1):
        return "contradicted", shown
    fair = claim.way != "best" or not quantity.follows_l0 or BASELINE not in (known.runs.keys() - {subject})
    why = "" if fair else known.l0_apart(subject, BASELINE)
    return ("unsupported", why) if why else ("supported", shown)


def trend(known: Facts, claim: Direction, upto: int | None, text: str) -> Iterator[Judged]:
    """Over the runs in their order, up to one; over a training, nothing is known but its end."""
    quantity, consistent = claim.quantity, bool(re.search(r"\bconsistent", text, re.IGNORECASE))
    numbers = sorted(known.runs)
    if quantity is None:
        pairs = [(BASELINE, number) for number in numbers[1:]] if consistent else list(pairwise(numbers))
        judged = [overall(known, claim.way, b, a) for a, b in pairs if a in known.runs]
        wrong = [each for each in judged if each[0] != "supported"]
        yield [*wrong, *judged, ("unsupported", "there are no two runs")][0]
        return
    measured = {n: value for n, value in _values(known, quantity, claim.said).items() if upto is None or n <= upto}
    if not measured:
        yield "unsupported", f"no run has a value of {quantity.name}"
    elif word_lists.WITHIN_TRAINING.search(text):
        yield "unsupported", f"of {quantity.name} each run's final value is known, and no history"
    else:
        if upto is not None and claim.reference == PREVIOUS:
            measured = dict(list(measured.items())[-2:])
        values = list(measured.values())
        ways = [[went(claim, b, a) for a, b in pairwise(values)]]
        if BASELINE in measured:
            ways += [[went(claim, b, a) for a, b in pairwise(values[1:])]]
            ways += [[went(claim, value, values[0]) for value in values[1:]]] * consistent
        held = any(each and all(each) for each in ways)
        shown = f"{quantity.name}: {_listed(known, measured)}"
        yield ("supported" if held else "contradicted" if len(values) > 1 else "unsupported"), shown


def _values(known: Facts, quantity: Quantity, said: str) -> dict[int, float]:
    found = {number: next(iter(run.of(quantity, said).values()), None) for number, run in sorted(known.runs.items())}
    return {number: value for number, value in found.items() if value is not None}


def _listed(known: Facts, values: dict[int, float]) -> str:
    return ", ".join(f"{known.name(number)} {value:.6g}" for number, value in values.items())
