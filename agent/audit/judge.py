"""Check the claims of a sentence of prose against what is known of the runs."""

import re
from collections.abc import Iterator

from agent.audit import claims, comparisons, rendered_sentences, word_lists
from agent.audit.claims import Direction, Figure, Reading
from agent.audit.clauses import BASELINE, OWN, PREVIOUS
from agent.audit.finding import CheckResult
from agent.audit.known_figures import KnownRuns
from agent.audit.notes_reader import Statement
from agent.audit.quantities import STEPS, Quantity, mentions
from agent.audit.rounding import agrees
from agent.report import sentences

LONGEST = 2000  # characters of a sentence that are read
ABOUT = 0.03  # a value given with `about` may differ by this share; a change by five times as much
Claim = Figure | Direction | Quantity | str  # or the predicate of a difference, or a kind of claim
FACTOR = 0.1  # a factor may


class ProseSentence:
    """A sentence, the run in whose section it stands, and what is known of the runs."""

    def __init__(self, statement: Statement, before: Statement | None, known: KnownRuns) -> None:
        self.text, self.run, self.known = statement.text[:LONGEST], statement.run, known
        self.is_intent = statement.is_intent
        self.keys = known.keys
        same_paragraph = before and (before.line, before.label) == (statement.line, statement.label)
        mentioned = mentions(before.text[:LONGEST], self.keys) if before and same_paragraph else []
        self.differences = list(rendered_sentences.check_differences(self.text, self.run, known))
        self.it = mentioned[0] if len({mention.quantity for mention in mentioned}) == 1 else None

    def check(self) -> Iterator[CheckResult]:
        """Check each claim."""
        return (result for _, result in self.check_claims())

    def check_claims(self) -> Iterator[tuple[Claim, CheckResult]]:
        """Check each claim and yield it with the result."""
        yield from self.differences
        reading = self.read()
        if self.is_intent and not re.search(r"\b(?:run \d|baseline|previous)", self.text):
            return
        for figure in reading.figures:
            yield from ((figure, result) for result in self.check_figure(figure))
        for direction in reading.directions:
            yield from ((direction, result) for result in self.check_direction(direction))
        yield from (("praise", result) for result in self.check_higher_l0_praised(reading.directions))
        for quantity in reading.trends:
            if not any(run.figures_of(quantity) for run in self.known.runs.values()):
                yield quantity, ("unsupported", f"no run has a value of {quantity.name}")
        if reading.success:
            yield from (("success", result) for result in self.check_success(reading.success[0]))

    def read(self) -> Reading:
        """Return the claims but for the differences that the program has rendered."""
        text = self.text
        for predicate, _ in self.differences:
            text = text.replace(predicate, "")
        for value in list(sentences.VALUE_OF.within(text)):  # 0.96 (CE-loss score of run 1)
            text = text.replace(value.group(), f"{value['figure']} of {value['which']} is {value['value']}")
        return claims.read(text, self.keys, self.it)

    def subjects(self, number: int | None) -> list[int]:
        """Return the runs that a claim is about: every variant if a section about all runs names none."""
        if number not in (None, OWN):
            return [self.run_before(self.run) if number == PREVIOUS else number]
        return [self.run] if self.run is not None else [number for number in self.known.runs if number != BASELINE]

    def run_before(self, run: int | None) -> int:
        return max((number for number in self.known.runs if run is None or number < run), default=BASELINE)

    def check_figure(self, figure: Figure) -> Iterator[CheckResult]:
        if figure.subject is None and self.run is None:
            return
        for subject in self.subjects(figure.subject):
            run = self.known.runs.get(subject)
            if run is None:
                yield "unsupported", f"there is no run {subject} with results"
            elif figure.kind != "value" and run.related_figures_of(figure.quantity, figure.wording):
                yield self.check_change(figure, subject)
            elif values := run.figures_of(figure.quantity, figure.wording):
                yield self.check_value(figure, subject, values)
            elif not figure.quantity.designed:
                yield "unsupported", f"{self.known.name(subject)} has no value of {figure.quantity.name}"

    def check_value(self, figure: Figure, subject: int, values: dict[str, float]) -> CheckResult:
        name, quantity = self.known.name(subject), figure.quantity
        if (path := self.matching_path(figure, values)) is not None:
            return "supported", f"{name} has {path} {values[path]:.6g}"
        runs = {number: run for number, run in self.known.runs.items() if number != subject}
        others = [
            n
            for n, run in runs.items()
            if self.matching_path(figure, run.figures_of(quantity, figure.wording)) is not None
        ]
        if figure.either and others:
            return "supported", f"{self.known.name(others[0])} has {quantity.name} {figure.number}"
        compared = self.known.runs.values() if quantity.follows_l0 else ()
        for run in compared:  # (0.0042 vs 0.0019) after how much a quantity lost
            title = run.compared_title(quantity, figure.wording)
            if title and agrees(figure.digits, abs(run.differences[title].difference)):
                return "supported", f"the difference of {title} in run {run.number} is {figure.number}"
        if subject == BASELINE:  # its figure at another run's L0
            for run in runs.values():
                title = run.compared_title(quantity, figure.wording)
                if title and agrees(figure.number, run.differences[title].reference):
                    return "supported", f"the baseline at the L0 of run {run.number} has {title} {figure.number}"
        shown = ", ".join(f"{path} {value:.6g}" for path, value in list(values.items())[:3])
        whose = f"; {figure.number} is that of {self.known.name(others[0])}" if others else ""
        return "contradicted", f"{name} has {shown}{whose}"

    def matching_path(self, figure: Figure, values: dict[str, float]) -> str | None:
        """Return the path of the value that a number gives, itself or in per cent, or None."""
        for path, value in values.items():
            for meant in (value, 100 * value) if figure.percent else (value,):
                if agrees(figure.digits, meant) or (self.is_approximate(figure) and _near(figure, meant, ABOUT)):
                    return path
        return None

    def is_approximate(self, figure: Figure) -> bool:
        return bool(re.search(rf"{word_lists.LOOSELY}\s*{re.escape(figure.digits)}", self.text))

    def check_change(self, figure: Figure, subject: int) -> CheckResult:
        """Check a difference, a percentage or a factor against the run named, else the baseline or the run before."""
        named = self.run if figure.reference == OWN else figure.reference
        references = [BASELINE, self.run_before(subject)] if named in (None, PREVIOUS) else [named]
        if named is None and figure.kind == "difference":
            references += sorted(self.known.runs)
        otherwise = []
        for reference in dict.fromkeys(run for run in references if run in self.known.runs and run != subject):
            for path, a, b in comparisons.paired_figures(
                self.known, figure.quantity, figure.wording, subject, reference
            ):
                changes = _changes(figure, a, b)
                shown = comparisons.state_both(self.known, path, subject, a, reference, b)
                units = 0.75 if figure.percent else 1.5  # both sides of a difference may have been rounded
                loosely = FACTOR if figure.kind == "factor" else 5 * ABOUT if self.is_approximate(figure) else 0.0
                if any(agrees(figure.digits, change, units) or _near(figure, change, loosely) for change in changes):
                    return "supported", shown
                otherwise.append(f"{shown} ({changes[0]:+.4g}{'%' * figure.percent})" if changes else shown)
        if self.is_some_runs_change(figure):
            return "supported", f"a difference of {figure.quantity.name} is {figure.number}"
        if not otherwise:
            return "unsupported", f"there is nothing to compare the change of {figure.quantity.name} with"
        return "contradicted", "; ".join(otherwise[:2])

    def is_some_runs_change(self, figure: Figure) -> bool:
        """Return True if a sentence with several numbers (a cost of 0.02 shrank to 0.004) gives a run's change."""
        if len(word_lists.NUMBER.findall(self.text)) < 2 or figure.percent or not figure.quantity.follows_l0:
            return False
        runs, digits = self.known.runs.values(), figure.digits.lstrip("+-")
        titles = [(run, title) for run in runs if (title := run.compared_title(figure.quantity, figure.wording))]
        return any(agrees(digits, abs(run.differences[title].difference)) for run, title in titles)

    def check_direction(self, claim: Direction) -> Iterator[CheckResult]:
        if claim.trend and not claim.extreme and claim.way != "same" and not claim.negated:
            yield from comparisons.check_trend(self.known, claim, self.run, self.text)
            return
        checked = (self.check_direction_of(claim, subject) for subject in self.subjects(claim.subject))
        results = [result for result in checked if result]
        if self.run is None and claim.subject is None and len(results) > 1:
            yield self.of_all_variants(results)
        else:
            yield from results

    def check_direction_of(self, claim: Direction, subject: int) -> CheckResult | None:
        """Check a direction of one run. Return None if figures could not decide it."""
        if subject in self.known.runs and claim.extreme:
            return comparisons.check_superlative(self.known, claim, subject, self.run in (None, subject))
        own = self.run if claim.reference == OWN else claim.reference
        reference = BASELINE if own is None and BASELINE in self.known.runs else own
        reference = self.run_before(subject) if reference in (None, PREVIOUS) else reference
        if absent := [number for number in (subject, reference) if number not in self.known.runs]:
            return "unsupported", f"there are no results of {self.known.name(absent[0])}"
        if subject == reference == BASELINE and self.run and self.is_of_baseline(claim):
            reference = self.run
        if subject == reference or reference not in self.known.runs:
            return None
        return comparisons.check_direction(self.known, claim, subject, reference, self.text)

    def is_of_baseline(self, claim: Direction) -> bool:
        """Return True for `the baseline is ahead`."""
        return bool(re.search(rf"\bbaseline (?:\w+ ){{0,3}}{re.escape(claim.word)}\b", self.text, re.IGNORECASE))

    def of_all_variants(self, results: list[CheckResult]) -> CheckResult:
        """Return one result for a claim about the variants that names none of them."""
        statuses = {status for status, _ in results}
        if len(statuses) == 1:
            return results[0][0], "; ".join(evidence for _, evidence in results[:3])
        every = word_lists.EVERY.search(self.text)
        if "supported" in statuses and not every and word_lists.SOME.search(self.text):
            return next(result for result in results if result[0] == "supported")
        otherwise = "; ".join(evidence for status, evidence in results if status != "supported")
        return ("contradicted" if every and "contradicted" in statuses else "unsupported"), otherwise

    def check_higher_l0_praised(self, directions: list[Direction]) -> Iterator[CheckResult]:
        """Contradict praise of a higher L0 or L1: it means more active latents, so less sparsity."""
        if not word_lists.PRAISE.search(self.text) or word_lists.COST.search(self.text):
            return
        named = {direction.quantity.name for direction in directions if direction.quantity}
        for claim in directions:
            if claim.quantity and claim.quantity.name in ("L0", "L1") and claim.way in ("up", "highest"):
                misnamed = "sparsity" in claim.wording.lower()
                if not claim.negated and (misnamed or named <= {"L0", "L1", "sparsity"}):
                    yield "contradicted", f"a higher {claim.quantity.name} is less sparsity, and by itself no merit"

    def check_success(self, word: str) -> Iterator[CheckResult]:
        """Check a word that says a run worked, which nothing measures: at least it must have been trained."""
        if self.run is None or self.run == BASELINE:
            return
        run, name = self.known.runs.get(self.run), self.known.name(self.run)
        if run is None or not run.figures:
            yield "unsupported", f"{name} has no results"
        elif why := run.why_untrained:
            yield "contradicted", f"nothing was trained in {name}: {why}"
        elif not run.counts:
            yield "contradicted", f"{name} does not count: {run.verdict}"
        elif word_lists.RAN.fullmatch(word) or BASELINE not in self.known.runs:
            steps = next(iter(run.figures_of(STEPS).items()), None)
            yield "supported", f"{name} has {steps[0]} {steps[1]:g}" if steps else f"{name} has results"
        elif self.known.identical(self.run, BASELINE):
            yield "contradicted", f"{name} and the baseline have the same figures throughout"
        else:
            result = comparisons.check_overall(self.known, "better", self.run, BASELINE)
            yield from [result] if result[0] == "contradicted" else []


def _changes(figure: Figure, a: float, b: float) -> list[float]:
    """Return the change from b to a in the ways that the number may be meant."""
    if figure.kind == "factor":
        return [a / b, b / a] if a and b else []
    sizes = [100 * (a - b) / abs(b) if b else 0.0, 100 * (a - b)] if figure.percent else [a - b]
    return [*sizes, *(-size for size in sizes)]


def _near(figure: Figure, value: float, share: float) -> bool:
    return abs(figure.value - value) <= share * abs(value)
