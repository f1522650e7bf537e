"""Draw how often latents fire by their place in the order, and the first prefix and K during training."""

import math
from collections.abc import Sequence
from pathlib import Path

from agent.report import figure_style
from agent.study.runs import Run


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw use_by_place.png and order_training.png of the runs that count and have prefixes."""
    shown = [run for run in runs if run.counts and run.info and "order_by_use" in run.info.analysis]
    if not shown:
        return []
    figures = [_use_figure(directory, shown, runs)]
    if trained := [run for run in shown if any("prefix_0_l0_share" in row.own for row in run.metrics())]:
        figures.append(_training_figure(directory, trained, runs))
    return figures


def _use_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    figure, ((panel,),) = figure_style.panels(1, 1, height=2.4, named=len(shown))
    for run in shown:
        rates = run.kept("use.json").get("rates", [])
        middle = [(i + 0.5) / len(rates) for i in range(len(rates))]
        marked = (run.number % 7, 7)
        panel.plot(
            middle,
            [rate or math.nan for rate in rates],  # a logarithmic axis has no place for 0
            label=figure_style.label(run),
            linewidth=1.2,
            alpha=0.85,
            markevery=marked,
            **figure_style.style(run, 4),
        )
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.set(xlabel="place in the order, as a share of the latents", ylabel="firing rate")
    figure_style.legend(figure, panel)
    return figure_style.save(
        figure,
        directory / "use_by_place.png",
        "how often latents fire on the evaluation text or samples (logarithmic), by their place in the order, as means "
        "over neighbours. A line that only falls is sorted by use."
        + figure_style.missing(shown, runs, "has no measured order"),
    )


def _training_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    figure, (axes,) = figure_style.panels(1, 2, height=2.0, named=len(shown))
    titles = {"prefix_0_l0_share": "L0 share, first prefix", "k": "K"}
    for run in shown:
        rows, label = run.metrics(), figure_style.label(run)
        apart = max(1, len(rows) // 5)
        for panel, name in zip(axes, titles, strict=True):
            values = [math.nan if (value := row.own.get(name)) is None else value for row in rows]
            marked = (3 * run.number % apart, apart)
            x = [row.tokens / 1e6 for row in rows]
            panel.plot(x, values, label=label, linewidth=1.4, markevery=marked, **figure_style.style(run, 3.5))
    for panel, title in zip(axes, titles.values(), strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
        panel.set_ylim(bottom=0)
    figure_style.legend(figure, axes[0])
    return figure_style.save(
        figure,
        directory / "order_training.png",
        "the share of L0 in the first prefix, and K, against tokens, as training recorded them on its own batches. "
        "First prefixes differ in size between runs."
        + figure_style.missing(shown, runs, "left no history of its order"),
    )
