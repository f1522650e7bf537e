"""Check a direction, a superlative or a trend against the figures of the runs."""

import re
from collections.abc import Iterator
from itertools import pairwise

from agent.audit import word_lists
from agent.audit.claims import Direction
from agent.audit.clauses import BASELINE, PREVIOUS
from agent.audit.finding import CheckResult
from agent.audit.known_figures import KnownRuns, is_within
from agent.audit.quantities import L0, QUANTITIES, Quantity
from agent.comparison.judgement import SAME_L0
from agent.lab.metrics import METRICS
from agent.report.sentences import TITLES

SIMILAR = 0.02  # figures called similar may differ by this share
SAME = 0.001  # figures called identical or unchanged
WITHIN_NOISE = "within the noise"

DECISIVE = [  # what `better` is counted over if no quantity is named
    quantity
    for quantity in QUANTITIES
    if quantity.better != "none"
    and not quantity.designed
    and quantity.name not in ("L0", "L1", "sparsity", "reconstruction")
]
_NOT: dict[str, CheckResult] = {"supported": ("contradicted", ""), "contradicted": ("supported", "")}


def paired_figures(
    known: KnownRuns, quantity: Quantity, wording: str, subject: int, reference: int
) -> list[tuple[str, float, float]]:
    """Return (path, figure of subject, figure of reference), at the same L0 if such a comparison is known."""
    if BASELINE in (subject, reference) and (pair := _at_same_l0(known, quantity, wording, subject or reference)):
        title, value, at_l0 = pair
        return [(title, value, at_l0) if subject else (title, at_l0, value)]
    one, two = known.runs[subject], known.runs[reference]
    mine, theirs = one.related_figures_of(quantity, wording), two.related_figures_of(quantity, wording)
    if common := [path for path in mine if path in theirs]:
        return [(path, mine[path], theirs[path]) for path in common]
    return [(path, mine[path], next(iter(theirs.values()))) for path in list(mine)[:1]] if theirs else []


def _at_same_l0(known: KnownRuns, quantity: Quantity, wording: str, run: int) -> tuple[str, float, float] | None:
    """Return the title of a metric, its figure in a run and the baseline's at the run's L0, if they were compared."""
    if (title := known.runs[run].compared_title(quantity, wording)) is None:
        return None
    difference = known.runs[run].differences[title]
    if TITLES.get(title) == quantity.complement:
        return f"1 - {title}", 1 - difference.value, 1 - difference.reference
    return title, difference.value, difference.reference


def noise_between(known: KnownRuns, quantity: Quantity, wording: str, subject: int, reference: int) -> float | None:
    """Return the half width that a difference between two runs must exceed, or None if no noise is known."""
    runs = [known.runs[number] for number in (subject, reference)]
    titles = [(run, title) for run in runs if (title := run.compared_title(quantity, wording))]
    return max((run.differences[title].reach for run, title in titles), default=None)


def state_both(known: KnownRuns, path: str, subject: int, a: float, reference: int, b: float) -> str:
    return f"{path} is {a:.6g} in {known.name(subject)}, {b:.6g} in {known.name(reference)}"


def check_direction(known: KnownRuns, claim: Direction, subject: int, reference: int, text: str) -> CheckResult | None:
    """Check a direction against another run. Return None if figures could not decide it."""
    if claim.negated and claim.quantity is None:
        return None
    if claim.negated:
        result = _by_figures(known, claim, subject, reference)
        return (_NOT[result[0]][0], result[1]) if result and result[0] in _NOT else None
    if claim.praises and (why := known.runs[subject].why_untrained):
        return "contradicted", f"nothing was trained in {known.name(subject)}: {why}"
    if claim.way != "same" and known.identical(subject, reference):
        return "contradicted", f"{known.name(subject)} and {known.name(reference)} have the same figures throughout"
    result = _by_figures(known, claim, subject, reference)
    if result is None or result[0] == "contradicted" or not (claim.quantity is None or claim.quantity.follows_l0):
        return result
    if known.runs[subject].why_untrained:
        return result
    compared_at_l0 = (
        BASELINE in (subject, reference)
        and claim.quantity
        and (_at_same_l0(known, claim.quantity, claim.wording, subject or reference))
    )
    says_l0_differs = claim.way in ("up", "down", "same") and word_lists.L0_DIFFERS.search(text)
    if compared_at_l0 or says_l0_differs or word_lists.DISCLAIMED.search(text):
        return result
    why = known.why_l0_apart(subject, reference)
    return ("unsupported", why) if why else result


def _by_figures(known: KnownRuns, claim: Direction, subject: int, reference: int) -> CheckResult | None:
    """Check a direction by the figures, whether or not the runs compare."""
    quantity = claim.quantity
    if quantity is None:
        return check_overall(known, claim.way, subject, reference)
    pairs = paired_figures(known, quantity, claim.wording, subject, reference)
    if not pairs:
        undecided = quantity.designed or (quantity.better == "none" and quantity not in QUANTITIES)
        return None if undecided else ("unsupported", _no_value(known, quantity, subject, reference))
    shown = "; ".join(state_both(known, path, subject, a, reference, b) for path, a, b in pairs[:3])
    noise = noise_between(known, quantity, claim.wording, subject, reference)
    if claim.way == "same":
        agreeing = [_same(claim, a, b, noise) for _, a, b in pairs]
    elif noise is not None and all(
        is_within(a - b, noise) if BASELINE in (subject, reference) else _is_nothing(claim, a, b, noise)
        for _, a, b in pairs
    ):
        return "unsupported", f"{shown}: {WITHIN_NOISE}"
    else:
        agreeing = [_went(claim, a, b) for _, a, b in pairs]
    if None in agreeing:
        return "unsupported", f"{shown}, and no direction of {quantity.name} is better by itself"
    if len(set(agreeing)) > 1:
        return "unsupported", f"{shown}: some one way, some the other"
    return ("supported" if agreeing[0] else "contradicted"), shown


def _is_nothing(claim: Direction, a: float, b: float, half_width: float) -> bool:
    """Return True for a difference between two runs that is smaller than its interval from the baseline: well smaller,
    if it is the way that is claimed, as an interval of its own is not known.
    """
    return is_within(a - b, half_width * (0.5 if _went(claim, a, b) else 1 - 1e-6))


def _same(claim: Direction, a: float, b: float, noise: float | None) -> bool:
    """Return True if two figures are as alike as claimed: by the noise, if it is known and the claim is about it."""
    apart = abs(a - b)
    if noise is not None and is_within(apart, noise):
        return True
    if noise is not None and word_lists.WITHIN_NOISE.search(claim.word):
        return False
    assert claim.quantity
    loosely = noise is None or word_lists.SIMILARLY.search(claim.word)
    share = SIMILAR if loosely and not word_lists.UNCHANGED.search(claim.word) else SAME
    worth = next((metric.worth for name, metric in METRICS.items() if claim.quantity.is_figure(name)), 0.0)
    if claim.quantity is L0:
        share, worth = max(share, SAME_L0), 0.0
    return apart <= share * max(abs(a), abs(b)) or (noise is not None and apart < worth)


def _no_value(known: KnownRuns, quantity: Quantity, subject: int, reference: int) -> str:
    if not any(run.related_figures_of(quantity) for run in known.runs.values()):
        return f"no run has a value of {quantity.name}"
    absent = reference if known.runs[subject].related_figures_of(quantity) else subject
    return f"{known.name(absent)} has no value of {quantity.name}"


def _went(claim: Direction, a: float, b: float) -> bool | None:
    """Return True if a figure went from b to a as claimed, or None if no way of it is better."""
    quantity = claim.quantity
    assert quantity
    if claim.way in ("better", "worse"):
        if quantity.better == "none":
            return None
        up = (quantity.better == "higher") == (claim.way == "better")
    else:
        up = claim.way == "up"
    return a > b if up != quantity.inverse else a < b


def check_overall(known: KnownRuns, way: str, subject: int, reference: int) -> CheckResult:
    """Check better, worse or as good of no quantity in particular, by every quantity with a better direction."""
    won, lost, measured = [], [], 0
    for quantity in DECISIVE:
        noise = noise_between(known, quantity, "", subject, reference) or 0.0
        for path, a, b in paired_figures(known, quantity, "", subject, reference)[:1]:
            measured += 1
            if not is_within(a - b, noise):
                better = (a > b) == (quantity.better == "higher")
                (won if better else lost).append(state_both(known, path, subject, a, reference, b))
    if way == "same":
        apart = [*won, *lost]
        return ("contradicted" if 2 * len(apart) > measured else "unsupported"), "; ".join(apart[:3])
    if way == "worse":
        won, lost = lost, won
    if won and lost:
        return "unsupported", f"{len(won)} figures say so, {len(lost)} say otherwise: {lost[0]}"
    if not won and not lost:
        return "unsupported", f"no figure of {known.name(subject)} and {known.name(reference)} says so"
    return ("supported" if won else "contradicted"), "; ".join((won or lost)[:3])


def check_superlative(known: KnownRuns, claim: Direction, subject: int, own: bool) -> CheckResult | None:
    """Check best, worst, highest or lowest, of all runs, or of those so far in a run's `own` section."""
    quantity = claim.quantity
    if claim.negated or (quantity is None and claim.way != "best"):
        return None
    if quantity is None:  # wrong where another run is better in everything
        others = [number for number in known.runs if number not in (subject, BASELINE)]
        results = [check_overall(known, "better", subject, other) for other in others]
        return next((result for result in results if result[0] == "contradicted"), None)
    measured = _values(known, quantity, claim.wording)
    if subject not in measured:
        return "unsupported", f"{known.name(subject)} has no value of {quantity.name}"
    if claim.way in ("best", "worst") and quantity.better == "none":
        return "unsupported", f"no direction of {quantity.name} is better by itself"
    high = claim.way == "highest" or (claim.way != "lowest" and (quantity.better == "higher") == (claim.way == "best"))
    pick = max if high != quantity.inverse else min
    shown = f"{quantity.name}: {_listed(known, measured)}"
    so_far = {number: value for number, value in measured.items() if number <= subject}
    like = {number: value for number, value in measured.items() if not known.why_l0_apart(number, subject)}
    among = [measured, *([so_far] if own else []), *([like] if quantity.follows_l0 else [])]
    if not any(values[subject] == pick(values.values()) for values in among if len(values) > 1):
        return "contradicted", shown
    fair = claim.way != "best" or not quantity.follows_l0 or BASELINE not in (known.runs.keys() - {subject})
    why = "" if fair else known.why_l0_apart(subject, BASELINE)
    return ("unsupported", why) if why else ("supported", shown)


def check_trend(known: KnownRuns, claim: Direction, upto: int | None, text: str) -> Iterator[CheckResult]:
    """Check a trend over the runs in order, up to `upto`. Of a training only its end is known, so none can be shown."""
    quantity, consistent = claim.quantity, bool(re.search(r"\bconsistent", text, re.IGNORECASE))
    numbers = sorted(known.runs)
    if quantity is None:
        pairs = [(BASELINE, number) for number in numbers[1:]] if consistent else list(pairwise(numbers))
        results = [check_overall(known, claim.way, b, a) for a, b in pairs if a in known.runs]
        wrong = [result for result in results if result[0] != "supported"]
        yield [*wrong, *results, ("unsupported", "there are no two runs")][0]
        return
    measured = {n: value for n, value in _values(known, quantity, claim.wording).items() if upto is None or n <= upto}
    if not measured:
        yield "unsupported", f"no run has a value of {quantity.name}"
    elif word_lists.WITHIN_TRAINING.search(text):
        yield "unsupported", f"only the final value of {quantity.name} is known for each run, no history"
    else:
        if upto is not None and claim.reference == PREVIOUS:
            measured = dict(list(measured.items())[-2:])
        values = list(measured.values())
        ways = [[_went(claim, b, a) for a, b in pairwise(values)]]
        if BASELINE in measured:
            ways += [[_went(claim, b, a) for a, b in pairwise(values[1:])]]
            ways += [[_went(claim, value, values[0]) for value in values[1:]]] * consistent
        agreeing = any(steps and all(steps) for steps in ways)
        shown = f"{quantity.name}: {_listed(known, measured)}"
        yield ("supported" if agreeing else "contradicted" if len(values) > 1 else "unsupported"), shown


def _values(known: KnownRuns, quantity: Quantity, wording: str) -> dict[int, float]:
    values = {
        number: next(iter(run.related_figures_of(quantity, wording).values()), None)
        for number, run in sorted(known.runs.items())
    }
    return {number: value for number, value in values.items() if value is not None}


def _listed(known: KnownRuns, values: dict[int, float]) -> str:
    return ", ".join(f"{known.name(number)} {value:.6g}" for number, value in values.items())
