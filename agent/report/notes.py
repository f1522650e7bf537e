"""notes.txt and its figures, rendered from the ledger and the results and from nothing else."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agent import TEMPLATES
from agent.comparison import judgement, matching
from agent.comparison.judgement import Judgement, Outcome, judgements
from agent.display.formatting import companion_difference, format_difference, format_value, remarks
from agent.ideas import strict_templates
from agent.lab.defaults import is_world
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Compared, Comparison, Expectation, FinalInfo, Floor, Measure, headline
from agent.report import plots, prose
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
CHECKSUM = "Checksum of these notes, by which a change by hand is noticed: "


def write(
    study: Study, state: State, skipped: Sequence[tuple[str, str]] = (), analysis: Analysis = NO_ANALYSIS
) -> None:
    """Write the notes and the figures as things stand now, each file whole or not at all.

    Notes that were changed by hand since they were written are kept beside the new ones.
    """
    study.notes.mkdir(parents=True, exist_ok=True)  # a study may have been moved without them
    runs = study.load_runs(state)
    judged = judgements(runs, state) if state.started else {}
    figures = []
    if state.started:
        goal = (state.started.primary_metric, state.started.smallest_effect)
        figures = plots.write(study.notes, runs, state.baselines, judged, *goal, analysis.draw)
    path = study.notes / "notes.txt"
    if path.exists() and edited(found := path.read_text(encoding="utf-8", errors="replace")):
        (study.notes / f"notes_edited_{hashlib.sha256(found.encode()).hexdigest()[:8]}.txt").write_text(
            found, encoding="utf-8"
        )
    body = render(state, runs, judged, figures, skipped, analysis.measures)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(body + CHECKSUM + _checksum(body) + "\n", encoding="utf-8")
    temporary.replace(path)


def edited(notes: str) -> bool:
    """Whether notes are not as they were written."""
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
    """The text of the notes."""
    environment = strict_templates(templates / "notes")
    environment.filters["flow"] = flow
    return environment.get_template("notes.txt.j2").render(
        state=state,
        started=state.started,
        primary=METRICS[state.started.primary_metric] if state.started else None,
        ground=describe_ground(state),
        remarks=remarks(run.info for run in runs if run.info),
        measures=measures if measures and any(run.info and run.info.analysis for run in runs) else {},
        runs=[
            (run, describe(run, state, judged.get(run.number), measures or {}) | written(run, state, runs, judged))
            for run in runs
        ],
        tested=[describe_test(run, state) for run in runs if run.number in state.tested],
        held_out="samples" if state.started and is_world(state.started.fixed.model) else "text",
        figures=figures,
        skipped=skipped,
        noted=_at(state.last_time),
        interrupted=_at(state.interrupted),
    )


def written(run: Run, state: State, runs: list[Run], judged: dict[int, Judgement]) -> dict[str, str]:
    """What was written of a run, before it and, by a language model, after it; its placeholders stand for results."""
    proposal = run.state.proposal
    texts = {"description": proposal.description, "why": proposal.why, "described": run.state.described or ""}
    if state.started and state.started.language_model and not run.state.by_hand:
        facts = Facts(runs, judged, state.started.primary_metric)
        texts = {name: prose.render(text, facts) for name, text in texts.items()}
    return texts


def flow(text: str) -> str:
    """Each paragraph on one line, however it was broken where it was written."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _at(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC") if time else ""


def describe_ground(state: State) -> list[str]:
    """What differences are judged against, as far as it has been measured."""
    said = []
    if state.sentinels:
        held = [f"{_named(each)} is {each.expected}" for each in state.sentinels if each.held]
        said.append(f"The evaluation was tried on SAEs whose scores are known: {'; '.join(held)}.")
    said += [
        f"THE EVALUATION IS BROKEN: {_named(each)} should be {each.expected} and is "
        f"{'not finite' if each.found is None else format(each.found, '.4g')}."
        for each in state.broken
    ]
    said += [
        f"The baseline with K {k:g}, seed {seed} has no figures: {verdict.name} ({verdict.evidence})."
        for (k, seed), verdict in state.baselines_tried.items()
        if not verdict.ok
    ]
    own = matching.reseeded_level(state.baselines) if state.baselines else None
    if own is None or len(own.baselines) < 2:
        return [*said, "The noise between seeds was not measured, so no difference below is a finding."]
    spreads = []
    for name in HEADLINE:
        values = own.values(name)
        if values and len(values) > 1:
            mean, deviation = matching.mean_and_deviation(values)
            spreads.append(f"{METRICS[name].title} {format_value(name, mean)} ± {deviation:.2g}")
    ks = ", ".join(f"{level.k:g}" for level in matching.levels(state.baselines))
    return [
        *said,
        f"The baseline was trained with {len(own.baselines)} seeds at K {own.k:g}; mean and standard deviation: "
        f"{'; '.join(spreads)}. Baselines were trained at K {ks}.",
        "A run is compared with the baseline at the run's own L0, read between two of these within "
        f"{matching.MATCH:.0%} of it. Intervals are 95% intervals of the difference. On the primary metric a "
        "difference counts when it is visible after Holm's correction over the runs and at least the smallest "
        f"difference worth having; better is only said of a run that {judgement.FRESH_SEEDS} fresh seeds confirm.",
    ]


def _named(expectation: Expectation) -> str:
    metric = METRICS[expectation.metric].title if expectation.metric in METRICS else expectation.metric
    return f"{metric} of {SENTINELS.get(expectation.sentinel, expectation.sentinel)}"


def describe(run: Run, state: State, judged: Judgement | None, measures: dict[str, Measure]) -> dict[str, Any]:
    """What the template says of a run: its results, its comparison, and what became of the predictions."""
    told: dict[str, Any] = {"results": None, "floor": "", "judged": "", "compared": [], "own": ""}
    if run.info is None or not run.counts:
        return told
    told["results"] = {name: _rounded(name, run.info.metric(name)) for name in headline([run.info])}
    if floor := run.info.floor:
        told["floor"] = f"A random untrained SAE at L0 {floor.k} scores: {_floor(floor, run.info)}."
    told["own"] = "; ".join(
        f"{measure.title} {run.info.analysis[name]:.{measure.digits}f}{' ' + measure.unit if measure.unit else ''}"
        for name, measure in measures.items()
        if run.info.analysis.get(name) is not None
    )
    if run.number == 0:
        return told
    found = run.info.comparison
    compared = found.metrics if found else {}
    told["judged"] = _judged(run, state, judged)
    assert state.started
    verdicts: dict[str, Outcome] = {state.started.primary_metric: judged.outcome} if judged else {}
    told["compared"] = [
        _compared(name, compared.get(name), run.state.proposal.predictions.get(name), verdicts.get(name))
        for name in HEADLINE
        if found and not found.not_comparable and (name in compared or name in run.state.proposal.predictions)
    ]
    return told


def _floor(floor: Floor, info: FinalInfo) -> str:
    """The figures of the random SAE, by the titles of the run's."""
    figures = {
        "explained_variance_centered": floor.explained_variance_centered,
        "ce_loss_score": floor.ce_loss_score,
        **{name: floor.truth.get(name) for name in ("f1", "uniqueness", "mcc")},
        "probing_auc_5": info.probing.random_auc[5] if info.probing else None,
        "forgetting": info.metric("forgetting_random"),
    }
    return ", ".join(f"{METRICS[n].title} {format_value(n, v)}" for n, v in figures.items() if v is not None)


def _judged(run: Run, state: State, judged: Judgement | None) -> str:
    """The verdict on the primary metric, with the figures behind it."""
    assert run.info
    assert state.started
    metric, found = METRICS[state.started.primary_metric], run.info.comparison
    if found is None or judged is None or judged.p is None:
        why = found.not_comparable if found else None
        return f"Not comparable: {why or metric.title + ' was not measured on both sides'}."
    compared, name = found.metrics[state.started.primary_metric], state.started.primary_metric
    unit = f" {metric.unit}" if metric.unit else ""
    differs = (
        f"{metric.title} differs by {format_difference(name, compared)}{unit}{companion_difference(name, found)} from the baseline "
        f"at L0 {format_value('l0', run.info.metric('l0'))} (p {judged.p:.2g} after Holm's correction)"
    )
    worth = f"the smallest difference worth having, {state.started.smallest_effect:g}{unit}"
    fresh = _fresh(name, judged, state.replicates.get(run.number, {}))
    match judged.outcome:
        case "better":
            return f"Better (confirmed): {differs}, and {fresh}."
        case "unconfirmed":
            return f"Seems better, and is not confirmed by fresh seeds yet: {differs}."
        case "not confirmed":
            return f"Not confirmed: {differs}, but {fresh}."
        case "not better":
            return f"Not better: {differs}, while {METRICS[metric.companion].title} is worse."
        case "worse":
            return f"Worse: {differs}."
        case "negligible":
            return f"Too small to matter: {differs}, less than {worth}."
        case _:
            seen = format_value(name, judged.smallest_detectable)
            return f"Within noise: {differs}; a difference of {seen}{unit} could have been seen."


def _fresh(name: str, judged: Judgement, replicates: dict[int, Comparison]) -> str:
    """What the fresh seeds of a winner showed of the primary metric."""
    if judged.confirmation:
        unit = f" {METRICS[name].unit}" if METRICS[name].unit else ""
        mean = format_difference(name, judged.confirmation)
        return f"{judgement.FRESH_SEEDS} fresh seeds differ by {mean}{unit} on average"
    told = [
        f"fresh seed {seed} cannot be compared ({each.not_comparable or 'not measured on both sides'})"
        for seed, each in replicates.items()
        if name not in each.metrics
    ]
    return "; ".join(told)


def _compared(name: str, compared: Compared | None, predicted: Any, judged: Outcome | None) -> str:
    """A metric beside the baseline's, and what became of its prediction; neither says more than its verdict."""
    metric = METRICS[name]
    unit = f" {metric.unit}" if metric.unit else ""
    said = f"{metric.title}{'' if metric.decides else ' (never decides)'}: "
    own = " as it was trained" if name == "l0" else ""  # all else is read at the run's L0
    if compared:
        said += (
            f"{format_value(name, compared.value)}{unit}, baseline{own} {format_value(name, compared.reference)}, "
            f"difference {format_difference(name, compared)}"
            + (
                " (within noise)"
                if judged == "within noise" or judgement.observed_direction(compared) == "same"
                else ""
            )
        )
    else:
        said += "not measured on both sides"
    if predicted:
        came_out = judgement.prediction_outcome(name, predicted, compared)
        if judged in ("within noise", "unconfirmed", "not confirmed") and (predicted, came_out) != ("same", "held"):
            came_out = judged
        said += f"; predicted {predicted}: {came_out}"
    return said


def describe_test(run: Run, state: State) -> str:
    """A run's figures on the text that no choice was made on."""
    tested = state.tested[run.number]
    measured = [
        f"{METRICS[name].title} {format_value(name, tested.figures[name])}"
        for name in HEADLINE
        if tested.figures.get(name) is not None
    ]
    return f"run {run.number} ({run.state.proposal.title}): {', '.join(measured) or f'not scored ({tested.why_not})'}"


def _rounded(name: str, value: float | None) -> float | None:
    return None if value is None else round(value, METRICS[name].digits)
