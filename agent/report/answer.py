"""The answer to a study's hypothesis, by the rules that its idea declared before any run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agent.comparison import matching
from agent.comparison.judgement import Judgement, between_runs
from agent.display.formatting import format_difference, unit_of
from agent.hypothesis import ANY, Condition
from agent.lab.metrics import METRICS
from agent.lab.results import Measure, MetricComparison
from agent.report import sentences
from agent.study.runs import Run
from agent.study.state import State

MOST_REASONS = 2  # in the sentence
Decision = Literal["supported", "refuted", "not decided"]


@dataclass(frozen=True)
class Tested:
    """A condition, whether it holds (None: that cannot be told), and the figures that say so."""

    condition: Condition
    holds: bool | None
    reason: str
    figure: str = ""  # title and difference

    @property
    def brief(self) -> str:
        """Return the figure and the limit that it is beyond; empty if it is not."""
        if not self.holds or not self.figure:
            return ""
        return sentences.MET_REASON.render(figure=self.figure, asked=_asked(self.condition))


@dataclass(frozen=True)
class Answer:
    """What became of the hypothesis, in a sentence, and each condition behind it."""

    decision: Decision
    sentence: str
    supporting: tuple[Tested, ...] = ()  # all must hold
    refuting: tuple[Tested, ...] = ()  # any may


def answer(
    state: State, runs: Sequence[Run], judged: Mapping[int, Judgement], measures: Mapping[str, Measure]
) -> Answer:
    """Answer the hypothesis of a study as its runs stand now."""
    rules, primary = state.started.answer, METRICS[state.started.primary_metric].title
    one_seed = state.started.fixed.baseline_seeds == 1
    if rules is None:
        better = [f"run {number}" for number, each in judged.items() if each.outcome == "better"]
        compared = f"on {primary} {', '.join(better) or 'no run'} is better than the baseline"
        found = matching.ONE_SEED if one_seed else compared
        return Answer("not decided", sentences.NO_RULES.render(found=found))
    examiner = _Examiner(runs, judged, measures, state.started.primary_metric)
    supporting = tuple(map(examiner.test, rules.supported_if_all))
    refuting = tuple(map(examiner.test, rules.refuted_if_any))
    against = [tested for tested in refuting if tested.holds]
    if one_seed:  # a measure has no interval, and would decide by itself
        undecided = sentences.ANSWERS["not decided"].render(reasons=matching.ONE_SEED)
        return Answer("not decided", undecided, supporting, refuting)
    if all(tested.holds for tested in supporting) and not against:
        decision, decisive = "supported", list(supporting)
    elif against:
        decision, decisive = "refuted", against
    else:
        decision, decisive = "not decided", [tested for tested in supporting if not tested.holds]
    met = [tested.brief for tested in supporting if decision == "not decided" and tested.brief]
    if decision == "not decided":
        decisive = [_with_refuting_limit(tested, rules.refuted_if_any) for tested in decisive]
    reasons = list(dict.fromkeys(tested.reason for tested in decisive))
    more = len(reasons) - MOST_REASONS
    parts = [
        *reasons[:MOST_REASONS],
        f"and {more} more" if more > 0 else "",
        sentences.MET * bool(met) + ", ".join(met),
    ]
    shown = "; ".join(filter(None, parts))
    return Answer(decision, sentences.ANSWERS[decision].render(reasons=shown), supporting, refuting)


def _with_refuting_limit(tested: Tested, refuting: Sequence[Condition]) -> Tested:
    """Return a test whose reason says also from where on the same figure would refute the hypothesis."""
    asked = tested.condition
    for other in refuting:
        same = all(getattr(asked, name) == getattr(other, name) for name in ("step", "metric", "measure", "than"))
        if same and not asked.outcome and not other.outcome:
            with_limit = f"(asked: {_asked(asked)}, refuted {_asked(other)})"
            return replace(tested, reason=tested.reason.replace(f"(asked: {_asked(asked)})", with_limit))
    return tested


@dataclass(frozen=True)
class _Examiner:
    runs: Sequence[Run]
    judged: Mapping[int, Judgement]
    measures: Mapping[str, Measure]
    primary: str

    def test(self, condition: Condition) -> Tested:
        """Test a condition on its run, or on all runs if any may meet it: the first that does, else the newest."""
        runs = [run for run in self.runs if run.number > 0 and run.counts]
        if condition.step != ANY:
            runs = [run for run in runs if run.state.proposal.name == condition.step]
        tested = [self._test(condition, run) for run in runs]
        if not tested:
            what = "no run" if condition.step == ANY else f"the step {condition.step} has no run that"
            return Tested(condition, None, f"{what} counts" if condition.step != ANY else "no run counts")
        for holds in (True, None):
            if found := next((each for each in tested if each.holds is holds), None):
                return found
        return tested[-1]

    def _test(self, condition: Condition, run: Run) -> Tested:
        if condition.outcome:
            return self._test_outcome(condition, run)
        return self._test_metric(condition, run) if condition.metric else self._test_measure(condition, run)

    def _test_outcome(self, condition: Condition, run: Run) -> Tested:
        judged, title = self.judged.get(run.number), METRICS[condition.metric].title
        if condition.metric != self.primary:
            return Tested(condition, None, f"{title} is not the primary metric on this model")
        if judged is None:
            return Tested(condition, None, f"run {run.number} is not compared yet")
        holds = judged.outcome in condition.outcome
        undecided = judged.outcome in ("unconfirmed", "untested", "not comparable") and not holds
        reason = sentences.REASON_OUTCOME.render(
            run=run.number, title=title, outcome=judged.outcome, asked=" or ".join(condition.outcome)
        )
        return Tested(condition, None if undecided else holds, reason)

    def _test_metric(self, condition: Condition, run: Run) -> Tested:
        title, compared = METRICS[condition.metric].title, _compared(condition.metric, run)
        other, reference = None, "the baseline's"
        if condition.than:
            other = self._run_of(condition.than)
            reference = f"that of run {other.number}" if other else f"that of the step {condition.than}"
            theirs = _compared(condition.metric, other) if other else None
            compared = between_runs(compared, theirs) if compared and theirs else None
        if compared is None:
            return Tested(condition, None, f"{title} of run {run.number} is not compared with {reference}")
        low, high = compared.difference - compared.half_width, compared.difference + compared.half_width
        reason = sentences.REASON_METRIC.render(
            title=title,
            run=run.number,
            difference=format_difference(condition.metric, compared),
            from_=reference,
            asked=_asked(condition),
        )
        figure = sentences.DIFFERENCE.render(title=title, difference=format_difference(condition.metric, compared))
        return Tested(condition, condition.holds(low, high), reason, figure)

    def _test_measure(self, condition: Condition, run: Run) -> Tested:
        measure = self.measures.get(condition.measure)
        title, value = (measure.title if measure else condition.measure), self._figure(run, condition.measure)
        if value is None:
            return Tested(condition, None, f"{title} of run {run.number} is not measured")
        digits, unit = (measure.digits, unit_of(measure)) if measure else (3, "")
        words = {"measure": title, "run": run.number, "value": f"{value:.{digits}f}", "own_unit": unit}
        if not condition.than:
            reason = sentences.REASON_VALUE.render(**words, asked=_asked(condition))
            return Tested(condition, condition.holds(value, value), reason, f"{title} {value:.{digits}f}{unit}")
        if condition.than in self.measures:
            control, name = self._figure(run, condition.than), self.measures[condition.than].title
        else:
            other = self._run_of(condition.than)
            control = self._figure(other, condition.measure) if other else None
            name = f"that of run {other.number}" if other else f"that of the step {condition.than}"
        if control is None:
            return Tested(condition, None, f"{title}: {name} is not measured")
        reason = sentences.REASON_CONTROL.render(
            **words,
            control=name,
            reference=f"{control:.{digits}f}",
            change=f"{value - control:+.{digits}f}",
            asked=_asked(condition),
        )
        figure = f"{title} {value - control:+.{digits}f}{unit}"
        return Tested(condition, condition.holds(value - control, value - control), reason, figure)

    def _run_of(self, step: str) -> Run | None:
        return next((run for run in self.runs if run.state.proposal.name == step and run.counts), None)

    def _figure(self, run: Run, name: str) -> float | None:
        return run.info.analysis.get(name) if run.info else None


def _compared(metric: str, run: Run) -> MetricComparison | None:
    comparison = run.info.comparison if run.info else None
    return comparison.metrics.get(metric) if comparison else None


def _asked(condition: Condition) -> str:
    return f"{'below' if condition.above is None else 'above'} {condition.limit:g}"
