"""The figures of a study's notes, each with a description made from the data it shows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.comparison.judgement import Judgement
from agent.comparison.matching import Curve, Drawn
from agent.display.formatting import format_difference
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Comparison
from agent.report import figure_style, front_over_k, reference_marks, sentences
from agent.report.figure_style import Figure
from agent.report.front_over_k import Front
from agent.report.references import Shown
from agent.report.story import most_telling
from agent.study.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 21  # runs in a figure: so many differ without their colour
PER_ROW = 4  # secondary metrics side by side
NEAR = 0.1  # of L0, shown to either side of the runs in the enlarged row
CURVES = (("loss", "training loss"), ("l0", "L0 (latents per token)"), ("alive_fraction", "alive fraction"))
STUDY_FIGURES = (
    "training_curves.png",
    "l0_front.png",
    "comparison.png",
    "front.png",
)  # those of every study; an idea may add its own
SCORES = ("explained_variance_centered", "ce_loss_score", "f1", "uniqueness")  # against L0, if measured

# Writes the figures of an idea into a directory, as `draw` of its figures.py does.
Draw = Callable[[Path, Sequence[Run]], list[Figure]]


def write(
    directory: Path,
    runs: Sequence[Run],
    baseline: Curve | None,
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
    draw: Draw | None,
    front: Front | None = None,
    references: Sequence[Shown] = (),
) -> list[Figure]:
    """Write the figures that there is data for as PNG, and return them; those of the idea come last.

    Of very many runs they show the baseline, those that are or may be better, and the newest.
    """
    import matplotlib

    with matplotlib.rc_context(figure_style.STYLE):
        figures = draw_study(runs, baseline, judgements, primary, smallest_effect, front, references)
        for figure in figures:
            assert figure.drawing
            figure_style.save(figure.drawing, directory / figure.name, figure.description)
        shown = most_telling(runs, judgements, MOST_DRAWN)
        return [*figures, *(_count_left_out(draw(directory, shown), runs) if draw else [])]


def draw_study(
    runs: Sequence[Run],
    baseline: Curve | None,
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
    front: Front | None = None,
    references: Sequence[Shown] = (),
) -> list[Figure]:
    """Return the figures of every study that there is data for, drawn in the current style and not saved."""
    shown = most_telling(runs, judgements, MOST_DRAWN)
    trained = [run for run in shown if run.metrics()]
    scored = [run for run in shown if run.counts and run.info and run.info.metric("l0") is not None]
    compared = [(run, run.info.comparison) for run in shown if run.counts and run.info and run.info.comparison]
    curves, l0_front, differences, over_k = STUDY_FIGURES
    figures = []
    if trained:
        figures.append(_training_curves(curves, trained, shown, references))
    if scored:
        figures.append(_l0_front(l0_front, scored, shown, baseline, references))
    if any(comparison.metrics for _, comparison in compared):
        figures.append(_comparison(differences, compared, judgements, primary, smallest_effect, references))
    figures = _count_left_out(figures, runs)
    return [*figures, front_over_k.draw(over_k, front, references)] if front and front.drawable else figures


def _count_left_out(figures: Sequence[Figure], runs: Sequence[Run]) -> list[Figure]:
    """Return figures of the most telling runs, described with the number of those that they leave out."""
    left_out = len(runs) - MOST_DRAWN
    if left_out <= 0:
        return list(figures)
    more = sentences.NOT_DRAWN.render(runs=left_out, drawn=MOST_DRAWN)
    return [replace(figure, description=f"{figure.description} {more}") for figure in figures]


def _training_curves(file: str, shown: Sequence[Run], runs: Sequence[Run], references: Sequence[Shown]) -> Figure:
    from matplotlib.ticker import LogLocator

    figure, (axes,) = figure_style.panels(1, len(CURVES), height=2.0, named=len(shown))
    for panel, (_, title) in zip(axes, CURVES, strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[2].set_ylim(-0.02, 1.04)
    for run in shown:
        rows, name = run.metrics(), figure_style.label(run)
        spacing = max(1, len(rows) // 5)  # rows between two markers
        markers = (3 * run.number % spacing, spacing)  # shifted, so that those of two runs seldom overlap
        for panel, (curve, _) in zip(axes, CURVES, strict=True):
            x = [row.tokens / 1e6 for row in rows]
            y = [math.nan if getattr(row, curve) is None else getattr(row, curve) for row in rows]
            panel.plot(x, y, label=name, linewidth=1.4, markevery=markers, **figure_style.style(run, 3.5))
    low, high = axes[0].get_ylim()
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    low, high = axes[1].get_ylim()
    middle = (low + high) / 2
    axes[1].set_ylim(
        min(low, 0.9 * middle), max(high, 1.1 * middle)
    )  # a constant L0 would fill the panel with rounding
    figure_style.legend(figure, axes[0])
    elsewhere = [f"{each.label} was trained elsewhere" for each in references]
    missing = figure_style.missing(shown, runs, "left no training history", elsewhere)
    return Figure(file, f"{sentences.TRAINING.render()} {sentences.OWN_LOSS.render()}{missing}", figure)


def _l0_front(
    file: str, shown: Sequence[Run], runs: Sequence[Run], baseline: Curve | None, references: Sequence[Shown]
) -> Figure:
    scores = [name for name in SCORES if any(math.isfinite(_value(run, name)) for run in shown)]
    curves = {name: baseline.drawn(name) for name in scores} if baseline else {}
    l0s, labels = [_value(run, "l0") for run in shown], [figure_style.label(run) for run in shown]
    near = ((1 - NEAR) * min(l0s), (1 + NEAR) * max(l0s))
    curve_l0s = [l0 for curve in curves.values() if curve for l0, _ in curve.points]
    drawn = [each for each in references if each.counts]
    enlarged = bool(drawn or curve_l0s) and (bool(drawn) or min(curve_l0s) < near[0] or max(curve_l0s) > near[1])
    named = len(shown) + len(drawn) + (3 if curve_l0s else 0)
    figure, rows = figure_style.panels(2 if enlarged else 1, len(scores), height=2.2, named=named)
    for axes in rows:
        for panel, name in zip(axes, scores, strict=True):
            panel.set(xlabel="L0 (latents per token)", ylabel=f"{METRICS[name].title} (better →)")
            if baseline and (curve := curves[name]):
                _draw_curve(panel, curve, baseline.points_in_words)
            for run, label in zip(shown, labels, strict=True):
                point = {**figure_style.style(run, 6), "linestyle": "none"}
                panel.plot([_value(run, "l0")], [_value(run, name)], label=label, alpha=0.85, **point)
            reference_marks.draw_points(panel, drawn, "l0", name)
            panel.margins(0.08)
    for i, name in enumerate(scores):
        _enlarge(rows[-1][i], name, near, [_value(run, name) for run in shown], curves.get(name))
        if enlarged:
            rows[-1][i].set_title("the rectangle, enlarged", fontsize=8, color=figure_style.GREY, loc="left")
            _outline(rows[0][i], rows[-1][i])
    figure_style.legend(figure, rows[0][0])
    titles = figure_style.listed([METRICS[name].title for name in scores])
    front = sentences.L0_FRONT.render(titles=titles, enlarged=sentences.ENLARGED if enlarged else "")
    absent = [f"{each.label} has no result" for each in references if not each.counts]
    missing = figure_style.missing(shown, runs, "has no result", absent)
    said = f"{_describe_curves(curves, baseline)}{reference_marks.described(drawn)}{missing}"
    return Figure(file, f"{front} {said}", figure)


def _draw_curve(panel: "Axes", curve: Drawn, points_in_words: str) -> None:
    if curve.line:
        l0, values, half_widths = zip(*curve.line, strict=True)
        panel.plot(l0, values, color=figure_style.GREY, linewidth=1.2, label="the baseline")
        if curve.has_band:
            band = {
                "color": figure_style.GREY,
                "alpha": 0.3,
                "linewidth": 0,
                "label": "where 95% of its trainings fall",
            }
            low, high = (
                [value + sign * width for value, width in zip(values, half_widths, strict=True)] for sign in (-1, 1)
            )
            panel.fill_between(l0, low, high, **band)
    points = {"color": figure_style.GREY, "markersize": 4, "markerfacecolor": "white", "label": points_in_words}
    panel.plot(*zip(*curve.points, strict=True), "o", **points)


def _enlarge(panel: "Axes", name: str, near: tuple[float, float], values: list[float], curve: Drawn | None) -> None:
    """Zoom a panel in on the runs and the curve near them, but not below the smallest difference that matters."""
    shown = [value for value in values if math.isfinite(value)]
    for l0, value, half_width in curve.line if curve else ():
        if near[0] <= l0 <= near[1]:
            shown += [value - (half_width or 0.0), value + (half_width or 0.0)]
    panel.set_xlim(near)
    if shown:
        middle, half = (min(shown) + max(shown)) / 2, max(0.6 * (max(shown) - min(shown)), METRICS[name].worth)
        panel.set_ylim(middle - half, middle + half)


def _outline(whole: "Axes", part: "Axes") -> None:
    """Draw the limits of the panel `part` as a rectangle in the panel `whole`."""
    from matplotlib.patches import Rectangle

    (left, right), (low, high) = part.get_xlim(), part.get_ylim()
    whole.add_patch(
        Rectangle((left, low), right - left, high - low, fill=False, edgecolor=figure_style.GREY, linestyle=":")
    )


def _describe_curves(curves: Mapping[str, Drawn | None], baseline: Curve | None) -> str:
    drawn = [curve for curve in curves.values() if curve]
    if not drawn or baseline is None:
        return sentences.NO_CURVE.render()
    if not any(curve.line for curve in drawn):
        return sentences.NO_LINE.render()
    band = sentences.BAND if any(curve.has_band for curve in drawn) else sentences.NO_BAND
    return sentences.BASELINE_LINE.render(shape=baseline.line_in_words, band=band)


def _comparison(
    file: str,
    compared: Sequence[tuple[Run, Comparison]],
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
    references: Sequence[Shown],
) -> Figure:
    shown = [(run, comparison) for run, comparison in compared if comparison.metrics]
    names = [name for name in HEADLINE[1:] if any(name in comparison.metrics for _, comparison in shown)]
    first, *others = sorted(names, key=lambda name: name != primary)
    titles, outcomes, above, below = 2.75, 1.0, 0.28, 0.56  # inches
    beside = [each for each in references if first in each.beside.differences]
    count = len(shown) + len(beside)
    high, low = 0.2 * count + 0.1, 0.15 * count + 0.1  # of the first panel, and of the others
    rows = math.ceil(len(others) / PER_ROW)
    figure = figure_style.page(above + high + below + rows * (above + low + below) + 0.05)
    main = figure_style.add_panel(figure, titles, above, figure_style.WIDTH - titles - outcomes, high)
    _differences(main, first, shown, beside, "difference from the baseline at the run's own L0")
    named = [figure_style.label(run, titles - 0.15) for run, _ in shown]
    figure_style.name_rows(main, named + list(map(reference_marks.label, beside)))
    main.locator_params(axis="x", nbins=4)
    main.set_title(METRICS[first].title + (" (primary metric)" if first == primary else ""), loc="left", weight="bold")
    if first == primary:
        main.set_xlabel(main.get_xlabel() + "   (dotted: the smallest effect worth having)")
        for effect in (-smallest_effect, smallest_effect):
            main.axvline(effect, color=figure_style.GREY, linestyle=":", linewidth=1.2)
        _annotate(main, "outcome", (1, 6), "axes fraction", weight="bold")
        for row, (run, _) in enumerate(shown):
            if judgement := judgements.get(run.number):
                _annotate(
                    main, judgement.outcome, (row, 0), main.get_yaxis_transform(), va="center_baseline", fontsize=8
                )
    columns = math.ceil(len(others) / max(1, rows))
    for i, name in enumerate(others):
        (row, column), cell = divmod(i, columns), (figure_style.WIDTH - 0.6) / columns
        top = above + high + below + row * (above + low + below) + above
        panel = figure_style.add_panel(figure, 0.6 + column * cell, top, cell - 0.4, low)
        _differences(panel, name, shown, beside, "difference")
        short = [*(f"run {run.number}" for run, _ in shown), *(f"ref. {each.number}" for each in beside)]
        figure_style.name_rows(panel, short if column == 0 else [""] * count)
        panel.set_title(METRICS[name].title, loc="left")
        panel.locator_params(axis="x", nbins=3)
        panel.tick_params(axis="x", labelsize=7)
    absent = [f"{each.label} ({each.beside.why_not})" for each in references if each not in beside]
    described = _describe_comparison(compared, [first, *others], primary, smallest_effect, absent)
    return Figure(file, f"{described}{reference_marks.described(beside, ', without an interval')}", figure)


def _annotate(panel: "Axes", text: str, position: tuple[float, float], coordinates: Any, **style: Any) -> None:
    """Write text to the right of a panel; `position` is a height in `coordinates`, and points above that."""
    height, points = position
    panel.annotate(text, (1.04, height), (0, points), coordinates, "offset points", annotation_clip=False, **style)


def _differences(
    panel: "Axes", name: str, shown: Sequence[tuple[Run, Comparison]], references: Sequence[Shown], axis: str
) -> None:
    """Draw the difference of a metric in one row per run, with its interval, and below in one per reference."""
    metric = METRICS[name]
    panel.axvline(0, color=figure_style.GREY, linewidth=1)
    for row, (run, comparison) in enumerate(shown):
        if compared := comparison.metrics.get(name):
            style = {**figure_style.style(run, 4), "elinewidth": 1.2, "capsize": 2.5}
            summary = f"{figure_style.label(run)}: {metric.title} {format_difference(name, compared)}"
            panel.errorbar([compared.difference], [row], xerr=[compared.half_width], label=summary, **style)
    reference_marks.draw_differences(panel, references, name, len(shown))
    panel.margins(x=0.08)
    better = {"higher": "better →", "lower": "← better", "none": ""}[metric.better]
    note = better if metric.decides else "never decides"
    panel.set_xlabel(f"{axis}{f' ({metric.unit})' if metric.unit else ''}\n{note}")


def _describe_comparison(
    compared: Sequence[tuple[Run, Comparison]],
    names: Sequence[str],
    primary: str,
    smallest_effect: float,
    without: Sequence[str],
) -> str:
    absent = [
        f"run {run.number} is not comparable, {comparison.not_comparable}"
        if comparison.not_comparable
        else f"{METRICS[name].title} of run {run.number}, which was not measured on both sides"
        for run, comparison in compared
        for name in (names[:1] if comparison.not_comparable else names)
        if comparison.not_comparable or name not in comparison.metrics
    ] + list(without)
    unit = f" {METRICS[primary].unit}" if METRICS[primary].unit else ""
    about_primary = (
        sentences.ON_PRIMARY.render(title=METRICS[primary].title, smallest=f"{smallest_effect:g}", unit=unit)
        if names[0] == primary
        else sentences.NO_PRIMARY.render(title=METRICS[primary].title)
    )
    not_shown = f" {sentences.NOT_SHOWN.render(runs='; '.join(absent))}" if absent else ""
    return f"{sentences.DIFFERENCES.render()} {about_primary}{not_shown}"


def _value(run: Run, name: str) -> float:
    value = run.info.metric(name) if run.info else None
    return math.nan if value is None else value
