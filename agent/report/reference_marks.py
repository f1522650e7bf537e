"""SAEs that were trained elsewhere in the figures of a study: marks of their own, without line, interval or outcome."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.display.formatting import format_value
from agent.lab.metrics import METRICS
from agent.report import figure_style, sentences
from agent.report.references import Shown
from agent.report.story import clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_LABEL = 38  # characters, for which a legend has room
SIZE = 9.0  # points
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # a text, so that no line goes through it
FARTHEST = 1.0  # of the width that the runs' differences take, beyond which a reference's is not drawn to scale


def label(reference: Shown) -> str:
    return clip(reference.label, LONGEST_LABEL)


def draw_points(panel: "Axes", references: Sequence[Shown], x: str, y: str) -> None:
    """Draw the figures of references against each other: a mark for each that has both."""
    for each in references:
        point = [_number(each.figure(x))], [_number(each.figure(y))]
        panel.plot(*point, label=label(each), **figure_style.reference_style(each.number, SIZE))


def draw_differences(panel: "Axes", references: Sequence[Shown], name: str, first_row: int) -> None:
    """Draw the difference of a metric from the baseline at the same L0, in a row for each reference.

    One that is so large that the differences of the runs could not be seen beside it stands at the edge in digits.
    """
    low, high = panel.get_xlim()
    reach = FARTHEST * (high - low)
    for row, each in enumerate(references, first_row):
        if (difference := each.beside.differences.get(name)) is None:
            continue
        signed = format_value(name, difference, sign="+")
        if low - reach <= difference <= high + reach:
            summary = f"{label(each)}: {METRICS[name].title} {signed}, without an interval"
            panel.errorbar([difference], [row], label=summary, **figure_style.reference_style(each.number, SIZE - 2))
        else:
            place, side = (0.99, "right") if difference > high else (0.01, "left")
            shown = f"{signed} →" if difference > high else f"← {signed}"
            where = {"transform": panel.get_yaxis_transform(), "ha": side, "va": "center_baseline"}
            panel.text(place, row, shown, fontsize=7, bbox=BEHIND, **where)


def described(references: Sequence[Shown], aside: str = "") -> str:
    """Return a sentence, after a space, on the references that a figure shows; empty if it shows none."""
    names = figure_style.listed([each.reference.name for each in references]) if references else ""
    return f" {sentences.REFERENCES_DRAWN.render(aside=aside, saes=names)}" if references else ""


def _number(value: float | None) -> float:
    return math.nan if value is None else value
