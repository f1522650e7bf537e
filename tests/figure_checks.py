"""What is wrong with a drawn figure: texts that overlap or stand outside."""

from itertools import combinations
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text

from agent.report import plots


def texts(drawing: MatplotlibFigure) -> list[tuple[str, Any]]:
    """What can be read in a figure, and where it stands, in pixels."""
    FigureCanvasAgg(drawing).draw()
    unseen = {tick.label1 for axes in drawing.axes for axis in (axes.xaxis, axes.yaxis) for tick in beyond(axis)}
    found = [text for text in drawing.findobj(Text) if text.get_text().strip() and text not in unseen]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def beyond(axis: Any) -> list[Any]:
    """Ticks outside the limits of an axis: they are there, but not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick for tick in ticks if not low <= tick.get_loc() <= high]


def overlapping(figure: plots.Figure) -> list[str]:
    assert figure.drawing
    page, found = figure.drawing.bbox, texts(figure.drawing)
    assert len(found) > 10
    cut = [f"{said!r} is cut" for said, box in found if min(box.x0, box.y0) < 0 or box.x1 > page.x1 or box.y1 > page.y1]
    panels = [axes.get_window_extent() for axes in figure.drawing.axes]
    over = [f"{said!r} lies in a panel" for said, box in found for panel in panels if touch(box, panel)]
    return cut + over + [f"{a!r} on {b!r}" for (a, one), (b, other) in combinations(found, 2) if touch(one, other)]


def touch(one: Any, other: Any) -> bool:
    """Whether two boxes share more than a pixel's edge."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
