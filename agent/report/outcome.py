"""The sentence on a run's primary metric: its outcome, and the figures behind it."""

from agent.comparison import arbiter, judgement
from agent.comparison.judgement import Goal, Judgement
from agent.display.formatting import companion_difference, format_difference, format_value, unit_of
from agent.lab.defaults import is_world
from agent.lab.metrics import METRICS
from agent.lab.results import Comparison
from agent.report import sentences
from agent.study.runs import Run
from agent.study.state import State

FOR_THE_BETTER = ("better", "untested", "not upheld", "unconfirmed", "not confirmed")
NOTABLE_WORK = 1.5  # times the baseline's; less is the machine's own variation


def outcome_sentence(run: Run, state: State, judged: Judgement | None, companion: bool = True) -> str:
    """State the outcome of a run that counts on the primary metric, with the figures behind it, and if wanted the
    difference of the metric's companion."""
    assert run.info
    name, comparison = state.started.primary_metric, run.info.comparison
    metric = METRICS[name]
    if comparison is None and run.state.awaits_comparison and not state.ended:
        return sentences.NOT_COMPARABLE.render(why="the baselines that it needs are not measured yet")
    if comparison is None or judged is None or judged.p is None:
        why = comparison.not_comparable if comparison else None
        return sentences.NOT_COMPARABLE.render(why=why or f"{metric.title} was not measured on both sides")
    within_noise = judged.outcome == "within noise"
    smallest = f"{state.started.smallest_effect:g}"
    return sentences.OUTCOMES[judged.outcome].render(
        title=metric.title,
        asides=_asides(name, judged, comparison),
        difference=format_difference(name, comparison.metrics[name]),
        unit=unit_of(metric),
        companion=companion_difference(name, comparison) if companion else "",
        l0=format_value("l0", run.info.metric("l0")),
        p=f"{judged.p:.2g}",
        fresh_seeds=_fresh_seeds(name, judged, state.replicates.get(run.number, {})),
        on_test=_on_test(name, judged, state),
        test_difference=_test_difference(name, judged),
        why_untested=f"; {judged.on_test.why_not}" if judged.on_test and judged.on_test.why_not else "",
        held_out=held_out(state),
        companion_title=METRICS[metric.companion].title if metric.companion else "",
        beyond=_beyond(comparison, Goal.of(state.started)),
        smallest=format_value(name, judged.smallest_detectable) if within_noise else smallest,
    )


def held_out(state: State) -> str:
    """Return what the test split is made of: text, or the samples of a world."""
    return "samples" if is_world(state.started.fixed.model) else "text"


def _asides(name: str, judged: Judgement, comparison: Comparison) -> str:
    """State beside an outcome what the difference comes with: a loss of the companion metric, more work for a row."""
    asides, companion, lost = "", METRICS[name].companion, judgement.companion_loss(name, comparison)
    if lost and judged.outcome in FOR_THE_BETTER:
        asides += sentences.COMPANION_LOST.render(title=METRICS[companion].title, value=format_value(companion, lost))
    if comparison.work_ratio and comparison.work_ratio >= NOTABLE_WORK:
        asides += sentences.WORK.render(value=f"{comparison.work_ratio:.1f}")
    return asides


def _beyond(comparison: Comparison, goal: Goal) -> str:
    """State the loss of the companion metric that is too much."""
    in_run = judgement.companion_loss(goal.primary, comparison) > goal.most_lost
    return f" by more than {goal.most_lost:g}{'' if in_run else ' in a fresh seed'}"


def _fresh_seeds(name: str, judged: Judgement, replicates: dict[int, Comparison]) -> str:
    """State what the fresh seeds of a winner showed of the primary metric, or which cannot be compared."""
    if judged.confirmation:
        return sentences.FRESH_SEEDS.render(
            seeds=judgement.FRESH_SEEDS,
            difference=format_difference(name, judged.confirmation),
            unit=unit_of(METRICS[name]),
        )
    not_compared = [
        f"fresh seed {seed} cannot be compared ({replicate.not_comparable or 'not measured on both sides'})"
        for seed, replicate in replicates.items()
        if name not in replicate.metrics
    ]
    return "; ".join(not_compared) or sentences.NOT_SHOWN_AGAIN


def _test_difference(name: str, judged: Judgement) -> str:
    test = judged.on_test
    return "" if test is None or test.difference is None else format_value(name, test.difference, sign="+")


def _on_test(name: str, judged: Judgement, state: State) -> str:
    """State what the test split showed of a run that is better, or that there is none for the metric."""
    metric = METRICS[name]
    if not arbiter.has_test_split(name):
        return sentences.NO_SECOND_TEXT.render(title=metric.title)
    if difference := _test_difference(name, judged):
        return sentences.ON_TEST.render(test_difference=difference, unit=unit_of(metric), held_out=held_out(state))
    return ""
