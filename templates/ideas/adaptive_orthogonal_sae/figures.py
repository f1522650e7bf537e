"""Draw the metrics against alpha, the condition numbers of groups of latents, and the cosines of the decoder."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measures import BINS, DRAWS, KEPT, LATENTS, MEASURES

from agent.lab import results
from agent.lab.metrics import METRICS
from agent.report import figure_style
from agent.study.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RAREST = 1e-6  # share of the pairs at which the histogram's axis ends

COLUMNS = 3  # panels side by side
# Measures drawn besides the headline metrics, each unless this headline metric shows the same.
OWN = {"decoder_cosine_largest": "", "forgetting_score": "forgetting"}
PARTITIONS: dict[str, tuple[str, dict[str, Any]]] = {  # of the latents, whose condition numbers are drawn
    "coactivation": ("groups that fire together", {"marker": "o", "color": "#0072B2"}),
    "own": ("groups that training ended with", {"marker": "s", "color": "#D55E00", "fillstyle": "none"}),
    "random": (f"random groups ({DRAWS} partitions)", {"marker": "x", "color": figure_style.GREY}),
}


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw alpha_sweep.png, condition_numbers.png and decoder_cosines.png, each if there are data for it."""
    counted = [run for run in runs if run.counts]
    kept = [(run, content) for run in counted if (content := run.kept(KEPT))]
    figures = []
    if any(alpha_of(run) is not None for run in counted):
        figures.append(draw_sweep(directory / "alpha_sweep.png", counted, runs))
    if kept:
        figures.append(draw_conditions(directory / "condition_numbers.png", kept, runs))
        figures.append(draw_cosines(directory / "decoder_cosines.png", kept, runs))
    return figures


# Metrics against alpha


def draw_sweep(path: Path, counted: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    """Draw a panel for each metric: the runs by the cosine that they allow, and the baseline as a line."""
    shown = [run for run in counted if alpha_of(run) is not None]
    reference = next((run for run in counted if run.number == 0 and run not in shown), None)
    infos = [run.info for run in counted if run.info]
    names = results.headline(infos)
    names += [own for own, same in OWN.items() if same not in names and any(own in info.analysis for info in infos)]
    places, sweeps, labels = side_by_side(shown), sweeps_of(shown), [figure_style.label(run) for run in shown]
    above, height, below, cell = 0.3, 1.2, 0.45, figure_style.WIDTH / COLUMNS
    step, rows = above + height + below, math.ceil(len(names) / COLUMNS)
    figure = figure_style.page(rows * step + math.ceil((len(shown) + 2) / 2) * figure_style.LEGEND_LINE + 0.1)
    for place, name in enumerate(names):
        row, column = divmod(place, COLUMNS)
        left, width = column * cell + figure_style.LEFT, cell - figure_style.LEFT - figure_style.MARGIN
        panel = figure_style.add_panel(figure, left, row * step + above, width, height)
        if reference:
            line = {"color": figure_style.GREY, "linestyle": "--", "linewidth": 1.2}
            panel.axhline(value_of(reference, name), label=figure_style.label(reference), **line)
        for sweep in sweeps:
            values = [value_of(run, name) for run in sweep]
            label = "runs that differ in alpha alone" if sweep is sweeps[0] else None
            panel.plot([places[run.number] for run in sweep], values, color=figure_style.GREY, linewidth=1, label=label)
        for run, label in zip(shown, labels, strict=True):
            point = {**figure_style.style(run, 5.5), "linestyle": "none"}
            panel.plot([places[run.number]], [value_of(run, name)], label=label, **point)
        panel.set_title(title_of(name) + better_of(name), loc="left", fontsize=8, x=-0.3)
        panel.set_xlabel("alpha", fontsize=8)
        panel.margins(0.1)
        panel.locator_params(axis="y", nbins=4)
    figure_style.legend(figure, figure.axes[0])
    line = ", the dashed line is the baseline" if reference else ""
    return figure_style.save(
        figure,
        path,
        "a panel for each metric, against alpha, the cosine that latents of different groups may have; grey lines join "
        f"runs that differ in alpha alone{line}. Each point is one seed; runs of the same alpha stand side by side."
        + figure_style.missing(
            [run for run in runs if run in shown or run is reference], runs, "has no alpha or no result"
        ),
    )


def alpha_of(run: Run) -> float | None:
    """Return the cosine that a run allowed, or None if it had no orthogonality loss."""
    settings = run.info.training.settings if run.info and run.info.training else {}
    return settings.get("ALPHA") if settings.get("ORTHOGONALITY_COEFFICIENT") else None


def side_by_side(shown: Sequence[Run]) -> dict[int, float]:
    """Return each run's place on the axis of alpha; runs that share one stand a little apart."""
    alphas = [alpha_of(run) or 0.0 for run in shown]
    apart = 0.06 * ((max(alphas) - min(alphas)) or 1.0)
    number, before, places = Counter(alphas), Counter[float](), {}
    for run, alpha in zip(shown, alphas, strict=True):
        places[run.number] = alpha + (before[alpha] - (number[alpha] - 1) / 2) * apart
        before[alpha] += 1
    return places


def sweeps_of(shown: Sequence[Run]) -> list[list[Run]]:
    """Return the groups of at least two runs whose settings differ in ALPHA alone, sorted by it."""
    sweeps: dict[str, list[Run]] = {}
    for run in shown:
        assert run.info
        assert run.info.training
        rest = {name: value for name, value in run.info.training.settings.items() if name != "ALPHA"}
        sweeps.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [sorted(sweep, key=lambda run: alpha_of(run) or 0.0) for sweep in sweeps.values() if len(sweep) > 1]


def value_of(run: Run, name: str) -> float:
    assert run.info
    value = run.info.metric(name) if name in METRICS else run.info.analysis.get(name)
    return math.nan if value is None else value


def title_of(name: str) -> str:
    return METRICS[name].title if name in METRICS else MEASURES[name].title


def better_of(name: str) -> str:
    better = METRICS[name].better if name in METRICS else "none"
    return {"higher": " (↑ better)", "lower": " (↓ better)", "none": ""}[better]


# Condition numbers of groups


def draw_conditions(path: Path, kept: Sequence[tuple[Run, dict[str, Any]]], runs: Sequence[Run]) -> figure_style.Figure:
    """Draw a row for each run, with a line for each kind of partition and a point for each group."""
    titles, above, height = 2.75, 0.1, 0.5 * len(kept) + 0.05
    figure = figure_style.page(above + height + 0.95)
    panel = figure_style.add_panel(figure, titles, above, figure_style.WIDTH - titles - 0.2, height)
    for row, (_, content) in enumerate(kept):
        for line, (kind, (_, look)) in enumerate(PARTITIONS.items()):
            if numbers := [number for number in content["conditions"].get(kind, []) if number is not None]:
                y, middle = row + 0.24 * (line - 1), median(numbers)
                panel.plot(numbers, [y] * len(numbers), linestyle="none", markersize=3.5, alpha=0.7, **look)
                panel.plot([middle, middle], [y - 0.11, y + 0.11], color=look["color"], linewidth=1.6)
    for title, look in PARTITIONS.values():
        panel.plot([], [], linestyle="none", label=title, markersize=4, **look)
    figure_style.name_rows(panel, [figure_style.label(run, titles - 0.15) for run, _ in kept])
    panel.set_xlabel("condition number of a group's decoder rows (line: median)")
    panel.grid(visible=False, axis="y")
    figure_style.legend(figure, panel, columns=3)
    return figure_style.save(
        figure,
        path,
        "a point for each group of live latents: the condition number of its decoder rows (largest over smallest "
        "singular value); lines are medians. Compare groups that fire together with random groups of the same sizes."
        + figure_style.missing([run for run, _ in kept], runs, "has no measured groups"),
    )


# Cosines of the decoder


def draw_cosines(path: Path, kept: Sequence[tuple[Run, dict[str, Any]]], runs: Sequence[Run]) -> figure_style.Figure:
    """Draw two histograms, a line for each run: of all pairs of live latents, and of each latent's largest cosine."""
    figure, ((left, right),) = figure_style.panels(1, 2, height=2.2, named=len(kept))
    for panel, name in ((left, "pairs"), (right, "largest")):
        for run, content in kept:
            draw_histogram(panel, run, content["cosines"][name])
        filled = [i for _, content in kept for i, share in enumerate(content["cosines"][name]) if share > RAREST]
        panel.set_xlim(0, (max(filled) + 2) / BINS)
    left.set(xlabel="|cosine| of two decoder rows", ylabel="share of the pairs", yscale="log")
    left.set_ylim(bottom=RAREST)
    left.yaxis.set_major_formatter("{x:g}")
    right.set(xlabel="largest |cosine| with another row", ylabel="share of the latents")
    figure_style.legend(figure, left)
    return figure_style.save(
        figure,
        path,
        f"histograms of the |cosine| of live latents' decoder rows (a seeded sample if over {LATENTS:,}), in bins of "
        f"{1 / BINS:g}: of all pairs (logarithmic), and of each latent's largest. The further right a line lies, the "
        "more the rows overlap." + figure_style.missing([run for run, _ in kept], runs, "has no measured decoder"),
    )


def draw_histogram(panel: "Axes", run: Run, shares: Sequence[float]) -> None:
    """Plot the share in each bin at its middle; empty bins are left out."""
    x = [(i + 0.5) / BINS for i, share in enumerate(shares) if share > 0]
    y = [share for share in shares if share > 0]
    apart = max(1, len(x) // 4)
    marked = (run.number % apart, apart)
    panel.plot(x, y, label=figure_style.label(run), linewidth=1.3, markevery=marked, **figure_style.style(run, 4))
