"""Draw each nested prefix of Matryoshka SAEs alone, what it adds, and the parent features in the first."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measures import DRAWS

from agent.report import figure_style
from agent.study.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

COLOURS = ("#000000", "#0072B2", "#56B4E9", "#E69F00", "#D55E00")  # dark to light to warm, as prefixes have an order
HATCHES = ("", "////", "....", "xxxx", "----")  # for readers and printers without colour


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw the runs that count and have prefixes.

    prefix_reconstruction.png shows each prefix alone, prefix_activity.png the latents that each adds,
    prefix_training.png their share of L0 during training, and on a world prefix_parents.png the parents in the first.
    """
    shown = [run for run in runs if run.counts and run.info and "prefix_0_l0_share" in run.info.analysis]
    if not shown:
        return []
    figures = [_reconstruction_figure(directory, shown, runs), _activity_figure(directory, shown, runs)]
    trained = [run for run in runs if any("prefix_0_l0_share" in row.own for row in run.metrics())]
    if trained:
        figures.append(_training_figure(directory, trained, runs))
    if with_parents := [run for run in shown if _figures(run).get("parents_in_first") is not None]:
        figures.append(_parents_figure(directory, with_parents, runs))
    return figures


def _reconstruction_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    columns = {"EV of the prefix alone": "explained_variance", "EV of random latents": "random_explained_variance"}
    figure, (axes,) = figure_style.panels(1, len(columns), height=2.4, named=len(shown))
    axes[1].sharey(axes[0])
    for run in shown:
        ends, name = run.kept("prefixes.json").get("ends", []), figure_style.label(run)
        values = {kind: _values(run, f"prefix_{{}}_{kind}", len(ends)) for kind in columns.values()}
        values["random_explained_variance"][-1:] = values["explained_variance"][-1:]  # all latents are all latents
        for panel, kind in zip(axes, columns.values(), strict=True):
            panel.plot(ends, values[kind], label=name, linewidth=1.2, alpha=0.85, **figure_style.style(run, 5))
    for panel, title in zip(axes, columns, strict=True):
        panel.axhline(0, color=figure_style.GREY, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="latents", ylabel=title)
    figure_style.legend(figure, axes[0])
    return figure_style.save(
        figure,
        directory / "prefix_reconstruction.png",
        "explained variance (EV) of each prefix alone (left) and of as many random latents of the same SAE (right, "
        f"mean of {DRAWS} draws), against the number of latents (logarithmic). Compare the panels at one number of "
        "latents; both end with the whole SAE." + figure_style.missing(shown, runs, "has no measured prefixes"),
    )


def _activity_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    counts = [sum(name.endswith("_l0_share") for name in _figures(run)) for run in shown]
    counted = range(max(counts))
    columns = {  # what a panel shows, its axis, and the measure of each prefix
        ("share of L0", "fraction of L0"): "prefix_{}_l0_share",
        ("alive fraction", "fraction of the latents it adds"): "prefix_{}_alive_fraction",
    }
    height, thickness = 0.42 * len(shown) + 0.05, 0.8 / len(counted)
    figure, axes = _rows(shown, len(columns), height)
    for panel, ((title, axis), measured) in zip(axes, columns.items(), strict=True):
        values = [_values(run, measured, len(counted)) for run in shown]
        for i in counted:
            rows = [row + (i - (count - 1) / 2) * thickness for row, count in enumerate(counts)]
            look = {"color": COLOURS[i], "hatch": HATCHES[i], "edgecolor": "white", "linewidth": 0}
            name = f"prefix {i}{'' if i else ' (smallest)'}"
            panel.barh(rows, [shares[i] for shares in values], thickness, label=name, **look)
        panel.axvline(0, color=figure_style.GREY, linewidth=1)
        panel.set_title(title, loc="left")
        panel.set_xlabel(axis)
    figure_style.legend(figure, axes[0], columns=len(counted))
    return figure_style.save(
        figure,
        directory / "prefix_activity.png",
        "the latents that each prefix adds to the one before it, smallest prefix first, in a row for each run: their "
        "share of L0, and the fraction that is alive. Compare a run's bars: no latent counts in two of them."
        + figure_style.missing(shown, runs, "has no measured prefixes"),
    )


def _training_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    figure, (axes,) = figure_style.panels(1, 2, height=2.0, named=len(shown))
    for run in shown:
        rows, label = run.metrics(), figure_style.label(run)
        ends = [name for name in rows[0].own if name.startswith("prefix_")]
        apart = max(1, len(rows) // 5)
        for panel, name in zip(axes, (ends[0], ends[-1]), strict=True):
            shares = [math.nan if (share := row.own.get(name)) is None else share for row in rows]
            marked = (3 * run.number % apart, apart)
            x = [row.tokens / 1e6 for row in rows]
            panel.plot(x, shares, label=label, linewidth=1.4, markevery=marked, **figure_style.style(run, 3.5))
    for panel, title in zip(axes, ("L0 share, smallest prefix", "L0 share, added by the largest"), strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
        panel.set_ylim(bottom=0)
    figure_style.legend(figure, axes[0])
    return figure_style.save(
        figure,
        directory / "prefix_training.png",
        "the share of L0 in the smallest prefix, and the share that the largest adds to the one before it, against "
        "tokens, as training recorded them on its own batches. Prefixes in between have the rest, so the two need not "
        "add up to 1." + figure_style.missing(shown, runs, "left no history of its prefixes"),
    )


def _parents_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    marks = {
        "parents_in_first": ("parents in the first prefix", "o", "#0072B2"),
        "parents_in_first_by_chance": ("expected by chance", "|", "#000000"),
        "parents_in_first_by_rate": ("if it held the most frequent features", "D", "#D55E00"),
    }
    figure, (panel,) = _rows(shown, 1, 0.3 * len(shown) + 0.05)
    for name, (label, marker, colour) in marks.items():
        x = [_figures(run)[name] or 0.0 for run in shown]
        look: dict[str, Any] = {
            "color": colour,
            "markerfacecolor": colour if marker == "o" else "none",
            "markersize": 8,
        }
        panel.plot(x, range(len(shown)), marker, label=label, **look)
    panel.set_xlim(left=0)
    panel.set_xlabel("fraction of the parents that have a latent")
    figure_style.legend(figure, panel, columns=3)
    return figure_style.save(
        figure,
        directory / "prefix_parents.png",
        "of the world's parent features that have a latent, the fraction that has it in the first prefix, a row for "
        "each run. If it is above chance but not above a prefix of the most frequent features, the order is by firing "
        "rate, not by hierarchy." + figure_style.missing(shown, runs, "has no parents measured in a first prefix"),
    )


def _rows(shown: Sequence[Run], columns: int, height: float) -> "tuple[MatplotlibFigure, list[Axes]]":
    """Return panels side by side with a row for each run, named on the left."""
    titles, above = 2.75, 0.28
    figure, cell = figure_style.page(above + height + 0.75), (figure_style.WIDTH - titles) / columns
    axes = [figure_style.add_panel(figure, titles + i * cell, above, cell - 0.25, height) for i in range(columns)]
    for i, panel in enumerate(axes):
        figure_style.name_rows(panel, [figure_style.label(run, titles - 0.15) if i == 0 else "" for run in shown])
        panel.grid(visible=False, axis="y")
        panel.locator_params(axis="x", nbins=4)
    return figure, axes


def _figures(run: Run) -> Mapping[str, float | None]:
    assert run.info
    return run.info.analysis


def _values(run: Run, name: str, count: int) -> list[float]:
    """Return a measure of each prefix, NaN where it is missing; `name` has a place for the prefix's number."""
    values = [_figures(run).get(name.format(i)) for i in range(count)]
    return [math.nan if value is None else value for value in values]
