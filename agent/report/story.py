"""The story of a study in a few lines: the question, its answer, a row for each run, what failed, what it cost.

Notes, review page and terminal all show this.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.comparison import matching
from agent.comparison.judgement import Judgement
from agent.display.formatting import format_difference, format_value
from agent.lab.files import BadFile
from agent.lab.metrics import METRICS
from agent.lab.results import Measure, headline
from agent.llm import transcript
from agent.report import references
from agent.report.answer import Answer, answer
from agent.report.prose import Facts, render
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

PROMISING = ("better", "unconfirmed", "untested", "not upheld")
LONGEST_CHANGE = 60  # characters
SECONDARY = (  # in the order in which the two that a table shows are chosen, after the companion of the primary metric
    *("explained_variance_centered", "probing_auc_5", "absorption_true", "uniqueness", "sparse_probing_5"),
    *("alive_fraction", "loss_added", "ce_loss_score", "f1"),
)
HOW_MANY = 2


@dataclass(frozen=True)
class Row:
    """A run in the table of a study, as text."""

    run: int | None  # None: a reference
    change: str
    l0: str
    primary: str
    difference: str  # of the primary metric from the baseline at the same L0, with its interval
    outcome: str
    secondary: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        run = "" if self.run is None else str(self.run)
        return run, self.change, self.l0, self.primary, self.difference, self.outcome, *self.secondary


@dataclass(frozen=True)
class Story:
    """What a study asked, did and found."""

    title: str
    question: str
    answer: Answer
    columns: tuple[str, ...]  # of the rows
    rows: tuple[Row, ...]
    references: tuple[Row, ...]  # SAEs that were trained elsewhere
    failed: str  # empty if nothing did
    cost: str
    status: str  # how far the study has come

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """The rows of the table: the baseline, the references beside it, the other runs."""
        return *self.rows[:1], *self.references, *self.rows[1:]


def tell(
    state: State,
    runs: Sequence[Run],
    judged: Mapping[int, Judgement],
    measures: Mapping[str, Measure] | None = None,
    spent: str = "",
) -> Story:
    """Return the story of a study as it stands now; `spent` is what the language model cost, in words."""
    primary, measures = state.started.primary_metric, measures or state.started.measures
    secondary = secondary_metrics(runs, primary)
    columns = ("run", "change", "L0", METRICS[primary].title, "from the baseline", "outcome")
    facts = Facts.of(runs, judged, state.started) if state.started.language_model else None
    return Story(
        title=state.started.title,
        question=" ".join(state.started.hypothesis.split()),
        answer=answer(state, runs, judged, measures),
        columns=(*columns, *(METRICS[name].title for name in secondary)),
        rows=tuple(_row(run, _outcome(run, state, judged.get(run.number)), primary, secondary, facts) for run in runs),
        references=tuple(_reference_row(each, primary, secondary) for each in references.shown(state)),
        failed=_failed(state, runs),
        cost=_cost(state, spent),
        status=status(state),
    )


def secondary_metrics(runs: Sequence[Run], primary: str) -> list[str]:
    """Return the metrics that stand beside the primary one in a table."""
    measured = headline(run.info for run in runs if run.info and run.counts)
    wanted = dict.fromkeys([METRICS[primary].companion, *SECONDARY])
    return [name for name in wanted if name in measured and name != primary][:HOW_MANY]


def most_telling(runs: Sequence[Run], judged: Mapping[int, Judgement], most: int) -> list[Run]:
    """Return at most so many runs, in their order: the baseline, those that are or may be better, and the newest."""

    def rank(run: Run) -> tuple[bool, bool, int]:
        own = judged.get(run.number)
        return run.number == 0, own is not None and own.outcome in PROMISING, run.number

    return sorted(sorted(runs, key=rank)[-most:], key=lambda run: run.number)


def spent(study: Study) -> str:
    """Return in one line what a language model cost a study, or an empty string if none was asked or its transcript
    cannot be read."""
    try:
        exchanges = transcript.read(study.transcript) if os.path.lexists(study.transcript) else []
    except BadFile:
        return ""
    if not exchanges:
        return ""
    tokens_in, tokens_out = (
        sum(getattr(exchange.usage, f"tokens_{way}") for exchange in exchanges) for way in ("in", "out")
    )
    costs = [exchange.cost for exchange in exchanges if exchange.cost is not None]
    dollars = f", ${sum(costs):.2f}" if len(costs) == len(exchanges) else ""
    about = "about " * any(exchange.usage.estimated for exchange in exchanges)
    return f"the model: {len(exchanges)} requests, {about}{tokens_in:,} tokens read, {tokens_out:,} written{dollars}"


def _outcome(run: Run, state: State, judged: Judgement | None) -> str:
    """Return a run's outcome in the table: its stage or verdict, or for run 0 of how many seeds it is one."""
    if run.info is None or not run.counts:
        return run.info.verdict.name if run.info else run.state.stage
    if run.number == 0:
        reseeded = matching.reseeded_level(state.baselines) if state.baselines else None
        return f"one of {len(reseeded.baselines)} seeds" if reseeded and len(reseeded.baselines) > 1 else ""
    return judged.outcome if judged else "not compared yet"


def _row(run: Run, outcome: str, primary: str, secondary: Sequence[str], facts: Facts | None) -> Row:
    title = run.state.proposal.title
    change = clip(title if facts is None or run.state.by_hand else render(title, facts), LONGEST_CHANGE)
    if run.info is None or not run.counts:
        return Row(run.number, change, "", "", "", outcome, ("",) * len(secondary))
    info, comparison = run.info, run.info.comparison
    compared = comparison.metrics.get(primary) if comparison else None
    return Row(
        run=run.number,
        change=change,
        l0=format_value("l0", info.metric("l0")),
        primary=format_value(primary, info.metric(primary)),
        difference=format_difference(primary, compared) if compared else "",
        outcome=outcome,
        secondary=tuple(format_value(name, info.metric(name)) for name in secondary),
    )


def _reference_row(each: references.Shown, primary: str, secondary: Sequence[str]) -> Row:
    difference = each.beside.differences.get(primary)
    return Row(
        run=None,
        change=each.in_words,
        l0=format_value("l0", each.figure("l0")),
        primary=format_value(primary, each.figure(primary)),
        difference="" if difference is None else format_value(primary, difference, sign="+"),
        outcome=each.outcome,
        secondary=tuple(format_value(name, each.figure(name)) for name in secondary),
    )


def clip(text: str, most: int) -> str:
    """Shorten a text to so many characters, at the end of a word if there is one in its second half."""
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    end = cut.rfind(" ")
    return (cut[:end] if end > most // 2 else cut).rstrip(" ,;:.") + "…"


def _failed(state: State, runs: Sequence[Run]) -> str:
    """Name the runs that do not count, the attempts that others followed, and evaluations without results."""
    parts = [
        f"run {run.number}: {run.info.verdict.name} ({clip(run.info.verdict.evidence, LONGEST_CHANGE)})"
        for run in runs
        if run.info and not run.counts
    ]
    attempts = sum(len(run.failed_attempts) for run in state.runs)
    if attempts:
        again = [f"run {run.number}" for run in state.runs if run.failed_attempts]
        parts.append(f"{attempts} attempt{'s' * (attempts > 1)} before {', '.join(again)}")
    families = sorted({family for run in runs if run.info and run.counts for family in run.info.errors})
    if families:
        parts.append(f"no result of {', '.join(families)}")
    if state.broken:
        parts.append("THE EVALUATION IS BROKEN")
    return "; ".join(parts)


def _cost(state: State, spent: str) -> str:
    runs = f"{state.runs_used} run{'s' * (state.runs_used != 1)} of {state.started.max_runs}"
    time = f"{_duration(state.seconds)} of work, {_duration(state.job_seconds)} of jobs"
    return ", ".join(filter(None, [runs, time, spent]))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def status(state: State) -> str:
    """Say how far a study has come."""
    if state.ended:
        return f"ended: {state.ended}"
    if state.interrupted:
        return "interrupted; agent resume continues it"
    return "not ended"
