"""What the notes explain once, at their end: how differences are judged, by what evidence, and what measures mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.comparison import arbiter, judgement, matching
from agent.comparison.curves import half_width_per_noise, own_curve, read_own
from agent.comparison.matching import Curve
from agent.display.formatting import format_value
from agent.ideas import BASELINE_SEEDS, Fixed
from agent.lab.metrics import METRICS
from agent.lab.results import Expectation, headline
from agent.report import figure_style, sentences
from agent.report.outcome import held_out
from agent.study.runs import Run
from agent.study.state import State

SENTINELS = {
    "permuted decoder": "the baseline with its decoder's rows permuted",
    "identity": "the identity",
    "random": "a random untrained SAE",
}


@dataclass(frozen=True)
class Evidence:
    """What differences are judged by: what a reader must know first, and what can be looked up."""

    alarms: list[str]
    method: list[str]


def describe_evidence(state: State) -> Evidence:
    """Describe what differences are judged by, as far as it is measured: sentinels, baselines, noise between seeds."""
    alarms, architecture = [], state.started.fixed.architecture
    if len(state.judging) > 1:
        alarms.append("The code that compares runs and writes these notes changed between two drivers of the study.")
    alarms += [
        f"THE EVALUATION IS BROKEN: {_sentinel(each)} should be {each.expected} and is "
        f"{'not finite' if each.found is None else format(each.found, '.4g')}."
        for each in state.broken
    ]
    alarms += _families_without_results(state)
    alarms += [
        f"The {architecture.baseline_with(k, seed)} has no results: {verdict.name} ({verdict.evidence})."
        for (k, seed), verdict in state.baselines_tried.items()
        if not verdict.ok
    ]
    if state.started.fixed.baseline_seeds == 1:
        return Evidence([*alarms, f"The study has {matching.ONE_SEED}."], _checked(state))
    curve = own_curve(state)
    if curve is None or curve.why_not(matching.reseeded_level(curve.baselines).l0):
        alarms.append("The noise between seeds was not measured, so no difference below is a finding.")
        return Evidence(alarms, _checked(state))
    return Evidence(alarms, [*_checked(state), *_statistics(state, curve)])


def _checked(state: State) -> list[str]:
    """State which sentinels the evaluation passed."""
    passed = [each for each in state.sentinels or [] if each.held]
    if not passed:
        return []
    count = f"{len(passed)} of {len(state.sentinels or [])}"
    return [f"{count} expectations of SAEs whose scores are known (permuted decoder, identity, random) were met."]


def _statistics(state: State, curve: Curve) -> list[str]:
    """State the noise between seeds, how differences are judged by it, and what the tables show."""
    name, knob = state.started.primary_metric, state.started.fixed.architecture.knob_in_words
    own, there = matching.reseeded_level(curve.baselines), read_own(curve, name)
    noise = f"{METRICS[name].title} was not measured"
    if there:
        noise = f"{METRICS[name].title} {format_value(name, there.value)}, standard deviation {there.noise:.2g}"
    knobs = ", ".join(f"{k:g}" for k in sorted({each.k for each in curve.baselines}))
    return [
        f"Baselines were trained at {knob} {knobs}; at {knob} {own.k:g} with {len(own.baselines)} seeds: {noise} at "
        "equal L0.",
        *_few_seeds(state.started.fixed),
        f"Runs are compared with the baseline at their own L0, {curve.read_in_words}. Intervals are 95% intervals "
        "for one training, uncorrected; metrics that are not listed are within theirs. Outcomes on the primary metric "
        "are corrected (Holm) and need the smallest effect worth having; better also needs that "
        f"{judgement.FRESH_SEEDS} fresh seeds confirm it{_last_condition(state)}.",
    ]


def _few_seeds(fixed: Fixed) -> list[str]:
    """State by how much a study's intervals are wider than those of the usual number of seeds, if they are."""
    if fixed.baseline_seeds >= BASELINE_SEEDS:
        return []
    usual = fixed.model_copy(update={"baseline_seeds": BASELINE_SEEDS})
    wider = half_width_per_noise(fixed) / half_width_per_noise(usual)
    few = f"{fixed.baseline_seeds} baseline seeds in place of {BASELINE_SEEDS}"
    return [f"The study has {few}: at the same noise its intervals are {wider:.1f} times as wide."]


def unreliable(runs: Sequence[Run]) -> list[str]:
    """Name the headline metrics of the runs that never decide."""
    names = headline(run.info for run in runs if run.info and run.counts)
    titles = [METRICS[name].title for name in names if not METRICS[name].decides]
    return [sentences.UNRELIABLE.render(titles=figure_style.listed(titles))] if titles else []


def _families_without_results(state: State) -> list[str]:
    """State which evaluations gave no result on the sentinels or on further baselines, each reason once."""
    where: dict[tuple[str, str], list[str]] = {pair: ["the sentinels"] for pair in state.sentinel_errors.items()}
    baselines: dict[tuple[str, str], list[str]] = {}
    architecture = state.started.fixed.architecture
    for (k, seed), errors in state.baseline_errors.items():
        for pair in errors.items():
            baselines.setdefault(pair, []).append(f"the {architecture.baseline_with(k, seed)}")
    for pair, names in baselines.items():
        where.setdefault(pair, []).append(names[0] if len(names) == 1 else f"{len(names)} baselines")
    return [
        sentences.NO_RESULT_ON.render(family=family, saes=figure_style.listed(saes), why=reason)
        for (family, reason), saes in where.items()
    ]


def _last_condition(state: State) -> str:
    metric = state.started.primary_metric
    if not arbiter.has_test_split(metric):
        return sentences.NO_SECOND_TEXT.render(title=METRICS[metric].title)
    return (
        f" and show at least {arbiter.LEAST_SHARE:.0%} of the difference on the test {held_out(state)}, on which "
        "nothing else is decided"
    )


def _sentinel(expectation: Expectation) -> str:
    metric = METRICS[expectation.metric].title if expectation.metric in METRICS else expectation.metric
    return f"{metric} of {SENTINELS.get(expectation.sentinel, expectation.sentinel)}"
