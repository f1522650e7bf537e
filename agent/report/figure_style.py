"""The look of all figures: colours, the marker and line of each run, and panels on a page as wide as a printed one.

Pages are laid out in inches, because matplotlib's constrained layout doubles the time that a figure takes.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.lab.files import atomic_path
from agent.report import sentences
from agent.study.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow that vanishes on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS: tuple[Any, ...] = ("full", "none", "left")  # one for every seven runs: 21 differ without their colour
GREY = "0.45"
REFERENCE_MARKERS = (
    "*",
    "h",
    "p",
    "d",
    "8",
)  # of SAEs that were trained elsewhere, filled where the baseline's are not
REFERENCE_COLOUR = "#F0E442"  # that yellow, with a black edge
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
    "text.parse_math": False,  # titles may contain dollar signs
    "savefig.dpi": 200,
}
# Inches. A panel keeps LEFT and BELOW free for the labels of its axes.
WIDTH, LEFT, BELOW, MARGIN, LEGEND_LINE = 7.1, 0.76, 0.46, 0.17, 0.185


@dataclass(frozen=True)
class Figure:
    """A figure in a file, with a description of what it shows."""

    name: str
    description: str
    drawing: "MatplotlibFigure | None" = field(default=None, repr=False, compare=False)


def page(height: float) -> "MatplotlibFigure":
    """Return an empty figure, `height` inches high."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(WIDTH, height))


def add_panel(figure: "MatplotlibFigure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add a panel, in inches from the left and the top of the page; the labels of its axes lie outside of it."""
    page_height = figure.get_figheight()
    bottom = page_height - top - height
    return figure.add_axes((left / WIDTH, bottom / page_height, width / WIDTH, height / page_height))


def panels(rows: int, columns: int, height: float, named: int) -> "tuple[MatplotlibFigure, list[list[Axes]]]":
    """Return a figure with rows of equal panels, `height` inches high, and room for a legend of `named` entries."""
    step, cell = MARGIN + height + BELOW, WIDTH / columns
    figure = page(rows * step + math.ceil(named / 2) * LEGEND_LINE + 0.1)

    def row(i: int) -> "list[Axes]":
        top = MARGIN + i * step
        return [add_panel(figure, j * cell + LEFT, top, cell - LEFT - MARGIN, height) for j in range(columns)]

    return figure, [row(i) for i in range(rows)]


def listed(names: Sequence[str]) -> str:
    """Return the names as `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def name_rows(panel: "Axes", names: Sequence[str]) -> None:
    """Give a panel one row per name, the first at the top."""
    panel.set_ylim(len(names) - 0.45, -0.55)
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(axis="y", length=0)


def legend(figure: "MatplotlibFigure", named: "Axes", columns: int = 2) -> None:
    """Draw the legend of the panel `named` below all panels, where it overlaps nothing."""
    handles, labels = named.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=columns, frameon=False, handlelength=3.5, borderaxespad=0.1
    )


def save(figure: "MatplotlibFigure", path: Path, description: str) -> Figure:
    """Write the figure as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")
    return Figure(path.name, description, figure)


def style(run: Run, size: float = 4.5) -> dict[str, Any]:
    """Return the matplotlib style that a run has in every figure; `size` is that of its marker, in points."""
    cycle, place = divmod(run.number, len(COLOURS))
    return {
        "gid": f"run-{run.number}",  # by which a vector figure is interactive
        "color": COLOURS[place],
        "linestyle": LINES[place],
        "marker": MARKERS[place],
        "fillstyle": FILLS[cycle % len(FILLS)],
        "markerfacecoloralt": "white",
        "markersize": size,
    }


def reference_style(number: int, size: float) -> dict[str, Any]:
    """Return the matplotlib style of the reference with this number, from 1, which has a marker and no line."""
    return {
        "gid": f"run-reference-{number}",
        "linestyle": "none",
        "marker": REFERENCE_MARKERS[(number - 1) % len(REFERENCE_MARKERS)],
        "color": REFERENCE_COLOUR,
        "markeredgecolor": "black",
        "markeredgewidth": 0.8,
        "markersize": size,
    }


def label(run: Run, width: float = 2.7) -> str:
    """Return the number and title of a run, cut to fit `width` inches, and its verdict if it does not count."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, title = FontProperties(size=STYLE["legend.fontsize"]), " ".join(run.state.proposal.title.split())

    def with_title(title: str) -> str:
        return f"run {run.number}: {title}{remark(run)}"

    def shortened(characters: int) -> str:
        return with_title(title[:characters].rstrip() + "…")

    def inches(text: str) -> float:
        return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72

    if inches(with_title(title)) <= width:
        return with_title(title)
    too_long = bisect_right(range(len(title)), width, key=lambda characters: inches(shortened(characters)))
    return shortened(max(0, too_long - 1))


def missing(shown: Sequence[Run], runs: Sequence[Run], why: str, others: Sequence[str] = ()) -> str:
    """Return a sentence on the runs, and the `others`, that a figure does not show; empty if it shows all."""
    reasons = [*(f"run {run.number} {why}{remark(run)}" for run in runs if run not in shown), *others]
    return f" {sentences.NOT_SHOWN.render(runs='; '.join(reasons))}" if reasons else ""


def remark(run: Run) -> str:
    """Return the verdict of a run that does not count, in brackets; empty for other runs."""
    return "" if run.info is None or run.counts else f" ({run.info.verdict.name})"
