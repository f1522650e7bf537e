"""A sentence of notes, its claims held against what is known of the runs."""

import re
from collections.abc import Iterator

from agent.audit import claims, comparisons, rendered_sentences, word_lists
from agent.audit.claims import BASELINE, PREVIOUS, Direction, Figure
from agent.audit.finding import Judged
from agent.audit.known_figures import Facts
from agent.audit.notes_reader import Statement
from agent.audit.quantities import STEPS, mentions, unknown_keys
from agent.audit.rounding import close

LONGEST = 2000  # characters of a sentence that are read; what is longer is no sentence
ABOUT = 0.03  # by how much a value may differ that is given with `about`; of a change, five times as much
FACTOR = 0.1  # by how much a factor may
_OF_A_RUN = re.compile(r"([-+]?\d[\d.,]*\d)(?: [a-z/]+)? \(([^()]+?) of (run \d+|the baseline)\)")


class Sentence:
    """A sentence, the run in whose section it stands, and what is known."""

    def __init__(self, statement: Statement, before: Statement | None, known: Facts) -> None:
        self.text, self.run, self.intent, self.known = statement.text[:LONGEST], statement.run, statement.intent, known
        self.keys = unknown_keys(path for run in known.runs.values() for path in run.figures)
        same_paragraph = before and (before.line, before.label) == (statement.line, statement.label)
        spoken = mentions(before.text[:LONGEST], self.keys) if before and same_paragraph else []
        self.it = spoken[0] if len({each.quantity for each in spoken}) == 1 else None

    def judge(self) -> Iterator[Judged]:
        """What each claim comes to."""
        text = self.text
        for stretch, judged in list(rendered_sentences.differs(text, self.run, self.known)):
            yield judged
            text = text.replace(stretch, "")
        text = _OF_A_RUN.sub(r"\2 of \3 is \1", text)  # 0.96 (CE-loss score of run 1), as placeholders are rendered
        reading = claims.read(text, self.keys, self.it)
        if self.intent and not re.search(r"\b(?:run \d|baseline|previous)", text):
            return
        for figure in reading.figures:
            yield from self.figure(figure)
        for direction in reading.directions:
            yield from self.direction(direction)
        yield from self.more_called_better(reading.directions)
        for quantity in reading.trends:
            if not any(run.of(quantity) for run in self.known.runs.values()):
                yield "unsupported", f"no run has a value of {quantity.name}"
        if reading.success:
            yield from self.success(reading.success[0])

    def subjects(self, number: int | None) -> list[int]:
        """The runs that a claim is about: every variant, where none is named in a section about all."""
        if number is not None:
            return [self.before(self.run) if number == PREVIOUS else number]
        return [self.run] if self.run is not None else [each for each in self.known.runs if each != BASELINE]

    def before(self, run: int | None) -> int:
        return max((each for each in self.known.runs if run is None or each < run), default=BASELINE)

    def figure(self, figure: Figure) -> Iterator[Judged]:
        if figure.subject is None and self.run is None:
            return
        for subject in self.subjects(figure.subject):
            run = self.known.runs.get(subject)
            if run is None:
                yield "unsupported", f"there is no run {subject} with results"
            elif values := run.of(figure.quantity, figure.said):
                yield self.value(figure, subject, values) if figure.kind == "value" else self.change(figure, subject)
            elif not figure.quantity.designed:
                yield "unsupported", f"{self.known.name(subject)} has no value of {figure.quantity.name}"

    def value(self, figure: Figure, subject: int, values: dict[str, float]) -> Judged:
        name, quantity = self.known.name(subject), figure.quantity
        if (path := self.matching(figure, values)) is not None:
            return "supported", f"{name} has {path} {values[path]:.6g}"
        runs = {number: run for number, run in self.known.runs.items() if number != subject}
        others = [n for n, run in runs.items() if self.matching(figure, run.of(quantity, figure.said)) is not None]
        if figure.either and others:
            return "supported", f"{self.known.name(others[0])} has {quantity.name} {figure.number}"
        if subject == BASELINE:  # its figure at another run's L0
            for run in runs.values():
                title = run.compared(quantity, figure.said)
                if title and close(figure.number, run.differences[title].reference):
                    return "supported", f"the baseline at the L0 of run {run.number} has {title} {figure.number}"
        shown = ", ".join(f"{path} {value:.6g}" for path, value in list(values.items())[:3])
        whose = f"; {figure.number} is that of {self.known.name(others[0])}" if others else ""
        return "contradicted", f"{name} has {shown}{whose}"

    def matching(self, figure: Figure, values: dict[str, float]) -> str | None:
        """Where a run has a number as its value, or as per cent of it."""
        for path, value in values.items():
            for each in (value, 100 * value) if figure.percent else (value,):
                if close(figure.digits, each) or (self.about(figure) and _near(figure, each, ABOUT)):
                    return path
        return None

    def about(self, figure: Figure) -> bool:
        return bool(re.search(rf"{word_lists.LOOSELY}\s*{re.escape(figure.digits)}", self.text))

    def change(self, figure: Figure, subject: int) -> Judged:
        """A difference, a percentage or a factor: against what is named, or the baseline, or the run before."""
        named = figure.reference
        references = [BASELINE, self.before(subject)] if named in (None, PREVIOUS) else [named]
        seen = []
        for reference in dict.fromkeys(each for each in references if each in self.known.runs and each != subject):
            for path, a, b in comparisons.sides(self.known, figure.quantity, figure.said, subject, reference):
                changes = _changes(figure, a, b)
                shown = comparisons.beside(self.known, path, subject, a, reference, b)
                units = 0.75 if figure.percent else 1.5  # both sides of a difference may have been rounded
                loosely = FACTOR if figure.kind == "factor" else 5 * ABOUT if self.about(figure) else 0.0
                if any(close(figure.digits, each, units) or _near(figure, each, loosely) for each in changes):
                    return "supported", shown
                seen.append(f"{shown} ({changes[0]:+.4g}{'%' * figure.percent})" if changes else shown)
        if not seen:
            return "unsupported", f"there is nothing to hold the change of {figure.quantity.name} against"
        return "contradicted", "; ".join(seen[:2])

    def direction(self, claim: Direction) -> Iterator[Judged]:
        if claim.trend and not claim.extreme and claim.way != "same" and not claim.negated:
            yield from comparisons.trend(self.known, claim, self.run, self.text)
            return
        judged = [each for subject in self.subjects(claim.subject) if (each := self.directed(claim, subject))]
        if self.run is None and claim.subject is None and len(judged) > 1:
            yield self.of_all(judged)
        else:
            yield from judged

    def directed(self, claim: Direction, subject: int) -> Judged | None:
        """What a direction comes to of one run."""
        if subject in self.known.runs and claim.extreme:
            return comparisons.superlative(self.known, claim, subject)
        reference = BASELINE if claim.reference is None and BASELINE in self.known.runs else claim.reference
        reference = self.before(subject) if reference in (None, PREVIOUS) else reference
        if absent := [each for each in (subject, reference) if each not in self.known.runs]:
            return "unsupported", f"there are no results of {self.known.name(absent[0])}"
        if subject == reference:
            return None
        return comparisons.compared(self.known, claim, subject, reference, self.text)

    def of_all(self, judged: list[Judged]) -> Judged:
        """What is said of the variants without naming one."""
        verdicts = {verdict for verdict, _ in judged}
        if len(verdicts) == 1:
            return judged[0][0], "; ".join(evidence for _, evidence in judged[:3])
        every = word_lists.EVERY.search(self.text)
        if "supported" in verdicts and not every and word_lists.SOME.search(self.text):
            return next(each for each in judged if each[0] == "supported")
        otherwise = "; ".join(evidence for verdict, evidence in judged if verdict != "supported")
        return ("contradicted" if every and "contradicted" in verdicts else "unsupported"), otherwise

    def more_called_better(self, directions: list[Direction]) -> Iterator[Judged]:
        """A higher L0 or L1 taken for a merit: it means more active latents, so less sparsity."""
        if not word_lists.PRAISE.search(self.text) or word_lists.COST.search(self.text):
            return
        named = {each.quantity.name for each in directions if each.quantity}
        for claim in directions:
            if claim.quantity and claim.quantity.name in ("L0", "L1") and claim.way in ("up", "highest"):
                misnamed = "sparsity" in claim.said.lower()
                if not claim.negated and (misnamed or named <= {"L0", "L1", "sparsity"}):
                    yield "contradicted", f"a higher {claim.quantity.name} is less sparsity, and by itself no merit"

    def success(self, word: str) -> Iterator[Judged]:
        """That a run worked, in words that nothing measures: at least it must have been trained."""
        if self.run is None or self.run == BASELINE:
            return
        run, name = self.known.runs.get(self.run), self.known.name(self.run)
        if run is None or not run.figures:
            yield "unsupported", f"{name} has no results"
        elif why := run.untrained:
            yield "contradicted", f"nothing was trained in {name}: {why}"
        elif not run.counts:
            yield "contradicted", f"{name} does not count: {run.verdict}"
        elif word_lists.RAN.fullmatch(word) or BASELINE not in self.known.runs:
            steps = next(iter(run.of(STEPS).items()), None)
            yield "supported", f"{name} has {steps[0]} {steps[1]:g}" if steps else f"{name} has results"
        elif self.known.identical(self.run, BASELINE):
            yield "contradicted", f"{name} and the baseline have the same figures throughout"
        else:
            judged = comparisons.overall(self.known, "better", self.run, BASELINE)
            yield from [judged] if judged[0] == "contradicted" else []


def _changes(figure: Figure, a: float, b: float) -> list[float]:
    """How much a figure changed from b to a, in the ways that the number may be meant."""
    if figure.kind == "factor":
        return [a / b, b / a] if a and b else []
    sizes = [100 * (a - b) / abs(b) if b else 0.0, 100 * (a - b)] if figure.percent else [a - b]
    return [*sizes, *(-each for each in sizes)]


def _near(figure: Figure, value: float, share: float) -> bool:
    return abs(figure.value - value) <= share * abs(value)
