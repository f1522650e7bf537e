"""`agent audit`: every claim of a notes.txt, held against figures by rules.

supported: the figures say so. contradicted: they say otherwise. unsupported: there is no figure that could, or the runs
do not compare. What may happen, and what was done rather than measured, is no claim.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent import claimed, facts, noted, rendered, wording
from agent.claimed import BASELINE, PREVIOUS, Direction, Figure
from agent.facts import Facts
from agent.figures import close
from agent.lab.errors import UserError
from agent.noted import NotedRun, Notes, Statement
from agent.vocabulary import QUANTITIES, Quantity, mentions, unknown_keys

Verdict = Literal["supported", "contradicted", "unsupported"]
SIMILAR = 0.02  # what is called similar may differ by this share
SAME = 0.001  # what is called identical or unchanged
ABOUT = 0.03  # what is said with `about`
INVARIANT = re.compile(
    r"ce_loss_without_sae|ce_loss_with_(?:mean_)?ablation|kl_div_with_ablation|l2_norm_in|llm_\w*accuracy"
)
FIXED = re.compile(
    r"(?:model(?:_name)?|hook(?:_name|_point)?|(?:hook_)?layer|d_in|d_model|activation_dim|dataset(?:_name)?)"
)
WIDTH = re.compile(r"(?:d_sae|dict_size|n_features|width)")


@dataclass(frozen=True)
class Finding:
    """A claim and what it comes to."""

    line: int
    run: int | None
    quote: str
    verdict: Verdict
    evidence: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", run {self.run}" if self.run is not None else "")
        return f'{self.verdict}: {where}: "{self.quote}": {self.evidence}'


def audit(path: Path, directory: Path | None = None) -> bool:
    """Print a line for each claim; whether all are supported. Raises UserError where there is nothing to audit."""
    found = findings(read(path), facts.from_directory(directory) if directory else None)
    for finding in found:
        print(finding)
    count = Counter(finding.verdict for finding in found)
    print(
        f"{len(found)} claims: "
        + ", ".join(f"{count[name]} {name}" for name in ("supported", "contradicted", "unsupported"))
    )
    return count["supported"] == len(found)


def read(path: Path) -> Notes:
    """Raises UserError."""
    try:
        return noted.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, noted.NotNotes) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is no notes.txt: {why}") from None


def findings(notes: Notes, measured: Facts | None = None) -> list[Finding]:
    """Every claim of notes, in their order. `measured`: figures from run directories, which then decide."""
    known = measured or facts.from_notes(notes)
    rendered.learn(notes, known)
    found = [*_structure(notes), *_pasted(notes, known), *(_against(notes, measured) if measured else ())]
    for before, statement in zip([None, *notes.statements], notes.statements, strict=False):
        found += _judge(statement, before, known)
    return sorted(found, key=lambda finding: finding.line)


def _judge(statement: Statement, before: Statement | None, known: Facts) -> Iterator[Finding]:
    where = (statement.line, statement.run, statement.text)
    said = rendered.check(statement, known)
    if said is not None:
        if said:
            yield Finding(*where, *said)  # pyright: ignore[reportArgumentType]
        return
    judged = list(Sentence(statement, before, known).judge())
    if judged:
        worst = max((verdict for verdict, _ in judged), key=("supported", "unsupported", "contradicted").index)
        evidence = dict.fromkeys(evidence for verdict, evidence in judged if verdict == worst and evidence)
        yield Finding(*where, worst, "; ".join(evidence))


Judged = tuple[Verdict, str]


class Sentence:
    """A sentence with the run it stands in, and what is known."""

    def __init__(self, statement: Statement, before: Statement | None, known: Facts) -> None:
        self.statement, self.known, self.run = statement, known, statement.run
        self.text = statement.text
        self.keys = unknown_keys(path for run in known.runs.values() for path in run.figures)
        same = before and (before.line, before.label) == (statement.line, statement.label)
        spoken = mentions(before.text, self.keys) if before and same else []
        self.spoken = spoken[0] if len({each.quantity for each in spoken}) == 1 else None

    def judge(self) -> Iterator[Judged]:
        text = self.text
        for stretch, (verdict, evidence) in list(rendered.differs(text, self.run, self.known)):
            yield verdict, evidence  # pyright: ignore
            text = text.replace(stretch, "")
        # "0.96 (CE-loss score of run 1)", as placeholders are rendered
        text = re.sub(
            r"([-+]?\d[\d.,]*\d)(?: [a-z/]+)? \(([^()]+?) of (run \d+|the baseline)\)", r"\2 of \3 is \1", text
        )
        reading = claimed.read(text, self.keys, self.spoken)
        if self.statement.intent and not re.search(r"\b(?:run \d|baseline|previous)", text):
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

    # Which runs are spoken of

    def subjects(self, number: int | None) -> list[int]:
        if number is not None:
            return [self.before(self.run) if number == PREVIOUS else number]
        return [self.run] if self.run is not None else [each for each in self.known.runs if each != BASELINE]

    def before(self, run: int | None) -> int:
        return max((each for each in self.known.runs if run is None or each < run), default=BASELINE)

    # Numbers

    def figure(self, figure: Figure) -> Iterator[Judged]:
        if figure.subject is None and self.run is None:
            return
        for subject in self.subjects(figure.subject):
            run = self.known.runs.get(subject)
            if run is None:
                yield "unsupported", f"there is no run {subject} with results"
                continue
            values = run.of(figure.quantity, figure.said)
            if not values and figure.quantity.designed:
                continue
            if not values:
                yield "unsupported", f"{self.known.name(subject)} has no value of {figure.quantity.name}"
                continue
            yield self.value(figure, subject, values) if figure.kind == "value" else self.change(figure, subject)

    def value(self, figure: Figure, subject: int, values: dict[str, float]) -> Judged:
        name, quantity = self.known.name(subject), figure.quantity
        if (path := self.matching(figure, values)) is not None:
            return "supported", f"{name} has {path} {values[path]:.6g}"
        others = [
            other
            for other in self.known.runs
            if other != subject and self.matching(figure, self.known.runs[other].of(quantity, figure.said)) is not None
        ]
        if figure.either and others:
            return "supported", f"{self.known.name(others[0])} has {quantity.name} {figure.number}"
        differences = [
            each for title, each in self.known.runs[subject].differences.items() if quantity.said.fullmatch(title)
        ]
        if any(close(figure.number, each.reference) for each in differences):
            return (
                "supported" if subject == BASELINE else "contradicted"
            ), f"{figure.number} is the baseline's {quantity.name}"
        if subject == BASELINE and any(
            close(figure.number, each.reference)
            for run in self.known.runs.values()
            for title, each in run.differences.items()
            if quantity.said.fullmatch(title)
        ):
            return "supported", f"the baseline at a run's L0 has {quantity.name} {figure.number}"
        shown = ", ".join(f"{path} {value:.6g}" for path, value in list(values.items())[:3])
        whose = f"; {figure.number} is that of {self.known.name(others[0])}" if others else ""
        return "contradicted", f"{name} has {shown}{whose}"

    def matching(self, figure: Figure, values: dict[str, float]) -> str | None:
        about = re.search(
            rf"(?:about|around|roughly|approximately|nearly|almost|~|≈|≈ )\s*{re.escape(figure.number)}", self.text
        )
        number = figure.number.rstrip("%x× ").removesuffix("percent").removesuffix("fold").strip()
        for path, value in values.items():
            for each in (value, 100 * value) if "%" in figure.number or "percent" in figure.number else (value,):
                if close(number, each) or (about and abs(_float(number) - each) <= ABOUT * abs(each)):
                    return path
        return None

    def change(self, figure: Figure, subject: int) -> Judged:
        """A difference, a percentage or a factor, against what is named, or the baseline, or the run before."""
        named = figure.reference
        references = [named] if named not in (None, PREVIOUS) else [BASELINE, self.before(subject)]
        number = _float(figure.number)
        seen = []
        for reference in dict.fromkeys(each for each in references if each in self.known.runs and each != subject):
            for path, a, b in self.sides(figure.quantity, figure.said, subject, reference):
                if figure.kind == "factor":
                    ratios = [a / b, b / a] if a and b else []
                    if any(abs(ratio / number - 1) < 0.1 for ratio in ratios if number):
                        return "supported", self.beside(path, subject, a, reference, b)
                    seen.append(self.beside(path, subject, a, reference, b))
                    continue
                if figure.kind == "percent":
                    changes = [100 * (a - b) / abs(b) if b else 0.0, 100 * (a - b)]
                else:
                    changes = [a - b]
                digits = figure.number.rstrip("%").removesuffix("percent").strip().lstrip("+-−")
                if any(close(digits, abs(change), 0.75 if figure.kind == "percent" else 1.5) for change in changes):
                    return "supported", self.beside(path, subject, a, reference, b)
                about = re.search(
                    rf"(?:about|around|roughly|approximately|nearly|almost|over|~|≈)\s*{re.escape(figure.number)}",
                    self.text,
                )
                if about and any(abs(abs(change) - abs(number)) <= 0.15 * abs(number) for change in changes):
                    return "supported", self.beside(path, subject, a, reference, b)
                seen.append(
                    self.beside(path, subject, a, reference, b)
                    + f" ({changes[0]:+.4g}{'%' * (figure.kind == 'percent')})"
                )
        if not seen:
            return "unsupported", f"there is nothing to hold the change of {figure.quantity.name} against"
        return "contradicted", "; ".join(seen[:2])

    # Directions

    def direction(self, claim: Direction) -> Iterator[Judged]:
        if claim.trend and not claim.extreme and claim.way != "same" and not claim.negated:
            yield from self.trend(claim)
            return
        subjects = self.subjects(claim.subject)
        judged = []
        for subject in subjects:
            reference = (
                self.before(subject)
                if claim.reference == PREVIOUS
                else BASELINE
                if claim.reference is None
                else claim.reference
            )
            if subject == reference and not claim.extreme:
                continue
            if subject not in self.known.runs or reference not in self.known.runs:
                absent = subject if subject not in self.known.runs else reference
                judged.append(
                    ("unsupported", f"there is no {'run ' * (absent > 0)}{absent or 'baseline'} with results")
                )
            elif claim.extreme:
                judged.append(self.superlative(claim, subject))
            else:
                judged.append(self.compared(claim, subject, reference))
        judged = [each for each in judged if each]
        if self.run is None and claim.subject is None and len(judged) > 1:
            yield self.of_all(judged)
        else:
            yield from judged

    def of_all(self, judged: list[Judged]) -> Judged:
        """What is said of the variants without a name."""
        verdicts = {verdict for verdict, _ in judged}
        if len(verdicts) == 1:
            return judged[0][0], "; ".join(evidence for _, evidence in judged[:3])
        some, every = wording.SOME.search(self.text), wording.EVERY.search(self.text)
        against = "; ".join(evidence for verdict, evidence in judged if verdict != "supported")
        if some and "supported" in verdicts:
            return "supported", next(evidence for verdict, evidence in judged if verdict == "supported")
        return ("contradicted" if every and "contradicted" in verdicts else "unsupported"), against

    def compared(self, claim: Direction, subject: int, reference: int) -> Judged | None:
        a, b = self.known.name(subject), self.known.name(reference)
        if claim.negated:
            verdict = self.plain(claim, subject, reference)
            return None if verdict is None or verdict[0] == "unsupported" else (_NOT[verdict[0]], verdict[1])
        if claim.way != "same" and (why := self.known.runs[subject].untrained):
            return "contradicted", f"nothing was trained in {a}: {why}"
        if claim.way != "same" and self.known.identical(subject, reference):
            return "contradicted", f"{a} and {b} have the same figures throughout"
        found = self.plain(claim, subject, reference)
        if found is None or found[0] == "contradicted":
            return found
        if (claim.quantity is None or claim.quantity.follows_l0) and (why := self.known.l0_apart(subject, reference)):
            if claim.way in ("up", "down", "same") and self.owns_up():
                return found
            if not wording.DISCLAIMED.search(self.text):
                return "unsupported", why
        return found

    def owns_up(self) -> bool:
        """Whether the sentence says that L0 differs."""
        return any(mention.quantity.name in ("L0", "sparsity") for mention in mentions(self.text))

    def plain(self, claim: Direction, subject: int, reference: int) -> Judged | None:
        """What the figures say, whether or not the runs compare."""
        if claim.quantity is None:
            return self.overall(claim, subject, reference)
        sides = self.sides(claim.quantity, claim.said, subject, reference)
        if not sides:
            if claim.quantity.designed or (claim.quantity.better == "none" and claim.quantity not in QUANTITIES):
                return None
            return "unsupported", self.lacking(claim.quantity, subject, reference)
        shown = "; ".join(self.beside(path, subject, a, reference, b) for path, a, b in sides[:3])
        noisy = self.within_noise(claim, subject, reference)
        if claim.way == "same":
            share = SAME if re.search(r"\b(?:identical|exactly)\b", claim.word, re.IGNORECASE) else SIMILAR
            share = (
                SAME if re.search(r"unchanged|no (?:\w+ )?change|did not change", claim.word, re.IGNORECASE) else share
            )
            held = [noisy or abs(a - b) <= share * max(abs(a), abs(b)) for _, a, b in sides]
        elif noisy:
            return "unsupported", f"{shown}: within the noise"
        else:
            held = [_went(claim, a, b) for _, a, b in sides]
        if None in held:
            return "unsupported", f"{shown}, and no direction of {claim.quantity.name} is better by itself"
        if len(set(held)) > 1:
            return "unsupported", f"{shown}: some one way, some the other"
        if held[0]:
            return "supported", shown
        return "contradicted", shown

    def lacking(self, quantity: Quantity, subject: int, reference: int) -> str:
        if not any(run.of(quantity) for run in self.known.runs.values()):
            return f"no run has a value of {quantity.name}"
        absent = subject if not self.known.runs[subject].of(quantity) else reference
        return f"{self.known.name(absent)} has no value of {quantity.name}"

    def within_noise(self, claim: Direction, subject: int, reference: int) -> bool:
        if reference != BASELINE or claim.quantity is None:
            return False
        known = self.known.runs[subject].differences
        found = [each for title, each in known.items() if claim.quantity.said.fullmatch(title)]
        return bool(found) and found[0].within_noise

    def overall(self, claim: Direction, subject: int, reference: int) -> Judged:
        """Better or worse, of no quantity in particular: of every figure that has a better way."""
        won, lost = [], []
        for quantity in _DECIDE:
            for path, a, b in self.sides(quantity, "", subject, reference):
                if a != b:
                    (won if (a > b) == (quantity.better == "higher") else lost).append(
                        self.beside(path, subject, a, reference, b)
                    )
                break
        if claim.way == "worse":
            won, lost = lost, won
        if won and not lost:
            return "supported", "; ".join(won[:3])
        if lost and not won:
            return "contradicted", "; ".join(lost[:3])
        if not won:
            return "unsupported", f"no figure of {self.known.name(subject)} and {self.known.name(reference)} says so"
        return "unsupported", f"{len(won)} figures say so, {len(lost)} say otherwise: {lost[0]}"

    def superlative(self, claim: Direction, subject: int) -> Judged | None:
        if claim.negated or (claim.quantity is None and claim.way != "best"):
            return None
        if claim.quantity is None:
            return self.best_of_all(claim, subject)
        values = {
            number: next(iter(run.of(claim.quantity, claim.said).values()), None)
            for number, run in self.known.runs.items()
        }
        measured = {number: value for number, value in values.items() if value is not None}
        if subject not in measured:
            return "unsupported", f"{self.known.name(subject)} has no value of {claim.quantity.name}"
        high = claim.way == "highest" or (
            claim.way in ("best", "worst") and (claim.quantity.better == "higher") == (claim.way == "best")
        )
        if claim.quantity.inverse:
            high = not high
        if claim.way in ("best", "worst") and claim.quantity.better == "none":
            return "unsupported", f"no direction of {claim.quantity.name} is better by itself"
        so_far = {number: value for number, value in measured.items() if number <= subject}
        shown = ", ".join(f"{self.known.name(number)} {value:.6g}" for number, value in measured.items())
        pick = max if high else min
        if any(each[subject] == pick(each.values()) for each in (measured, so_far) if len(each) > 1):
            if (
                claim.way == "best"
                and claim.quantity.follows_l0
                and subject != BASELINE
                and (why := self.known.l0_apart(subject, BASELINE))
            ):
                return "unsupported", why
            return "supported", f"{claim.quantity.name}: {shown}"
        return "contradicted", f"{claim.quantity.name}: {shown}"

    def best_of_all(self, claim: Direction, subject: int) -> Judged | None:
        """The best run, of no quantity in particular: wrong where it is the best in none."""
        others = [number for number in self.known.runs if number not in (subject, BASELINE)]
        judged = [self.overall(claim, subject, other) for other in others if subject in self.known.runs]
        return next((each for each in judged if each[0] == "contradicted"), None)

    def trend(self, claim: Direction) -> Iterator[Judged]:
        """Over the runs in their order; over a training, nothing is known but its end."""
        name = claim.quantity.name if claim.quantity else "anything"
        measured = [
            (number, value)
            for number, run in sorted(self.known.runs.items())
            if claim.quantity and (value := next(iter(run.of(claim.quantity, claim.said).values()), None)) is not None
        ]
        if claim.quantity is None:
            yield from self.overall_trend(claim)
        elif not measured:
            yield "unsupported", f"no run has a value of {name}"
        elif wording.WITHIN_TRAINING.search(self.text):
            yield "unsupported", f"of {name} each run's final value is known, and no history"
        elif self.run is not None and claim.reference == PREVIOUS:
            judged = self.compared(claim, self.run, self.before(self.run))
            yield from [judged] if judged else []
        else:
            upto = [each for each in measured if self.run is None or each[0] <= self.run]
            shown = f"{name}: " + ", ".join(f"{self.known.name(number)} {value:.6g}" for number, value in upto)
            steps = [_went(claim, b, a) for (_, a), (_, b) in zip(upto, upto[1:], strict=False)]
            variants = [_went(claim, b, a) for (n, a), (_, b) in zip(upto, upto[1:], strict=False) if n != BASELINE]
            ways = [bool(steps) and all(steps), len(variants) > 1 and all(variants)]
            if re.search(r"consistent", self.text, re.IGNORECASE) and upto and upto[0][0] == BASELINE:
                ways.append(len(upto) > 1 and all(_went(claim, value, upto[0][1]) for _, value in upto[1:]))
            yield ("supported" if any(ways) else "contradicted" if len(upto) > 1 else "unsupported"), shown

    def overall_trend(self, claim: Direction) -> Iterator[Judged]:
        numbers = sorted(self.known.runs)
        pairs = list(zip(numbers, numbers[1:], strict=False))
        if re.search(r"consistent", self.text, re.IGNORECASE):
            pairs = [(BASELINE, number) for number in numbers if number != BASELINE]
        judged = [self.overall(claim, b, a) for a, b in pairs if a in self.known.runs]
        wrong = [each for each in judged if each[0] != "supported"]
        yield wrong[0] if wrong else ("supported", judged[0][1]) if judged else ("unsupported", "there are no two runs")

    def more_called_better(self, directions: list[Direction]) -> Iterator[Judged]:
        """A higher L0 or L1 taken for a merit: it means more active latents, so less sparsity."""
        praised = wording.PRAISE.search(self.text) and not wording.COST.search(self.text)
        elsewhere = any(each.quantity and each.quantity.name not in ("L0", "L1", "sparsity") for each in directions)
        for claim in directions:
            if (
                claim.quantity
                and claim.quantity.name in ("L0", "L1")
                and claim.way in ("up", "highest")
                and not claim.negated
            ):
                misnamed = "sparsity" in claim.said.lower()
                if praised and (misnamed or not elsewhere):
                    yield "contradicted", f"a higher {claim.quantity.name} is less sparsity, and by itself no merit"

    # Success

    def success(self, word: str) -> Iterator[Judged]:
        if self.run is None or self.run == BASELINE:
            return
        run = self.known.runs.get(self.run)
        name = self.known.name(self.run)
        if run is None or not run.figures:
            yield "unsupported", f"{name} has no results"
        elif why := run.untrained:
            yield "contradicted", f"nothing was trained in {name}: {why}"
        elif not run.counts:
            yield "contradicted", f"{name} does not count: {run.verdict}"
        elif not wording.RAN.fullmatch(word) and BASELINE in self.known.runs:
            if self.known.identical(self.run, BASELINE):
                yield "contradicted", f"{name} and the baseline have the same figures throughout"
            else:
                verdict, evidence = self.overall(Direction(None, "", "better", word), self.run, BASELINE)
                if verdict == "contradicted":
                    yield verdict, evidence
        else:
            steps = next(iter(run.of(_STEPS).items()), None)
            yield "supported", f"{name} has {steps[0]} {steps[1]:g}" if steps else f"{name} has results"

    def sides(self, quantity: Quantity, said: str, subject: int, reference: int) -> list[tuple[str, float, float]]:
        """The figures of both runs; at the same L0 where notes have a comparison with the baseline."""
        one, two = self.known.runs[subject], self.known.runs[reference]
        if reference == BASELINE:
            for title, each in one.differences.items():
                if quantity.said.fullmatch(title) and (
                    not said or title.lower() == said.lower() or not re.search(r"\d", said)
                ):
                    return [(title, each.value, each.reference)]
        mine, theirs = one.of(quantity, said), two.of(quantity, said)
        common = [path for path in mine if path in theirs]
        if common:
            return [(path, mine[path], theirs[path]) for path in common]
        return [(path, mine[path], next(iter(theirs.values()))) for path in list(mine)[:1]] if theirs else []

    def beside(self, path: str, subject: int, a: float, reference: int, b: float) -> str:
        return f"{path} is {a:.6g} in {self.known.name(subject)}, {b:.6g} in {self.known.name(reference)}"


_STEPS = next(quantity for quantity in QUANTITIES if quantity.name == "steps")
_DECIDE = [
    quantity
    for quantity in QUANTITIES
    if quantity.better != "none"
    and not quantity.designed
    and quantity.name not in ("L0", "L1", "sparsity", "reconstruction")
]
_NOT: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}


def _float(text: str) -> float:
    return float(re.sub(r"[^\d.eE+-]", "", text.replace("−", "-").replace("x", "").rstrip("%")) or "nan")


def _went(claim: Direction, a: float, b: float) -> bool | None:
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


def _structure(notes: Notes) -> Iterator[Finding]:
    """A run described twice, a run that is missing, two runs with the same results."""
    seen: dict[int, NotedRun] = {}
    for run in notes.runs:
        quote = f"Run {run.number}: {run.title}" if run.title else f"Run {run.number}"
        if (first := seen.get(run.number)) is not None:
            yield Finding(
                run.line,
                run.number,
                quote,
                "contradicted",
                f"run {run.number} is described before, in line {first.line}",
            )
        else:
            for other in seen.values():
                if _same_results(run, other) and not _says_same(notes, run):
                    evidence = (
                        f"its results are those of run {other.number} in every figure (line {other.results_line})"
                    )
                    yield Finding(run.results_line, run.number, _short(run.results), "unsupported", evidence)
                    break
        seen.setdefault(run.number, run)
        if run.results and not run.found and "{" in run.results:
            yield Finding(
                run.results_line, run.number, _short(run.results), "unsupported", "the results cannot be read"
            )
    numbers = sorted(seen)
    for number in range(min(numbers, default=0), max(numbers, default=0)):
        if number not in seen:
            after = next(seen[each] for each in numbers if each > number)
            quote = f"Run {after.number}: {after.title}"
            yield Finding(
                after.line, after.number, quote, "unsupported", f"run {number} is missing: it is not described"
            )


def _same_results(a: NotedRun, b: NotedRun) -> bool:
    measured = [value for value in a.figures.values() if value not in (0.0, 1.0, -1.0)]
    return a.figures == b.figures and len(measured) >= 3


def _says_same(notes: Notes, run: NotedRun) -> bool:
    own = " ".join(statement.text for statement in notes.statements if statement.run == run.number)
    return bool(
        re.search(
            r"\b(?:identical|same (?:results|figures|scores)|no effect|unchanged|repeat\w*|rerun|reproduc\w+|did not change)\b",
            own,
            re.I,
        )
    )


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _pasted(notes: Notes, known: Facts) -> Iterator[Finding]:
    """A run whose results are of another model, place or text than the others'.

    What does not depend on the SAE (the model's own loss, its loss under ablation) must be equal in all runs, and so
    must the settings that results state. Where most runs differ from run 0, it is run 0 that was pasted.
    """
    noted_runs = {run.number: run for run in reversed(notes.runs) if run.found}
    if len(noted_runs) < 2:
        return
    odd: dict[int, list[str]] = {}
    for what in sorted({each for run in noted_runs.values() for each in _fixed(run, notes)}):
        values = {number: _fixed(run, notes)[what] for number, run in noted_runs.items() if what in _fixed(run, notes)}
        if len(values) < 2:
            continue
        groups: list[list[int]] = []
        for number in sorted(values):
            for group in groups:
                if _alike(values[group[0]], values[number]):
                    group.append(number)
                    break
            else:
                groups.append([number])
        most = max(groups, key=lambda group: (len(group), BASELINE not in group))
        for group in groups:
            for number in group if group is not most else ():
                others = f"{known.name(most[0])} has {_shown(values[most[0]])}"
                odd.setdefault(number, []).append(f"{what} is {_shown(values[number])}, {others}")
    for number, why in odd.items():
        run = noted_runs[number]
        evidence = f"these are results of another experiment: {'; '.join(why[:3])}"
        yield Finding(run.results_line, number, _short(run.results), "contradicted", evidence)
    baseline = noted_runs.get(BASELINE)
    variants = [run for number, run in noted_runs.items() if number != BASELINE]
    if (
        baseline
        and BASELINE not in odd
        and baseline.figures
        and not any(_leaves(baseline) & _leaves(run) for run in variants)
    ):
        yield Finding(
            baseline.results_line,
            BASELINE,
            _short(baseline.results),
            "unsupported",
            "no other run has any of these figures",
        )
    if baseline and (said := re.findall(r"\blayer (\d+)\b", notes.description)) and len(set(said)) == 1:
        for run in noted_runs.values():
            layer = next(
                (value for path, value in run.figures.items() if path.rsplit("/", 1)[-1] in ("layer", "hook_layer")),
                None,
            )
            if layer is not None and layer != float(said[0]) and run.number not in odd:
                evidence = f"the results are of layer {layer:g}, the experiment is on layer {said[0]}"
                yield Finding(run.results_line, run.number, _short(run.results), "contradicted", evidence)


def _leaves(run: NotedRun) -> set[str]:
    return {path.rsplit("/", 1)[-1].lower() for path in run.figures}


def _fixed(run: NotedRun, notes: Notes) -> dict[str, float | str]:
    own = run.title + " ".join(statement.text for statement in notes.statements if statement.run == run.number)
    of_width = re.search(
        r"\b(?:width|wide\w*|dict\w*|latents|features|size|expansion|narrow\w*|d_sae)\b", own, re.IGNORECASE
    )
    return {
        path: value
        for path, value in (*run.figures.items(), *run.settings.items())
        if INVARIANT.fullmatch(leaf := path.rsplit("/", 1)[-1].lower())
        or FIXED.fullmatch(leaf)
        or (WIDTH.fullmatch(leaf) and not of_width)
    }


def _alike(a: float | str, b: float | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(a - b) <= 0.01 * max(abs(a), abs(b))


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _against(notes: Notes, measured: Facts) -> Iterator[Finding]:
    """The notes' own figures beside those of the run directories."""
    for run in {run.number: run for run in reversed(notes.runs)}.values():
        known = measured.runs.get(run.number)
        quote = _short(run.results or f"Run {run.number}: {run.title}")
        line = run.results_line or run.line
        if known is None:
            yield Finding(line, run.number, quote, "unsupported", f"there is no run_{run.number}/final_info.json")
        elif run.found and not known.counts:
            yield Finding(line, run.number, quote, "contradicted", f"run {run.number} does not count: {known.verdict}")
        elif run.found:
            wrong = [each for path, value in run.figures.items() if (each := _differs(path, value, run.results, known))]
            verdict: Verdict = "contradicted" if wrong else "supported"
            yield Finding(
                line, run.number, quote, verdict, "; ".join(wrong) or f"as in run_{run.number}/final_info.json"
            )
    described = {run.number for run in notes.runs}
    for number in sorted(measured.runs.keys() - described):
        last = notes.runs[-1] if notes.runs else None
        yield Finding(
            last.line if last else 1, number, notes.title, "unsupported", f"run {number} is missing: it has results"
        )


def _differs(path: str, value: float, results: str, known: facts.Run) -> str:
    """How a figure of the notes differs from what was measured; empty where it does not."""
    name = path.rsplit("/", 1)[-1]
    found = known.figures.get(path)
    if found is None and known.info and name in facts.METRICS:
        found = known.info.metric(name)
    if found is None:
        found = next((each for other, each in known.figures.items() if other.rsplit("/", 1)[-1] == name), None)
    if found is None:
        return f"{path} is not among the results"
    text = f"{value:.10g}"
    return "" if close(text, found) else f"{path} is {found:.6g}"
