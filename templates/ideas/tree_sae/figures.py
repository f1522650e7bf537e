"""Draw tree SAEs: the training history by level, the paths that carry most, and the activations along them."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from measures import KEPT, TOKENS_OF_A_TREE

from agent.report import figure_style
from agent.study.runs import Run


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw training_progression.png, feature_paths.png and level_activations.png, each if there are data for it."""
    grown = [(run, run.kept(KEPT)) for run in runs if run.counts]
    grown = [(run, kept) for run, kept in grown if kept.get("nodes")]
    trained = [run for run in runs if run.metrics()]
    figures = []
    if any("consistency" in row.own for run in trained for row in run.metrics()[-1:]):
        figures.append(_training_progression(directory / "training_progression.png", trained, runs))
    if grown:
        figures.append(_feature_paths(directory / "feature_paths.png", grown, runs))
        figures.append(_level_activations(directory / "level_activations.png", grown, runs))
    return figures


CURVES = (  # rows of panels: what is drawn, and its axis
    (("mse", "mean squared error"), ("consistency", "consistency loss"), ("open_edges", "open edges (share)")),
    (("level_0_l0", "L0 of level 0 (leaves)"), ("level_1_l0", "L0 of level 1"), ("level_2_l0", "L0 of level 2 (top)")),
    (("level_0_size", "latents, level 0"), ("level_1_size", "latents, level 1"), ("level_2_size", "latents, level 2")),
)


def _training_progression(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> figure_style.Figure:
    figure, axes = figure_style.panels(len(CURVES), 3, height=1.45, named=len(shown))
    for run in shown:
        rows, name = run.metrics(), figure_style.label(run)
        x, apart = [row.tokens / 1e6 for row in rows], max(1, len(rows) // 5)
        for panel, (curve, _) in zip(chain(*axes), chain(*CURVES), strict=True):
            values = [row.mse if curve == "mse" else row.own.get(curve) for row in rows]
            y = [math.nan if value is None else value for value in values]
            marked = (3 * run.number % apart, apart)
            panel.plot(x, y, label=name, linewidth=1.3, markevery=marked, **figure_style.style(run, 3.2))
    for panel, (curve, title) in zip(chain(*axes), chain(*CURVES), strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
        if curve == "mse":
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("")
        else:
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, 0.97 * low), max(high, 1.03 * high))  # a constant is a line in the middle
    figure_style.legend(figure, axes[0][0])
    return figure_style.save(
        figure,
        path,
        "mean squared error (logarithmic), consistency loss, open edges, and L0 and latents of each level against "
        "tokens, on training's own batches. A run without a tree has the error alone; the consistency loss is recorded "
        "also where it is not trained on." + figure_style.missing(shown, runs, "left no training history"),
    )


def _places(nodes: "list[dict[str, Any]]") -> "dict[int, float]":
    """Return each node's horizontal place: leaves in a row, parents in the middle of their children, trees apart."""
    place: dict[int, float] = {}
    next_free, tree = 0.0, 0
    parents = {node["parent"] for node in nodes}
    for node in nodes:  # parents come before their children
        if node["tree"] != tree:
            next_free, tree = next_free + 0.7, node["tree"]
        if node["latent"] not in parents:
            place[node["latent"]] = next_free
            next_free += 1
    for level in (1, 2):
        for node in nodes:
            if node["level"] == level and node["latent"] in parents:
                children = [place[child["latent"]] for child in nodes if child["parent"] == node["latent"]]
                place[node["latent"]] = sum(children) / len(children)
    return place


def _feature_paths(path: Path, grown: "list[tuple[Run, dict[str, Any]]]", runs: Sequence[Run]) -> figure_style.Figure:
    height, above, between = 1.35, 0.3, 0.42
    figure = figure_style.page(len(grown) * (height + between) + 0.1)
    for i, (run, kept) in enumerate(grown):
        panel = figure_style.add_panel(figure, 0.6, above + i * (height + between), figure_style.WIDTH - 0.7, height)
        nodes, place = kept["nodes"], _places(kept["nodes"])
        at = {node["latent"]: (place[node["latent"]], node["level"]) for node in nodes}
        edges = [node for node in nodes if node["parent"] in at]
        thickest = max(node["edge"] for node in edges)
        largest = max(node["activation"] for node in nodes)
        for node in edges:
            (x, y), (up_x, up_y) = at[node["latent"]], at[node["parent"]]
            width = 0.3 + 4 * node["edge"] / thickest
            panel.plot([x, up_x], [y, up_y], color=figure_style.GREY, linewidth=width, solid_capstyle="round", zorder=1)
        for node in nodes:
            x, y = at[node["latent"]]
            size = 4 + 90 * node["activation"] / largest
            panel.scatter([x], [y], s=size, color="white", edgecolor="black", linewidth=0.9, zorder=2)
            below, right = {"xytext": (0, -7), "va": "top"}, {"xytext": (9, 0), "va": "center"}
            look = {"textcoords": "offset points", "fontsize": 5.5, "ha": "center", "rotation": 90}
            panel.annotate(str(node["latent"]), (x, y), **look, **(right if y else below))
        panel.set(xlim=(-0.8, max(place.values()) + 0.8), ylim=(-0.65, 2.4), xticks=[])
        panel.set_yticks([0, 1, 2], ["leaves", "level 1", "top"])
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
        panel.set_title(figure_style.label(run, figure_style.WIDTH - 0.9), loc="left")
    carried = "attribution" if any(kept["attributed"] for _, kept in grown) else "activation"
    return figure_style.save(
        figure,
        path,
        "the trees whose paths carry most: circles are latents (area: mean activation), lines are open paths "
        f"(thickness: {carried} carried). Areas and thicknesses are relative to the run's largest and do not compare "
        "between runs."
        + figure_style.missing([run for run, _ in grown], runs, "has no measured tree with an open path"),
    )


def _level_activations(
    path: Path, grown: "list[tuple[Run, dict[str, Any]]]", runs: Sequence[Run]
) -> figure_style.Figure:
    height, above, between, room, columns = 2.0, 0.3, 0.62, 0.1, min(len(grown), 2)
    figure = figure_style.page(-(-len(grown) // columns) * (height + between))
    width = figure_style.WIDTH / columns - 0.65
    for i, (run, kept) in enumerate(grown):
        top, left = above + i // columns * (height + between), 0.55 + i % columns * figure_style.WIDTH / columns
        rows = [[v for v, n in zip(kept["values"], kept["nodes"], strict=True) if n["level"] == at] for at in (2, 1, 0)]
        present = [(level, part) for level, part in zip((2, 1, 0), rows, strict=True) if part]
        unit = (height - room * (len(present) - 1)) / sum(len(part) for _, part in present)
        panel = None
        for level, part in present:
            panel = figure_style.add_panel(figure, left, top, width, unit * len(part))
            panel.imshow(part, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            panel.set(xticks=[], yticks=[], ylabel={2: "top", 1: "level 1", 0: "leaves"}[level])
            panel.grid(visible=False)
            panel.spines[:].set_visible(True)
            if level == present[0][0]:
                panel.set_title(figure_style.label(run, width), loc="left")
            top += unit * len(part) + room
        assert panel is not None
        panel.set_xlabel(f"samples, {TOKENS_OF_A_TREE} for each tree", labelpad=2)
    return figure_style.save(
        figure,
        path,
        "activations of the latents in feature_paths.png, a row for each and a panel for each level, on the samples "
        "that activate their trees most. Black is a latent's own largest activation, so compare which rows are dark "
        "together, not how dark they are."
        + figure_style.missing([run for run, _ in grown], runs, "has no measured tree with an open path"),
    )
