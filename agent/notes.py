"""notes.txt and its figures, rendered from the ledger and the results and from nothing else."""

from pathlib import Path
from typing import Any

from agent import plots
from agent.display import format_value
from agent.ideas import TEMPLATES, strict_templates
from agent.lab.results import HEADLINE, METRICS
from agent.ledger import State
from agent.study import Run, Study

MATCHED_L0 = 0.05  # beyond this relative difference, L0 accounts for more than most changes do


def write(study: Study, state: State) -> None:
    """Write the notes and the figures as things stand now, each file whole or not at all."""
    runs = study.runs(state)
    figures = plots.write(study.notes, runs)
    path = study.notes / "notes.txt"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(render(state, runs, figures))
    temporary.replace(path)


def render(state: State, runs: list[Run], figures: list[plots.Figure], templates: Path = TEMPLATES) -> str:
    """The text of the notes."""
    environment = strict_templates(templates / "notes")
    baseline = runs[0] if runs and runs[0].counts else None
    return environment.get_template("notes.txt.j2").render(
        state=state,
        started=state.started,
        primary=METRICS[state.started.primary_metric] if state.started else None,
        runs=[(run, describe(run, baseline)) for run in runs],
        figures=figures,
        noted=state.last_time.strftime("%Y-%m-%d %H:%M:%S UTC") if state.last_time else "",
    )


def describe(run: Run, baseline: Run | None) -> dict[str, Any]:
    """What the template says of a run that counts: its results, and each prediction beside what came out."""
    if run.info is None or not run.counts:
        return {"results": None, "outcomes": [], "sparsity": ""}
    results = {name: _rounded(name, run.info.metric(name)) for name in HEADLINE}
    if baseline is None or baseline is run:
        return {"results": results, "outcomes": [], "sparsity": ""}
    outcomes = [_outcome(name, predicted, run, baseline) for name, predicted in run.state.proposal.predictions.items()]
    return {"results": results, "outcomes": outcomes, "sparsity": _sparsity(run, baseline)}


def _outcome(name: str, predicted: str, run: Run, baseline: Run) -> str:
    assert run.info
    assert baseline.info
    value, reference = run.info.metric(name), baseline.info.metric(name)
    metric = METRICS[name]
    unit = f" {metric.unit}" if metric.unit else ""
    said = f"{metric.title}: predicted {predicted}"
    if value is None or reference is None:
        return f"{said}; not measured in {'this run' if value is None else 'the baseline'}"
    return (
        f"{said}; {format_value(name, value)}{unit}, baseline {format_value(name, reference)}{unit}, "
        f"difference from baseline {format_value(name, value - reference, sign='+')} "
        "(one seed each; noise not measured)"
    )


def _sparsity(run: Run, baseline: Run) -> str:
    """Whether the two may be read side by side: reconstruction depends on L0 more than on most changes."""
    assert run.info
    assert baseline.info
    l0, reference = run.info.metric("l0"), baseline.info.metric("l0")
    if l0 is None or not reference:
        return "L0 was not measured in both runs: the comparison is not at matched sparsity."
    apart = l0 / reference - 1
    both = f"L0 {format_value('l0', l0)}, baseline {format_value('l0', reference)} ({apart:+.1%})"
    if abs(apart) > MATCHED_L0:
        return f"{both}: more than {MATCHED_L0:.0%} apart, so the comparison is not at matched sparsity."
    return f"{both}: within {MATCHED_L0:.0%}."


def _rounded(name: str, value: float | None) -> float | None:
    return None if value is None else round(value, METRICS[name].digits)
