"""What the page shows of one run: its outcome, every figure, its change, its attempts and its conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from agent.comparison.judgement import Judgement
from agent.display.formatting import format_difference, format_value
from agent.ideas import Direction
from agent.lab.defaults import is_world
from agent.lab.evaluation.catalogue import measurable
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import FinalInfo, MetricComparison
from agent.lab.visible import visible
from agent.report import model_words, sentences
from agent.report.outcome import outcome_sentence
from agent.report.page.conversation import Request
from agent.report.page.curves import Line, curves
from agent.report.page.diff import Diff, diff
from agent.report.page.opened import Opened, log_tail
from agent.report.run_section import prediction_result, run_texts
from agent.study.records import Proposal
from agent.study.run_state import FailedAttempt
from agent.study.runs import Run

MOST_HIGHLIGHTED = 40  # runs of a study whose changes are highlighted
LOG_BYTES = 12_000  # of each log, from its end
LOGS = ("stderr.log", "stdout.log")


@dataclass(frozen=True)
class MetricRow:
    """A metric of a run beside the baseline's at the same L0, as text; empty where there is nothing to compare."""

    title: str
    unit: str
    value: str
    reference: str = ""
    difference: str = ""
    interval: str = ""
    predicted: str = ""
    prediction: str = ""  # its outcome
    headline: bool = True


@dataclass(frozen=True)
class MeasureRow:
    """An own measure of the idea beside its control and the baseline's."""

    name: str
    title: str
    value: str
    control: str
    baseline: str
    main: bool


@dataclass(frozen=True)
class Attempt:
    """A try at a run that did not give a result."""

    number: int
    title: str
    mended: str  # what it was to mend of the one before, in a model's words
    verdict: str
    evidence: str
    diff: Diff
    logs: Sequence[tuple[str, str]]  # name, last lines


@dataclass(frozen=True)
class RunSection:
    """One run, ready to be rendered."""

    number: int
    anchor: str
    title: str
    outcome: str  # in a word
    sentence: str
    shown: bool  # False: its results are not those that were recorded
    start: int  # the run whose experiment.py was changed
    by_hand: bool
    description: str
    why: str
    described: str
    marks: Sequence[str]  # what the results contradict in it
    by_model: bool  # a language model wrote these texts
    metrics: Sequence[MetricRow]
    measures: Sequence[MeasureRow]
    settings: Sequence[tuple[str, str, str]]  # constant, the baseline's value, the run's
    diff: Diff
    curves: Markup
    attempts: Sequence[Attempt]
    requests: Sequence[Request]
    errors: Sequence[str]
    warnings: Sequence[str]
    cost: str


def run_section(opened: Opened, run: Run, prefix: str, requests: Sequence[Request]) -> RunSection:
    """Describe a run; ids and anchors begin with `prefix`."""
    proposal, judged = run.state.proposal, opened.judged.get(run.number)
    info = run.info if run.counts else None
    done_without = run.state.stage == "done" and run.info is None
    texts = run_texts(run, opened.state, opened.runs, opened.judged)
    return RunSection(
        number=run.number,
        anchor=f"{prefix}run-{run.number}",
        title=texts["title"],
        outcome=outcome_word(run, judged),
        sentence=_sentence(opened, run, judged),
        shown=not done_without,
        start=proposal.start,
        by_hand=run.state.by_hand,
        description=texts["description"],
        why=texts["why"],
        described=texts["described"],
        marks=model_words.marks(texts["described"], run.number, opened.facts, opened.check),
        by_model=bool(opened.state.started.language_model) and run.number > 0 and not run.state.by_hand,
        metrics=_metric_rows(opened, run, info, judged) if info else (),
        measures=_measure_rows(opened, info) if info else (),
        settings=_changed_settings(opened.runs, info),
        diff=_change(opened, run, proposal),
        curves=curves(_lines(opened, run), f"{prefix}run-{run.number}-curves"),
        attempts=_attempts(opened, run),
        requests=requests,
        errors=_errors(run),
        warnings=run.info.verdict.warnings if run.info else (),
        cost=_cost(run),
    )


def _change(opened: Opened, run: Run, proposal: Proposal) -> Diff:
    """Return what a proposal changes in the experiment it starts from; run 0 changes nothing."""
    if run.number == 0:
        return Diff(Markup())
    start = opened.runs[proposal.start].state.proposal.source
    return diff(start, proposal.source, highlighted=len(opened.runs) <= MOST_HIGHLIGHTED)


def outcome_word(run: Run, judged: Judgement | None) -> str:
    """Return the outcome of a run in a word or two, its verdict if it does not count, or its stage."""
    if run.info is None:
        return "not shown" if run.state.stage == "done" else run.state.stage
    if not run.counts:
        return run.info.verdict.name
    return "baseline" if run.number == 0 else judged.outcome if judged else "not compared yet"


def _sentence(opened: Opened, run: Run, judged: Judgement | None) -> str:
    if run.info is None:
        if run.state.stage == "done":
            return "Its results are not what was recorded, or are gone: no figure of it is shown."
        return f"Not finished: {run.state.stage}."
    if not run.counts:
        return f"Does not count: {run.info.verdict.name} ({run.info.verdict.evidence})."
    if run.number == 0:
        return "The baseline, with which every run is compared at the run's own L0."
    return outcome_sentence(run, opened.state, judged)


def _metric_rows(opened: Opened, run: Run, info: FinalInfo, judged: Judgement | None) -> list[MetricRow]:
    """Return every metric that was measured, compared or predicted: first the headline ones, which are compared."""
    compared = info.comparison.metrics if info.comparison else {}
    primary, first = opened.state.started.primary_metric, opened.runs[0].info
    world = is_world(opened.state.started.fixed.model)
    predictions: Mapping[str, Direction] = {
        name: way for name, way in run.state.proposal.predictions.items() if measurable(name, world)
    }
    rows = [
        _metric_row(name, info, compared.get(name), predictions.get(name), judged if name == primary else None)
        for name in HEADLINE
        if info.metric(name) is not None or name in compared or name in predictions
    ]
    others = [name for name in METRICS if name not in HEADLINE and info.metric(name) is not None]
    return [*rows, *(_plain_row(name, info, first) for name in others)]


def _plain_row(name: str, info: FinalInfo, first: FinalInfo | None) -> MetricRow:
    """Return a metric that is not compared, beside that of run 0."""
    reference = format_value(name, first.metric(name)) if first else ""
    metric = METRICS[name]
    return MetricRow(metric.title, metric.unit, format_value(name, info.metric(name)), reference, headline=False)


def _metric_row(
    name: str,
    info: FinalInfo,
    compared: MetricComparison | None,
    predicted: Direction | None,
    judged: Judgement | None,
) -> MetricRow:
    metric, outcome = METRICS[name], ""
    if predicted:
        outcome = prediction_result(name, compared, predicted, judged)
    reference = difference = interval = ""
    if compared:
        low, high = compared.difference - compared.half_width, compared.difference + compared.half_width
        reference, difference = format_value(name, compared.reference), format_difference(name, compared)
        interval = f"{format_value(name, low, sign='+')} to {format_value(name, high, sign='+')}"
    return MetricRow(
        title=metric.title + ("" if metric.decides else " (never decides)"),
        unit=metric.unit,
        value=format_value(name, info.metric(name)),
        reference=reference,
        difference=difference,
        interval=interval,
        predicted=predicted or "",
        prediction=outcome,
    )


def _measure_rows(opened: Opened, info: FinalInfo) -> list[MeasureRow]:
    """Return the idea's own measures of a run, the main ones first."""
    baseline = opened.runs[0].info.analysis if opened.runs and opened.runs[0].info else {}

    def shown(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    rows = [
        MeasureRow(
            name=name,
            title=f"{measure.title}{f' ({measure.unit})' if measure.unit else ''}",
            value=shown(info.analysis.get(name), measure.digits),
            control=shown(info.analysis.get(measure.control), measure.digits),
            baseline=shown(baseline.get(name), measure.digits),
            main=measure.main,
        )
        for name, measure in opened.measures.items()
        if info.analysis.get(name) is not None
    ]
    return sorted(rows, key=lambda row: not row.main)


def _changed_settings(runs: Sequence[Run], info: FinalInfo | None) -> list[tuple[str, str, str]]:
    """Return the constants of an experiment that differ from the baseline's, or that it lacks."""
    first = runs[0].info if runs else None
    if info is None or info.training is None or first is None or first.training is None or info is first:
        return []
    before = first.training.settings
    changed = {name: value for name, value in info.training.settings.items() if before.get(name) != value}
    return [
        (visible(name), visible(str(before.get(name, "—"))), visible(str(value))) for name, value in changed.items()
    ]


def _lines(opened: Opened, run: Run) -> list[Line]:
    """Return the curves of a run and, behind them, those of the baseline."""
    own = Line(run.number, f"run {run.number}", run.metrics(), "own")
    if run.number == 0 or not opened.runs:
        return [own]
    return [Line(0, "the baseline", opened.runs[0].metrics(), "baseline"), own]


def _attempts(opened: Opened, run: Run) -> list[Attempt]:
    failed = dict(run.state.failed_attempts)
    if run.state.verdict and not run.state.verdict.ok:
        failed[run.state.attempt] = FailedAttempt(run.state.proposal, run.state.verdict)
    return [_attempt(opened, run, number, attempt) for number, attempt in sorted(failed.items())]


def _attempt(opened: Opened, run: Run, number: int, attempt: FailedAttempt) -> Attempt:
    kept, study = opened.study.attempt_dir(run.number, number), opened.study
    folder = kept if kept.is_dir() or number != run.state.attempt else study.run_dir(run.number)
    logs = [
        (f"{folder.name}/{name}", visible(tail))
        for name in LOGS
        if f"{folder.name}/{name}" not in opened.hidden and (tail := log_tail(folder / name, LOG_BYTES).strip("\n"))
    ]
    changed = _change(opened, run, attempt.proposal)
    verdict = attempt.verdict
    told = attempt.proposal
    return Attempt(number, told.title, told.mended, verdict.name, verdict.evidence, changed, logs)


def _errors(run: Run) -> list[str]:
    """Return what evaluations say beside figures: no result, not applicable, what of the idea's measures a checkpoint
    lacks (which the baseline does by nature), remarks on their own figures."""
    if run.info is None:
        return []
    scored = run.info.evaluations
    return [
        *(f"{family} gave no result: {why}" for family, why in run.info.errors.items()),
        *(
            f"{family}: {metric} is not applicable: {why}"
            for family, scores in scored.items()
            for metric, why in scores.not_applicable.items()
        ),
        *(
            sentences.NEED_LACKS.render(need=need, what=what)
            for need, what in run.info.not_measured.items()
            if run.number > 0
        ),
        *(f"{family}: {scores.remark}" for family, scores in scored.items() if scores.remark),
    ]


def _cost(run: Run) -> str:
    """Return how long a run took."""
    parts = [
        f"trained for {run.state.training_seconds:,.0f} s" if run.state.training_seconds else "",
        f"evaluated for {run.state.evaluation_seconds:,.0f} s" if run.state.evaluation_seconds else "",
        f"{run.state.attempt} attempts" if run.state.attempt > 1 else "",
    ]
    return ", ".join(filter(None, parts))
