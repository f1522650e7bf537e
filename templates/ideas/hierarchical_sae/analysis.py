"""What hierarchical_sae alone measures, and its figure."""

import math
from collections.abc import Sequence
from pathlib import Path

from agent import plots
from agent.study import Run

HATCHES = ("", "////", "....", "xxxx")  # tiers differ without their colour


def draw(directory: Path, runs: Sequence[Run]) -> list[plots.Figure]:
    """tier_activity.png, of the runs that have tiers: how the active and the live latents spread over them, and how
    well the composition map of a tier predicts the next."""
    found = [(run, run.info.analysis) for run in runs if run.counts and run.info]
    shown = [(run, analysis) for run, analysis in found if "tier_0_l0_share" in analysis]
    if not shown:
        return []
    tiers = range(max(sum(name.endswith("_l0_share") for name in analysis) for _, analysis in shown))
    columns = (  # title, label of the axis, and for each tier the measure's name
        ("share of L0", "fraction", [f"tier_{i}_l0_share" for i in tiers]),
        ("alive in the tier", "fraction", [f"tier_{i}_alive" for i in tiers]),
        ("predicted from the tier below", "R²", ["", *(f"composition_{i - 1}_r2" for i in tiers[1:])]),
    )
    titles_width, top, height = 2.4, 0.28, 0.36 * len(shown) + 0.1
    figure = plots.page(top + height + 0.5 + 0.3)
    width = (plots.WIDTH - titles_width) / len(columns)
    for place, (title, unit, names) in enumerate(columns):
        panel = plots.add_panel(figure, titles_width + place * width, top, width - 0.15, height)
        for i, name in enumerate(names):
            values = [analysis.get(name) for _, analysis in shown]
            rows = [row + (i - (len(tiers) - 1) / 2) * 0.8 / len(tiers) for row in range(len(shown))]
            panel.barh(
                rows,
                [math.nan if value is None else value for value in values],
                0.8 / len(tiers),
                color=plots.COLOURS[1 + i % 6],
                hatch=HATCHES[i % 4],
                edgecolor="white",
                linewidth=0,
                label=f"tier {i}",
            )
        panel.set_ylim(len(shown) - 0.5, -0.5)
        labels = [plots.label(run, titles_width - 0.15) for run, _ in shown] if place == 0 else [""] * len(shown)
        panel.set_yticks(range(len(shown)), labels)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(unit)
        panel.set_title(title, loc="left")
        panel.locator_params(axis="x", nbins=4)
    plots.legend(figure, figure.axes[0])
    return [plots.save(figure, directory / "tier_activity.png", "TODO")]
