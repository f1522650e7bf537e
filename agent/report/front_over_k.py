"""The front over K of a confirmed winner and the baseline: a small table for the notes, and a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.comparison.front import winner, with_k
from agent.comparison.judgement import Judgement
from agent.display.formatting import format_value
from agent.lab.metrics import METRICS
from agent.report import figure_style, reference_marks, sentences
from agent.report.figure_style import Figure
from agent.report.layout import aligned, paragraph
from agent.report.outcome import held_out
from agent.report.references import Shown
from agent.study.runs import Run
from agent.study.state import State

Figures = Mapping[str, float | None]  # by metric


@dataclass(frozen=True)
class Point:
    """The figures of the winner and of the baseline at one K; empty if there are none, and why."""

    k: float
    run: Figures
    baseline: Figures
    why_not: str = ""


@dataclass(frozen=True)
class Front:
    """A run and the baseline at several K."""

    run: Run
    primary: str
    points: list[Point]

    @property
    def drawable(self) -> bool:
        """True if there is a point to show."""
        return any(point.run or point.baseline for point in self.points)


def of(state: State, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> Front | None:
    """Return the front of a study as far as it is measured; None if none was asked for, or none can be made."""
    started = state.started
    best = winner(runs, judged, started.primary_metric) if started.ks else None
    if best is None or with_k(best.state.proposal.source, started.ks[0]) is None:
        return None
    return Front(best, started.primary_metric, [_point(state, best, k) for k in started.ks])


def _point(state: State, run: Run, k: float) -> Point:
    seed = state.started.fixed.seed
    baseline = next((each.figures for each in state.baselines if (each.k, each.seed) == (k, seed)), {})
    verdict, scored = state.baselines_tried.get((k, seed)), state.front.get((run.number, k))
    failures = [
        f"run {run.number} has no result at K {k:g} ({scored.why_not})" if scored and scored.why_not else "",
        f"the baseline has no result at K {k:g} ({verdict.name})" if verdict and not verdict.ok else "",
        f"K {k:g} was not trained" if scored is None or verdict is None else "",
    ]
    return Point(k, scored.figures if scored else {}, baseline, "; ".join(filter(None, failures)))


def summary(state: State, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> str:
    """Return in a sentence what the front is of, or why there is none; empty if none was asked for."""
    if not state.started.ks:
        return ""
    best = winner(runs, judged, state.started.primary_metric)
    if best is None:
        return f"{sentences.NO_FRONT.capitalize()}." if state.ended else "A confirmed winner's follows at the end."
    front = of(state, runs, judged)
    if front is None:
        return f"The experiment of run {best.number} has no constant K to change: no front."
    missing = "; ".join(point.why_not for point in front.points if point.why_not)
    said = sentences.FRONT.render(run=best.number, held_out=held_out(state))
    return f"{said} Missing: {missing}." if missing else said


def lines(state: State, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> list[str]:
    """Return the lines of the notes on the front: a sentence, and a table if there is one."""
    said, front = summary(state, runs, judged), of(state, runs, judged)
    if front is None or not front.drawable:
        return [paragraph(said)] if said else []
    title, number = METRICS[front.primary].title, front.run.number
    columns = ("K", f"L0 of run {number}", title, "L0 of the baseline", title)

    def cells(figures: Figures) -> list[str]:
        return [format_value(name, figures.get(name)) for name in ("l0", front.primary)]

    rows = [(f"{point.k:g}", *cells(point.run), *cells(point.baseline)) for point in front.points]
    return [paragraph(said), *aligned(columns, rows)]


def draw(file: str, front: Front, references: Sequence[Shown] = ()) -> Figure:
    """Draw the primary metric of the run and of the baseline against L0, beside SAEs that were trained elsewhere."""
    from matplotlib.ticker import NullLocator

    metric = METRICS[front.primary]
    ticks = [l0 for point in front.points if (l0 := point.baseline.get("l0") or point.run.get("l0"))]
    others = [each for each in references if each.counts]
    figure, ((panel,),) = figure_style.panels(1, 1, height=2.6, named=2 + len(others))
    grey = {"color": figure_style.GREY, "marker": "o", "markersize": 5, "markerfacecolor": "white"}
    drawn = (
        ([point.baseline for point in front.points], {**grey, "label": "the baseline"}),
        (
            [point.run for point in front.points],
            {**figure_style.style(front.run, 5), "label": figure_style.label(front.run)},
        ),
    )
    for figures, style in drawn:
        x, y = ([_number(each.get(name)) for each in figures] for name in ("l0", front.primary))
        panel.plot(x, y, linewidth=1.4, **style)
    reference_marks.draw_points(panel, others, "l0", front.primary)
    better = "← better" if metric.better == "lower" else "better →"
    panel.set(xscale="log", xlabel="L0 (latents per token, logarithmic)", ylabel=f"{metric.title} ({better})")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(ticks, [f"{l0:.3g}" for l0 in ticks])
    panel.margins(0.08)
    figure_style.legend(figure, panel)
    said = sentences.FRONT_PLOT.render(title=metric.title, run=front.run.number)
    return Figure(file, f"{said}{reference_marks.described(others)}", figure)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
