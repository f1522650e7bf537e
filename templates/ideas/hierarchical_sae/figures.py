"""Draw hierarchical SAEs: the training history of each tier, how it is used and what it is composed of."""

import math
from collections.abc import Sequence
from pathlib import Path

from measures import TIERS

from agent.lab.verdicts import MetricsRow
from agent.report import figure_style
from agent.study.runs import Run

TIER_COLOURS = ("#000000", "#0072B2", "#56B4E9", "#E69F00")  # dark to light, as tiers have an order
TIER_HATCHES = ("", "////", "....", "xxxx")  # for readers and printers without colour


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw training_metrics.png, and tier_activity_comparison.png of the runs that count and have tiers."""
    figures = []
    if trained := [run for run in runs if run.metrics()]:
        figures.append(training_metrics(directory / "training_metrics.png", trained, runs))
    if tiered := [run for run in runs if run.counts and run.info and "tier_0_l0_share" in run.info.analysis]:
        figures.append(tier_activity(directory / "tier_activity_comparison.png", tiered, runs))
    return figures


def training_metrics(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    """Draw the training history against steps, with a panel for each tier in the lower row."""
    from matplotlib.ticker import LogLocator

    tiers = [i for i in TIERS if any(f"tier_{i}_l0" in row.own for run in shown for row in run.metrics())]
    curves = {"L2 (mse per dimension)": "mse", "sparsity (L0)": "l0", "total loss": "loss"}
    lower = {f"active latents of tier {i}": f"tier_{i}_l0" for i in tiers}
    figure, rows = figure_style.panels(2 if tiers else 1, 3, height=1.6, named=len(shown))
    panels = dict(zip([*curves, *lower], [panel for row in rows for panel in row], strict=False))
    for panel in [panel for row in rows for panel in row][len(panels) :]:
        panel.remove()
    for run in shown:
        history, name = run.metrics(), figure_style.label(run)
        apart = max(1, len(history) // 5)  # rows between two markers
        marked = {"markevery": (3 * run.number % apart, apart), "linewidth": 1.2}
        for title, panel in panels.items():
            values = [value_in(row, (curves | lower)[title]) for row in history]
            if title in curves or not all(map(math.isnan, values)):
                panel.plot([row.step for row in history], values, label=name, **marked, **figure_style.style(run, 3))
    for title, panel in panels.items():
        panel.set(xlabel="steps", ylabel=title)
        panel.locator_params(axis="x", nbins=4)
        if curves.get(title) in ("mse", "loss"):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("")
            low, high = panel.get_ylim()
            subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 300 * low else (1,)
            panel.yaxis.set_major_locator(LogLocator(subs=subs))
        else:
            panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
    figure_style.legend(figure, rows[0][0])
    below = "; below, the active latents of each tier" if tiers else ""
    return figure_style.save(
        figure,
        path,
        f"mean squared error, L0 and total loss against steps, error and loss logarithmic{below}."
        + figure_style.missing(shown, runs, "left no training history"),
    )


def value_in(row: MetricsRow, name: str) -> float:
    """Return a figure of a row of the training history, NaN if it has none."""
    value = row.own.get(name) if name.startswith("tier_") else getattr(row, name)
    return math.nan if value is None else value


def tier_activity(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    """Draw each tier's share of the latents and of L0, its alive fraction, and how the tier below composes it."""
    measured = [(run, run.info.analysis) for run in shown if run.info]
    tiers = [i for i in TIERS if any(f"tier_{i}_l0_share" in analysis for _, analysis in measured)]
    columns = {  # what a panel shows, its axis, and the measure of each tier
        ("share of the latents", "fraction of all"): [f"tier_{i}_latents_share" for i in tiers],
        ("share of L0", "fraction of L0"): [f"tier_{i}_l0_share" for i in tiers],
        ("alive fraction", "fraction of the tier"): [f"tier_{i}_alive_fraction" for i in tiers],
        ("composition R²", "R² of the learned map"): ["", *(f"composition_{i - 1}_r2" for i in tiers[1:])],
        ("composition coverage", "above other tokens"): ["", *(f"composition_{i - 1}_coverage" for i in tiers[1:])],
        ("NMI with the part", "above other parts"): ["", *(f"composition_{i - 1}_nmi" for i in tiers[1:])],
    }
    columns = {
        titles: names
        for titles, names in columns.items()
        if any(analysis.get(name) is not None for name in names for _, analysis in measured)
    }
    left, above, height, below, thickness = 2.75, 0.28, 0.36 * len(measured) + 0.05, 0.5, 0.8 / len(tiers)
    rows, cell = math.ceil(len(columns) / 3), (figure_style.WIDTH - left) / 3
    figure = figure_style.page(rows * (above + height + below) + 0.25)
    for place, ((title, axis), names) in enumerate(columns.items()):
        row, column = divmod(place, 3)
        top = above + row * (above + height + below)
        panel = figure_style.add_panel(figure, left + column * cell, top, cell - 0.25, height)
        for i, name in enumerate(names):
            values = [math.nan if (value := analysis.get(name)) is None else value for _, analysis in measured]
            places = [line + (i - (len(tiers) - 1) / 2) * thickness for line in range(len(measured))]
            look = {"color": TIER_COLOURS[i % 4], "hatch": TIER_HATCHES[i % 4], "edgecolor": "white", "linewidth": 0}
            panel.barh(places, values, thickness, label=f"tier {i}{' (lowest)' if i == 0 else ''}", **look)
        figure_style.name_rows(
            panel, [figure_style.label(run, left - 0.15) if column == 0 else "" for run, _ in measured]
        )
        panel.axvline(0, color=figure_style.GREY, linewidth=1)
        panel.grid(visible=False, axis="y")
        panel.set_title(title, loc="left")
        panel.set_xlabel(axis)
        panel.locator_params(axis="x", nbins=3)
    figure_style.legend(figure, figure.axes[0], columns=len(tiers))
    return figure_style.save(
        figure,
        path,
        "how each tier is used, lowest first, and how it is composed from the one below: a panel for each measure, a "
        "row for each run. Where an axis says above, a shuffled control is subtracted, so 0 is chance."
        + figure_style.missing(shown, runs[1:], "has no measured tiers"),
    )
