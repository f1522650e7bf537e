"""The figures of a study's notes, each with a description taken from the data it shows.

They are laid out in inches by hand: matplotlib's constrained layout doubles the time a figure takes.
"""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.comparison import ALPHA, Baseline, Judgement, levels, own_level, seed_noise
from agent.display import format_value
from agent.lab.results import HEADLINE, METRICS, Comparison
from agent.study import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow that vanishes on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS: tuple[Any, ...] = ("full", "none", "left")  # one for every seven runs: 21 differ without their colour
GREY = "0.45"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # titles are anybody's, and may hold dollar signs
    "savefig.dpi": 200,
}
# Inches. A page is as wide as a printed one; a panel keeps LEFT and BELOW for the labels of its axes.
WIDTH, LEFT, BELOW, MARGIN, LEGEND_LINE = 7.1, 0.68, 0.52, 0.14, 0.19
NEAR = 0.1  # share of L0 that is shown to either side of the runs
CURVES = (("loss", "training loss"), ("l0", "L0 (latents per token)"), ("alive_fraction", "alive fraction"))
SCORES = ("explained_variance_centered", "ce_loss_score")


@dataclass(frozen=True)
class Figure:
    """A figure that was written, and what it shows."""

    name: str
    description: str
    drawing: "MatplotlibFigure | None" = field(default=None, repr=False, compare=False)


Draw = Callable[[Path, Sequence[Run]], list[Figure]]  # `draw` of an idea's analysis.py: writes into the directory


def write(
    directory: Path,
    runs: Sequence[Run],
    baselines: Sequence[Baseline],
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
    draw: Draw | None,
) -> list[Figure]:
    """Write the figures there is data for, as PNG; last the idea's own."""
    import matplotlib

    trained = [run for run in runs if run.metrics()]
    scored = [run for run in runs if run.counts and run.info and run.info.metric("l0") is not None]
    compared = [(run, run.info.comparison) for run in runs if run.counts and run.info and run.info.comparison]
    figures = []
    with matplotlib.rc_context(STYLE):
        if trained:
            figures.append(_training_curves(directory / "training_curves.png", trained, runs))
        if scored:
            figures.append(_l0_front(directory / "l0_front.png", scored, runs, baselines))
        if any(comparison.metrics for _, comparison in compared):
            path = directory / "comparison.png"
            figures.append(_comparison(path, compared, judgements, primary, smallest_effect))
        return figures + (_own(draw, directory, runs) if draw else [])


def _own(draw: Draw, directory: Path, runs: Sequence[Run]) -> list[Figure]:
    try:
        return draw(directory, runs)
    except Exception as error:  # an idea's code may raise anything, and the notes are to be written all the same
        place = traceback.extract_tb(error.__traceback__)[:2][-1]
        why = f"{type(error).__name__}: {error} ({place.filename} line {place.lineno})"
        return [Figure("the idea's own figures", f"they could not be drawn: {why}.")]


def _training_curves(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> Figure:
    from matplotlib.ticker import LogLocator

    figure, (axes,) = panels(1, len(CURVES), height=2.0, named=len(shown))
    for panel, (_, title) in zip(axes, CURVES, strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[2].set_ylim(-0.02, 1.04)
    told = []
    for run in shown:
        rows = run.metrics()
        apart = max(1, len(rows) // 6)  # between two markers; no two runs have them at the same tokens
        for panel, (name, _) in zip(axes, CURVES, strict=True):
            x = [row.tokens / 1e6 for row in rows]
            y = [math.nan if getattr(row, name) is None else getattr(row, name) for row in rows]
            panel.plot(x, y, label=label(run), linewidth=1.4, markevery=(3 * run.number % apart, apart), **style(run))
        told.append(f"run {run.number} to {rows[-1].tokens:,} tokens{_remark(run)}")
    low, high = axes[1].get_ylim()
    middle = (low + high) / 2
    axes[1].set_ylim(min(low, 0.9 * middle), max(high, 1.1 * middle))  # else rounding of a constant L0 fills the panel
    legend(figure, axes[0])
    return save(
        figure,
        path,
        "training loss (logarithmic), L0 and alive fraction against training tokens, as the training itself recorded "
        f"them on its training batches: {'; '.join(told)}. The loss is each experiment's own: where a run adds terms "
        f"to it, its height does not compare with another run's.{missing(shown, runs, 'left no training history')}",
    )


@dataclass(frozen=True)
class _Curve:
    """A metric of the baseline at its levels, in the order of L0, and the noise about it."""

    l0: list[float]
    values: list[float]
    half_width: float | None  # of the interval that a new training falls into, 95%; None: the noise was not measured

    def fine(self) -> tuple[Any, Any]:
        """Points close together: between two levels the baseline is read linearly in log L0."""
        import numpy as np

        l0 = np.geomspace(self.l0[0], self.l0[-1], 300)
        return l0, np.interp(np.log(l0), np.log(self.l0), self.values)


def _curve(name: str, baselines: Sequence[Baseline]) -> _Curve | None:
    known = [(level.l0, values) for level in levels(baselines) if (values := level.values(name))]
    if not known:
        return None
    noise, seeds = seed_noise(name, baselines), len(own_level(baselines).baselines)
    half_width = None
    if noise is not None:
        from scipy.special import stdtrit  # here because the driver starts sooner without it

        half_width = float(stdtrit(seeds - 1, 1 - ALPHA / 2)) * noise * math.sqrt(1 + 1 / seeds)
    return _Curve([l0 for l0, _ in known], [sum(values) / len(values) for _, values in known], half_width)


def _l0_front(path: Path, shown: Sequence[Run], runs: Sequence[Run], baselines: Sequence[Baseline]) -> Figure:
    curves = {name: _curve(name, baselines) for name in SCORES}
    l0s = [_value(run, "l0") for run in shown]
    near = ((1 - NEAR) * min(l0s), (1 + NEAR) * max(l0s))
    reach = [l0 for curve in curves.values() if curve for l0 in curve.l0]
    enlarged = bool(reach) and (min(reach) < near[0] or max(reach) > near[1])
    figure, rows = panels(2 if enlarged else 1, len(SCORES), height=2.2, named=len(shown) + (3 if reach else 0))
    for axes in rows:
        for panel, name in zip(axes, SCORES, strict=True):
            panel.set(xlabel="L0 (latents per token)", ylabel=f"{METRICS[name].title} (better →)")
            if curve := curves[name]:
                _draw_curve(panel, curve)
            for run in shown:
                panel.plot([_value(run, "l0")], [_value(run, name)], label=label(run), **style(run, 7), alpha=0.85)
            panel.margins(0.08)
    for i, name in enumerate(SCORES):
        _enlarge(rows[-1][i], near, [_value(run, name) for run in shown], curves[name])
        if enlarged:
            rows[-1][i].set_title("enlarged: the rectangle above", fontsize=8, color=GREY, loc="left")
            _outline(rows[0][i], rows[-1][i])
    legend(figure, rows[0][0])
    told = []
    for run in shown:
        values = [f"{METRICS[name].title} {format_value(name, _value(run, name))}" for name in ("l0", *SCORES)]
        told.append(f"run {run.number}: {', '.join(values)}")
    lower = f" The lower row enlarges L0 {near[0]:.1f} to {near[1]:.1f}." if enlarged else ""
    return save(
        figure,
        path,
        "explained variance and CE-loss score against L0, one point for each run that counts, one seed each. "
        f"{_tell_curves(curves, baselines)}{lower} {'; '.join(told)}.{missing(shown, runs, 'has no result')}",
    )


def _draw_curve(panel: "Axes", curve: _Curve) -> None:
    l0, values = curve.fine()
    panel.plot(l0, values, color=GREY, linewidth=1.2, label="the baseline")
    if curve.half_width:
        low, high = values - curve.half_width, values + curve.half_width
        panel.fill_between(l0, low, high, color=GREY, alpha=0.3, linewidth=0, label="95% of its single trainings")
    panel.plot(curve.l0, curve.values, "o", color=GREY, markersize=4, markerfacecolor="white", label="its levels")


def _enlarge(panel: "Axes", near: tuple[float, float], values: list[float], curve: _Curve | None) -> None:
    """Show the runs, and what the curve has in their neighbourhood."""
    shown = [value for value in values if math.isfinite(value)]
    if curve:
        l0, heights = curve.fine()
        inside = heights[(l0 >= near[0]) & (l0 <= near[1])]
        half_width = curve.half_width or 0.0
        shown += [*(inside - half_width), *(inside + half_width)]
    panel.set_xlim(near)
    if shown:
        room = 0.1 * (max(shown) - min(shown)) or 0.01
        panel.set_ylim(min(shown) - room, max(shown) + room)


def _outline(whole: "Axes", part: "Axes") -> None:
    from matplotlib.patches import Rectangle

    (left, right), (low, high) = part.get_xlim(), part.get_ylim()
    whole.add_patch(Rectangle((left, low), right - left, high - low, fill=False, edgecolor=GREY, linestyle=":"))


def _tell_curves(curves: Mapping[str, _Curve | None], baselines: Sequence[Baseline]) -> str:
    drawn = {METRICS[name].title: curve for name, curve in curves.items() if curve}
    if not drawn:
        return "The baseline's curve was not measured, nor the noise."
    known = levels(baselines)
    levelled = ", ".join(f"{level.l0:.1f} (K {level.k})" for level in known)
    widths = [f"{title} ±{curve.half_width:.4f}" for title, curve in drawn.items() if curve.half_width]
    seeds = len(own_level(baselines).baselines)
    band = (
        f"The band about it holds 95% of its single trainings, by {seeds} seeds at K {own_level(baselines).k}: "
        f"{', '.join(widths)}."
        if widths
        else "It has no band, because the noise between seeds was not measured."
    )
    return f"The line is the baseline, read linearly in log L0 between its levels at L0 {levelled}. {band}"


def _comparison(
    path: Path,
    compared: Sequence[tuple[Run, Comparison]],
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
) -> Figure:
    shown = [(run, comparison) for run, comparison in compared if comparison.metrics]
    names = [name for name in HEADLINE[1:] if any(name in comparison.metrics for _, comparison in shown)]
    names.sort(key=lambda name: name != primary)
    first, others = names[0], names[1:]
    titles_width, verdicts_width, top, low = 2.75, 1.05, 0.28, 0.62
    heights = [0.2 * len(shown) + 0.15, 0.15 * len(shown) + 0.15 if others else 0.0]
    figure = page(top + heights[0] + low + (top + heights[1] + low if others else 0.0))
    main = add_panel(figure, titles_width, top, WIDTH - titles_width - verdicts_width, heights[0])
    _differences(main, first, shown)
    main.set_yticks(range(len(shown)), [label(run, titles_width - 0.15) for run, _ in shown])
    main.set_title(METRICS[first].title + (" (primary metric)" if first == primary else ""), loc="left", weight="bold")
    if first == primary:
        for effect in (-smallest_effect, smallest_effect):
            main.axvline(effect, color=GREY, linestyle=":", linewidth=1.2)
        beside: Any = {"transform": main.get_yaxis_transform(), "va": "center"}
        main.text(1.04, 1.0, "verdict", transform=main.transAxes, va="bottom", weight="bold")
        for row, (run, _) in enumerate(shown):
            main.text(1.04, row, judgements[run.number].outcome if run.number in judgements else "", **beside)
    for i, name in enumerate(others):
        cell = (WIDTH - 0.6) / len(others)
        panel = add_panel(figure, 0.6 + i * cell, top + heights[0] + low + top, cell - 0.16, heights[1])
        _differences(panel, name, shown)
        panel.set_yticks(range(len(shown)), [f"run {run.number}" for run, _ in shown] if i == 0 else [""] * len(shown))
        panel.set_title(METRICS[name].title, loc="left")
        panel.locator_params(axis="x", nbins=4)
    return save(figure, path, _tell_comparison(compared, names, judgements, primary, smallest_effect))


def _differences(panel: "Axes", name: str, shown: Sequence[tuple[Run, Comparison]]) -> None:
    """A row for each run: the difference of a metric and its interval."""
    metric = METRICS[name]
    panel.axvline(0, color=GREY, linewidth=1)
    for row, (run, comparison) in enumerate(shown):
        if each := comparison.metrics.get(name):
            panel.errorbar(
                [each.difference], [row], xerr=[each.half_width], capsize=2.5, elinewidth=1.2, **style(run, 5)
            )
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    side = {"higher": "better →", "lower": "← better", "none": ""}[metric.better]
    panel.set_xlabel(f"difference{f' ({metric.unit})' if metric.unit else ''}\n{side}")


def _tell_comparison(
    compared: Sequence[tuple[Run, Comparison]],
    names: Sequence[str],
    judgements: Mapping[int, Judgement],
    primary: str,
    smallest_effect: float,
) -> str:
    told, absent = [], []
    for run, comparison in compared:
        if comparison.not_comparable:
            absent.append(f"run {run.number} is not comparable, {comparison.not_comparable}")
            continue
        judged = judgements.get(run.number)
        verdict = f" ({judged.outcome} on {METRICS[primary].title})" if judged else ""
        differences = []
        for name in names:
            if each := comparison.metrics.get(name):
                difference = format_value(name, each.difference, sign="+")
                differences.append(f"{METRICS[name].title} {difference} ± {format_value(name, each.half_width)}")
            else:
                absent.append(f"{METRICS[name].title} of run {run.number}, which was not measured on both sides")
        told.append(f"run {run.number}{verdict}: {', '.join(differences)}")
    absent += [f"{METRICS[name].title}, measured in no run" for name in HEADLINE[1:] if name not in names]
    unit = f" {METRICS[primary].unit}" if METRICS[primary].unit else ""
    return (
        "each run's difference from the baseline at the run's own L0, with its 95% interval; the line at 0 is the "
        f"baseline. Verdicts are on {METRICS[primary].title} and corrected for the number of runs, as the intervals "
        f"are not; the dotted lines are the smallest effect worth having, {smallest_effect:g}{unit} to either side. "
        f"{'; '.join(told)}.{' Not shown: ' + '; '.join(absent) + '.' if absent else ''}"
    )


def page(height: float) -> "MatplotlibFigure":
    """An empty figure, `height` in inches."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(WIDTH, height))


def add_panel(figure: "MatplotlibFigure", left: float, top: float, width: float, height: float) -> "Axes":
    """A panel at inches from the left and the top of the page, without the labels of its axes."""
    page_height = figure.get_figheight()
    bottom = page_height - top - height
    return figure.add_axes((left / WIDTH, bottom / page_height, width / WIDTH, height / page_height))


def panels(rows: int, columns: int, height: float, named: int) -> "tuple[MatplotlibFigure, list[list[Axes]]]":
    """Equal panels, `height` in inches, with room below them for a legend that names so many things."""
    step, cell = MARGIN + height + BELOW, WIDTH / columns
    figure = page(rows * step + math.ceil(named / 2) * LEGEND_LINE + 0.1)

    def row(i: int) -> "list[Axes]":
        top = MARGIN + i * step
        return [add_panel(figure, j * cell + LEFT, top, cell - LEFT - MARGIN, height) for j in range(columns)]

    return figure, [row(i) for i in range(rows)]


def legend(figure: "MatplotlibFigure", named: "Axes") -> None:
    """One legend below all panels, where it overlaps nothing."""
    handles, labels = named.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, handlelength=3.5, borderaxespad=0.1)


def save(figure: "MatplotlibFigure", path: Path, description: str) -> Figure:
    """Write the picture whole or not at all."""
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return Figure(path.name, description, figure)


def style(run: Run, size: float = 4.5) -> dict[str, Any]:
    """How a run is drawn in every figure; the marker's size in points."""
    cycle, place = divmod(run.number, len(COLOURS))
    return {
        "color": COLOURS[place],
        "linestyle": LINES[place],
        "marker": MARKERS[place],
        "fillstyle": FILLS[cycle % len(FILLS)],
        "markerfacecoloralt": "white",
        "markersize": size,
    }


def label(run: Run, width: float = 2.7) -> str:
    """A run's number and title, and its verdict where it does not count; the title cut to fit `width` inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=STYLE["legend.fontsize"])
    title, remark, end = " ".join(run.state.proposal.title.split()), _remark(run), ""
    while True:
        said = f"run {run.number}: {title}{end}{remark}"
        if not title or text_to_path.get_text_width_height_descent(said, font, ismath=False)[0] / 72 <= width:
            return said
        title, end = title[:-1].rstrip(), "…"


def missing(shown: Sequence[Run], runs: Sequence[Run], why: str) -> str:
    """A sentence on the runs that a figure lacks; empty where it lacks none."""
    told = [f"run {run.number} {why}{_remark(run)}" for run in runs if run not in shown]
    return f" Not shown: {'; '.join(told)}." if told else ""


def _remark(run: Run) -> str:
    return "" if run.info is None or run.counts else f" ({run.info.verdict.name})"


def _value(run: Run, name: str) -> float:
    value = run.info.metric(name) if run.info else None
    return math.nan if value is None else value
