"""notes.txt and its figures, rendered from the ledger and the results and from nothing else."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent import TEMPLATES
from agent.comparison import arbiter, judgement, matching
from agent.comparison.judgement import Judgement, Outcome, judgements
from agent.display.formatting import format_difference, format_value, remarks, unit_of
from agent.ideas import Direction, strict_templates
from agent.lab.files import MIB, read_plain, remove_unless_plain, write_atomically
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Expectation, FinalInfo, Floor, Measure, MetricComparison, headline
from agent.lab.visible import one_line
from agent.report import figure_style, plots, prose, sentences
from agent.report.idea_analysis import Analysis
from agent.report.outcome import held_out, outcome_sentence
from agent.report.prose import Facts
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

SENTINELS = {
    "permuted decoder": "the baseline with its decoder's rows permuted",
    "identity": "the identity",
    "random": "a random untrained SAE",
}
UNSETTLED = ("within noise", "unconfirmed", "untested", "not upheld", "not confirmed")  # no prediction holds by these
NO_ANALYSIS = Analysis()
MOST_BYTES = 16 * MIB  # of notes that were edited by hand
CHECKSUM = "Checksum of these notes, by which a change by hand is noticed: "


@dataclass(frozen=True)
class RunSummary:
    """What the notes say of a run from its results; empty where it has none that count."""

    results: dict[str, float | None] | None = None  # headline metrics, rounded
    outcome: str = ""  # of the primary metric
    comparisons: list[str] = field(default_factory=list)  # a line per metric, with its prediction
    random_sae: str = ""
    own_measures: str = ""
    provisional: str = ""  # that another comparison follows


def write(
    study: Study,
    state: State,
    skipped: Sequence[tuple[str, str]] = (),
    analysis: Analysis = NO_ANALYSIS,
    drawn: Sequence[plots.Figure] | None = None,
) -> Sequence[plots.Figure]:
    """Write the notes and the figures as things stand now, each file whole or not at all; return the figures.

    Figures that were `drawn` before are left as they are. Notes that were edited by hand since they were written are
    kept as notes_edited_<hash>.txt.
    """
    study.notes.mkdir(parents=True, exist_ok=True)  # a study may have been moved without them
    runs = study.load_runs(state)
    judged = judgements(runs, state)
    goal = (state.started.primary_metric, state.started.smallest_effect)
    figures = drawn
    if figures is None:
        figures = plots.write(study.notes, runs, state.baselines, judged, *goal, analysis.draw)
    path = study.notes / "notes.txt"
    remove_unless_plain(path)
    if path.exists() and edited((before := read_plain(path, MOST_BYTES)).decode(errors="replace")):
        name = f"notes_edited_{hashlib.sha256(before).hexdigest()[:8]}.txt"
        write_atomically(study.notes / name, before)
    body = render(state, runs, judged, figures, skipped, analysis.measures)
    write_atomically(path, body + CHECKSUM + _checksum(body) + "\n")
    return figures


def edited(notes: str) -> bool:
    """Return True if notes were changed since they were written."""
    body, mark, checksum = notes.rpartition(CHECKSUM)
    return not mark or checksum != _checksum(body) + "\n"


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def render(
    state: State,
    runs: list[Run],
    judged: dict[int, Judgement],
    figures: Sequence[plots.Figure],
    skipped: Sequence[tuple[str, str]] = (),
    measures: dict[str, Measure] | None = None,
    templates: Path = TEMPLATES,
) -> str:
    """Return the text of the notes."""
    environment = strict_templates(templates / "notes")
    environment.filters["flow"] = flow
    environment.globals["sentences"] = sentences
    confined, *later = [confinement.sentence for confinement in state.confinements] or [""]
    return environment.get_template("notes.txt.j2").render(
        state=state,
        started=state.started,
        primary=METRICS[state.started.primary_metric],
        confinement=[confined, *(f"After it was resumed: {sentence}" for sentence in later)],
        evidence=describe_evidence(state),
        remarks=remarks(run.info for run in runs if run.info),
        measures=measures if measures and any(run.info and run.info.analysis for run in runs) else {},
        runs=[
            (run, describe(run, state, judged.get(run.number), measures or {}), run_texts(run, state, runs, judged))
            for run in runs
        ],
        tested=[describe_test(run, state) for run in runs if run.number in state.tested],
        held_out=held_out(state),
        test_uses=describe_test_uses(state),
        figures=figures,
        skipped=skipped,
        last_time=_utc(state.last_time),
        interrupted=_utc(state.interrupted),
    )


def run_texts(run: Run, state: State, runs: list[Run], judged: dict[int, Judgement]) -> dict[str, str]:
    """Return what was written about a run before it (description, why) and, by a language model, after it (described).

    The placeholders of a language model are rendered.
    """
    proposal = run.state.proposal
    texts = {"description": proposal.description, "why": proposal.why, "described": run.state.described or ""}
    if state.started.language_model and not run.state.by_hand:
        facts = Facts(runs, judged, state.started.primary_metric)
        texts = {name: prose.render(text, facts) for name, text in texts.items()}
    return texts


def flow(text: str) -> str:
    """Put text into one paragraph on one line, which is no heading whatever it begins with."""
    return re.sub(r"\A(?=#)", r"\\", one_line(text))


def _utc(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC") if time else ""


def describe_evidence(state: State) -> list[str]:
    """Describe what differences are judged by, as far as it is measured: sentinels, baselines, noise between seeds."""
    lines = []
    if len(state.judging) > 1:
        lines.append("The code that compares runs and writes these notes changed between two drivers of the study.")
    if state.sentinels:
        passed = [f"{_sentinel(each)} is {each.expected}" for each in state.sentinels if each.held]
        lines.append(f"The evaluation was checked on SAEs whose scores are known: {'; '.join(passed)}.")
    lines += [
        f"THE EVALUATION IS BROKEN: {_sentinel(each)} should be {each.expected} and is "
        f"{'not finite' if each.found is None else format(each.found, '.4g')}."
        for each in state.broken
    ]
    lines += _families_without_results(state)
    lines += [
        f"The baseline at K {k:g}, seed {seed} has no results: {verdict.name} ({verdict.evidence})."
        for (k, seed), verdict in state.baselines_tried.items()
        if not verdict.ok
    ]
    reseeded = matching.reseeded_level(state.baselines) if state.baselines else None
    if reseeded is None or len(reseeded.baselines) < 2:
        return [*lines, "The noise between seeds was not measured, so no difference below is a finding."]
    spreads = []
    for name in HEADLINE:
        values = reseeded.values(name)
        if values and len(values) > 1:
            mean, deviation = matching.mean_and_deviation(values)
            spreads.append(f"{METRICS[name].title} {format_value(name, mean)} ± {deviation:.2g}")
    ks = ", ".join(f"{level.k:g}" for level in matching.levels(state.baselines))
    return [
        *lines,
        f"The baseline was trained with {len(reseeded.baselines)} seeds at K {reseeded.k:g}; mean and standard "
        f"deviation: {'; '.join(spreads)}. Baselines were trained at K {ks}.",
        "A run is compared with the baseline at the run's own L0, interpolated between two of these within "
        f"{matching.MATCH:.0%} of it. Intervals are 95% intervals of the difference. On the primary metric a "
        "difference counts if it is significant after Holm's correction over the runs and at least the smallest "
        f"effect worth having; a run is called better only if {judgement.FRESH_SEEDS} fresh seeds confirm it"
        f"{_last_condition(state)}.",
    ]


def _families_without_results(state: State) -> list[str]:
    """State which evaluations gave no result on the sentinels or on further baselines, each reason once."""
    where: dict[tuple[str, str], list[str]] = {pair: ["the sentinels"] for pair in state.sentinel_errors.items()}
    baselines: dict[tuple[str, str], list[str]] = {}
    for (k, seed), errors in state.baseline_errors.items():
        for pair in errors.items():
            baselines.setdefault(pair, []).append(f"the baseline with K {k:g}, seed {seed}")
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


def describe(run: Run, state: State, judged: Judgement | None, measures: dict[str, Measure]) -> RunSummary:
    """Summarise the results of a run, its comparison and the outcomes of its predictions."""
    if run.info is None or not run.counts:
        return RunSummary()
    random_sae, own_measures = "", ""
    if floor := run.info.floor:
        random_sae = sentences.RANDOM_SAE.render(l0=floor.k, figures=_floor(floor, run.info))
    own = [
        sentences.OWN_MEASURE.render(
            measure=measure.title, value=f"{run.info.analysis[name]:.{measure.digits}f}", own_unit=unit_of(measure)
        )
        for name, measure in measures.items()
        if run.info.analysis.get(name) is not None
    ]
    if own:
        own_measures = sentences.OWN_MEASURES.render(measures="; ".join(own))
    results = {name: _rounded(name, run.info.metric(name)) for name in headline([run.info])}
    if run.number == 0:
        return RunSummary(results, random_sae=random_sae, own_measures=own_measures)
    comparison, predictions = run.info.comparison, run.state.proposal.predictions
    outcomes: dict[str, Outcome] = {state.started.primary_metric: judged.outcome} if judged else {}
    lines = [
        _metric_line(name, comparison.metrics.get(name), predictions.get(name), outcomes.get(name))
        for name in HEADLINE
        if comparison and not comparison.not_comparable and (name in comparison.metrics or name in predictions)
    ]
    provisional = ""
    if run.state.provisional and comparison:
        provisional = sentences.PROVISIONAL.render(seeds=comparison.seeds)
    outcome = outcome_sentence(run, state, judged)
    return RunSummary(results, outcome, lines, random_sae, own_measures, provisional)


def _floor(floor: Floor, info: FinalInfo) -> str:
    """Return the figures of the random SAE, under the titles of the run's own."""
    figures = {
        "explained_variance_centered": floor.explained_variance_centered,
        "ce_loss_score": floor.ce_loss_score,
        **{name: floor.truth.get(name) for name in ("f1", "uniqueness", "mcc")},
        "probing_auc_5": info.probing.random_auc[5] if info.probing else None,
        "forgetting": info.metric("forgetting_random"),
    }
    return ", ".join(_figure(name, value) for name, value in figures.items() if value is not None)


def _figure(name: str, value: float | None) -> str:
    return sentences.FIGURE.render(title=METRICS[name].title, value=format_value(name, value))


def _metric_line(
    name: str, compared: MetricComparison | None, predicted: Direction | None, outcome: Outcome | None
) -> str:
    """Compare a metric with the baseline's and with its prediction; neither says more than the outcome does."""
    metric = METRICS[name]
    never_decides = "" if metric.decides else sentences.NEVER_DECIDES
    prediction = ""
    if predicted:
        result = judgement.prediction_outcome(name, predicted, compared)
        if outcome in UNSETTLED and (predicted, result) != ("same", "held"):
            result = outcome
        prediction = sentences.PREDICTION.render(predicted=predicted, prediction_outcome=result)
    if compared is None:
        return sentences.NOT_MEASURED.render(title=metric.title, never_decides=never_decides, prediction=prediction)
    noise = outcome == "within noise" or judgement.observed_direction(compared) == "same"
    return sentences.COMPARED.render(
        title=metric.title,
        never_decides=never_decides,
        value=format_value(name, compared.value),
        unit=unit_of(metric),
        as_trained=sentences.AS_TRAINED if name == "l0" else "",  # all else is interpolated at the run's L0
        reference=format_value(name, compared.reference),
        difference=format_difference(name, compared),
        within_noise=sentences.WITHIN_NOISE if noise else "",
        prediction=prediction,
    )


def describe_test(run: Run, state: State) -> str:
    """List a run's figures on the held-out text or samples."""
    tested = state.tested[run.number]
    measured = [_figure(name, tested.figures[name]) for name in HEADLINE if tested.figures.get(name) is not None]
    return f"run {run.number} ({run.state.proposal.title}): {', '.join(measured) or f'not scored ({tested.why_not})'}"


def describe_test_uses(state: State) -> str:
    """State how often the test split was used, and for which SAEs."""
    runs = [f"run {run}" for run in sorted(state.tested)]
    seeds = [
        f"run {run} with fresh seed{'s' * (len(scored) > 1)} {figure_style.listed(list(map(str, sorted(scored))))}"
        for run, scored in sorted(state.tested_seeds.items())
    ]
    baselines = [
        f"the baseline with K {k:g}, seed{'s' * (len(own) > 1)} {figure_style.listed(list(map(str, own)))}"
        for k in sorted({k for k, _ in state.tested_baselines})
        if (own := sorted(seed for other, seed in state.tested_baselines if other == k))
    ]
    times = f"{state.test_uses} time{'s' * (state.test_uses > 1)}"
    used_for = "; ".join([*runs, *seeds, *baselines])
    return sentences.TEST_USES.render(held_out=held_out(state), times=times, used_for=used_for)


def _rounded(name: str, value: float | None) -> float | None:
    return None if value is None else round(value, METRICS[name].digits)
