"""notes.txt and its figures, rendered from the ledger and the results and from nothing else."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent import TEMPLATES
from agent.comparison import judgement, matching
from agent.comparison.judgement import Goal, Judgement, Outcome, judgements
from agent.display.formatting import companion_difference, format_difference, format_value, remarks
from agent.ideas import Direction, strict_templates
from agent.lab.defaults import is_world
from agent.lab.files import MIB, read_plain, remove_unless_plain, write_atomically
from agent.lab.metrics import HEADLINE, METRICS, Metric
from agent.lab.results import Comparison, Expectation, FinalInfo, Floor, Measure, MetricComparison, headline
from agent.lab.visible import one_line
from agent.report import plots, prose, sentences
from agent.report.idea_analysis import Analysis
from agent.report.prose import Facts
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

SENTINELS = {
    "permuted decoder": "the baseline with its decoder's rows permuted",
    "identity": "the identity",
    "random": "a random untrained SAE",
}
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


def write(
    study: Study, state: State, skipped: Sequence[tuple[str, str]] = (), analysis: Analysis = NO_ANALYSIS
) -> None:
    """Write the notes and the figures as things stand now, each file whole or not at all.

    Notes that were edited by hand since they were written are kept as notes_edited_<hash>.txt.
    """
    study.notes.mkdir(parents=True, exist_ok=True)  # a study may have been moved without them
    runs = study.load_runs(state)
    judged = judgements(runs, state)
    goal = (state.started.primary_metric, state.started.smallest_effect)
    figures = plots.write(study.notes, runs, state.baselines, judged, *goal, analysis.draw)
    path = study.notes / "notes.txt"
    remove_unless_plain(path)
    if path.exists() and edited((before := read_plain(path, MOST_BYTES)).decode(errors="replace")):
        name = f"notes_edited_{hashlib.sha256(before).hexdigest()[:8]}.txt"
        write_atomically(study.notes / name, before)
    body = render(state, runs, judged, figures, skipped, analysis.measures)
    write_atomically(path, body + CHECKSUM + _checksum(body) + "\n")


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
    figures: list[plots.Figure],
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
        held_out="samples" if is_world(state.started.fixed.model) else "text",
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
        lines.append(
            "The code that compares runs and writes these notes was changed between two drivers of this study."
        )
    if state.sentinels:
        passed = [f"{_sentinel(each)} is {each.expected}" for each in state.sentinels if each.held]
        lines.append(f"The evaluation was checked on SAEs whose scores are known: {'; '.join(passed)}.")
    lines += [
        f"THE EVALUATION IS BROKEN: {_sentinel(each)} should be {each.expected} and is "
        f"{'not finite' if each.found is None else format(each.found, '.4g')}."
        for each in state.broken
    ]
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
        f"effect worth having; a run is called better only if {judgement.FRESH_SEEDS} fresh seeds confirm it.",
    ]


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
            measure=measure.title, value=f"{run.info.analysis[name]:.{measure.digits}f}", unit=_unit(measure)
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
    return RunSummary(results, _outcome(run, state, judged), lines, random_sae, own_measures)


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


def _unit(metric: Measure | Metric) -> str:
    return f" {metric.unit}" if metric.unit else ""


def _outcome(run: Run, state: State, judged: Judgement | None) -> str:
    """State the outcome on the primary metric, with the figures behind it."""
    assert run.info
    name, comparison = state.started.primary_metric, run.info.comparison
    metric = METRICS[name]
    if comparison is None or judged is None or judged.p is None:
        why = comparison.not_comparable if comparison else None
        return sentences.NOT_COMPARABLE.render(why=why or f"{metric.title} was not measured on both sides")
    smallest, goal = f"{state.started.smallest_effect:g}", Goal.of(state.started)
    lost = judgement.companion_loss(name, comparison)
    if judged.outcome == "within noise":
        smallest = format_value(name, judged.smallest_detectable)
    return sentences.OUTCOMES[judged.outcome].render(
        title=metric.title,
        difference=format_difference(name, comparison.metrics[name]),
        unit=_unit(metric),
        companion=companion_difference(name, comparison),
        l0=format_value("l0", run.info.metric("l0")),
        p=f"{judged.p:.2g}",
        fresh_seeds=_fresh_seeds(name, judged, state.replicates.get(run.number, {})),
        asides=_asides(name, judged, comparison),
        companion_title=METRICS[metric.companion].title if metric.companion else "",
        beyond=f" by more than {goal.most_lost:g}{'' if lost > goal.most_lost else ' in a fresh seed'}",
        smallest=smallest,
    )


def _asides(name: str, judged: Judgement, comparison: Comparison) -> str:
    """State beside an outcome what the difference comes with: a loss of the companion metric that it may have."""
    companion, lost = METRICS[name].companion, judgement.companion_loss(name, comparison)
    if not lost or judged.outcome == "not better":
        return ""
    return sentences.COMPANION_LOST.render(title=METRICS[companion].title, value=format_value(companion, lost))


def _fresh_seeds(name: str, judged: Judgement, replicates: dict[int, Comparison]) -> str:
    """State what the fresh seeds of a winner showed of the primary metric, or which cannot be compared."""
    if judged.confirmation:
        mean = format_difference(name, judged.confirmation)
        return f"{judgement.FRESH_SEEDS} fresh seeds differ by {mean}{_unit(METRICS[name])} on average"
    return "; ".join(
        f"fresh seed {seed} cannot be compared ({replicate.not_comparable or 'not measured on both sides'})"
        for seed, replicate in replicates.items()
        if name not in replicate.metrics
    )


def _metric_line(
    name: str, compared: MetricComparison | None, predicted: Direction | None, outcome: Outcome | None
) -> str:
    """Compare a metric with the baseline's and with its prediction; neither says more than the outcome does."""
    metric = METRICS[name]
    never_decides = "" if metric.decides else sentences.NEVER_DECIDES
    prediction = ""
    if predicted:
        result = judgement.prediction_outcome(name, predicted, compared)
        if outcome in ("within noise", "unconfirmed", "not confirmed") and (predicted, result) != ("same", "held"):
            result = outcome
        prediction = sentences.PREDICTION.render(predicted=predicted, prediction_outcome=result)
    if compared is None:
        return sentences.NOT_MEASURED.render(title=metric.title, never_decides=never_decides, prediction=prediction)
    noise = outcome == "within noise" or judgement.observed_direction(compared) == "same"
    return sentences.COMPARED.render(
        title=metric.title,
        never_decides=never_decides,
        value=format_value(name, compared.value),
        unit=_unit(metric),
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


def _rounded(name: str, value: float | None) -> float | None:
    return None if value is None else round(value, METRICS[name].digits)
