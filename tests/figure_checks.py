"""Check a drawn figure for texts that overlap or are cut off, and its description."""

import re
from itertools import combinations, pairwise
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text

from agent.report import plots

GAP = 4  # pixels, at least, between two labels of an axis


def texts(drawing: MatplotlibFigure) -> list[tuple[str, Any]]:
    """Return the visible texts of a figure with their boxes, in pixels."""
    FigureCanvasAgg(drawing).draw()
    hidden = {tick.label1 for axes in drawing.axes for axis in (axes.xaxis, axes.yaxis) for tick in ticks_outside(axis)}
    visible = [text for text in drawing.findobj(Text) if text.get_text().strip() and text not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in visible]


def is_brief(description: str) -> bool:
    """Return whether a description says in two sentences what is to be seen, besides what is not shown."""
    said, _, _ = description.partition(" Not shown: ")
    return len(said) <= 250 and said.endswith(".") and len(re.findall(r"\.(?: |$)", said)) <= 2


def ticks_outside(axis: Any) -> list[Any]:
    """Return the ticks outside the limits of an axis, which exist but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick for tick in ticks if not low <= tick.get_loc() <= high]


def overlapping(figure: plots.Figure) -> list[str]:
    """Return what is wrong with the texts of a figure: cut off, inside a panel, or on another text."""
    assert figure.drawing
    page, boxes = figure.drawing.bbox, texts(figure.drawing)
    assert len(boxes) > 10
    cut = [f"{text!r} is cut" for text, box in boxes if min(box.x0, box.y0) < 0 or box.x1 > page.x1 or box.y1 > page.y1]
    panels = [axes.get_window_extent() for axes in figure.drawing.axes]
    inside = [f"{text!r} lies in a panel" for text, box in boxes for panel in panels if overlap(box, panel)]
    crowded = [words for axes in figure.drawing.axes for words in crowded_labels(axes.xaxis)]
    on_another = [f"{a!r} on {b!r}" for (a, one), (b, other) in combinations(boxes, 2) if overlap(one, other)]
    return cut + inside + crowded + on_another


def overlap(one: Any, other: Any) -> bool:
    """Return whether two boxes overlap by more than one pixel in both directions."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def crowded_labels(axis: Any) -> list[str]:
    """Return which neighbouring labels of an x-axis read as one, for want of a gap."""
    outside = ticks_outside(axis)
    labels = [tick.label1 for tick in axis.get_major_ticks() if tick not in outside and tick.label1.get_text().strip()]
    boxes = sorted((label.get_window_extent().x0, label.get_window_extent().x1, label.get_text()) for label in labels)
    return [f"{a!r} touches {b!r}" for (_, end, a), (begin, _, b) in pairwise(boxes) if begin - end < GAP]
