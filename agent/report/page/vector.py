"""Figures of the notes as SVG inside the page: text stays text, nothing is styled inline, marks say what they show."""

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from agent.report.figure_style import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

SVG = "http://www.w3.org/2000/svg"
# Every vertex of a line is a measurement to hover over, so none is merged; and the same figure gives the same file.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sae-agent", "path.simplify": False}
FONT = re.compile(r"(?:(?P<style>italic|oblique)\s+)?(?:(?P<weight>bold|\d00)\s+)?(?P<size>[\d.]+)px\s+(?P<family>.+)")
MARK = re.compile(r"run-(\d+|reference-\d+)")
DROPPED = ("metadata", "style")


def svg(figure: Figure, title: str, prefix: str) -> Markup:
    """Return a figure as an SVG element whose ids begin with `prefix`.

    The group of a panel has data-x and data-y: the limits of its axis, where these lie in the SVG, and whether it is
    logarithmic. The group of a run's marks has data-run and data-name, and data-hover if it is a single point.
    The bars of its intervals have data-run alone.
    """
    assert figure.drawing
    attributes = dict(_name_parts(figure.drawing, prefix))
    written = io.BytesIO()
    figure.drawing.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.rpartition("}")[2] in DROPPED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        extra = attributes.get(element.get("id", ""), {})
        if part := MARK.fullmatch(element.get("id", "")):  # of an interval, which the mark in its middle speaks for
            extra = {"class": "part", "data-run": part[1]}
            del element.attrib["id"]
        _make_inert(element, prefix)
        element.attrib.update(extra)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib.update({"xmlns": SVG, "class": "figure", "role": "img", "aria-label": title})
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))


def _name_parts(drawing: "MatplotlibFigure", prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Give panels and the marks of runs ids, and yield each id with the attributes of its group."""
    for number, axes in enumerate(drawing.axes):
        panel = f"{prefix}-panel-{number}"
        axes.set_gid(panel)
        yield panel, {"class": "panel", **_scales(drawing, axes)}
        bars = {container.lines[0]: str(container.get_label()) for container in axes.containers}  # type: ignore[attr-defined]
        caps = {cap for container in axes.containers for cap in container.lines[1]}  # type: ignore[attr-defined]
        for place, line in enumerate(axes.lines):
            if line in caps or not (mark := MARK.fullmatch(str(line.get_gid()))):
                continue
            name = bars.get(line, str(line.get_label()))
            line.set_gid(f"{panel}-mark-{place}")
            attributes = {"class": "mark", "data-run": mark[1], "data-name": name}
            x, y = line.get_xdata(), line.get_ydata()
            if line in bars:
                attributes["data-hover"] = name
            elif len(x) == 1:  # type: ignore[arg-type]
                attributes["data-hover"] = (
                    f"{name}: {_quantity(axes.get_xlabel())} {x[0]:.4g}, {_quantity(axes.get_ylabel())} {y[0]:.4g}"  # type: ignore[index]
                )
            yield f"{panel}-mark-{place}", attributes


def _quantity(label: str) -> str:
    return label.split(" (")[0]


def _scales(drawing: "MatplotlibFigure", axes: "Axes") -> dict[str, str]:
    """Return the axes of a panel: limits, their places in the SVG (72 units an inch, from the top), scale, name."""
    width, height = 72 * drawing.get_figwidth(), 72 * drawing.get_figheight()
    box = axes.get_position()
    places = {"x": (box.x0 * width, box.x1 * width), "y": ((1 - box.y0) * height, (1 - box.y1) * height)}
    limits = {"x": (axes.get_xlim(), axes.get_xscale()), "y": (axes.get_ylim(), axes.get_yscale())}
    titles = {"data-x-title": _quantity(axes.get_xlabel()), "data-y-title": _quantity(axes.get_ylabel())}
    described = {
        f"data-{axis}": " ".join([*(f"{value:.7g}" for value in (*limits[axis][0], *place)), limits[axis][1]])
        for axis, place in places.items()
    }
    return described | titles


def _make_inert(element: ElementTree.Element, prefix: str) -> None:
    """Make ids those of this figure, and turn style into attributes: the page allows no inline style."""
    for name, value in list(element.attrib.items()):
        plain = name.rpartition("}")[2]
        if plain == "href" and value.startswith("#"):
            del element.attrib[name]
            element.set("href", f"#{prefix}-{value[1:]}")
        elif plain == "style":
            del element.attrib[name]
            element.attrib.update(_presentation(value))
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{prefix}-"))
        elif name == "id" and not value.startswith(f"{prefix}-"):
            element.set("id", f"{prefix}-{value}")


def _presentation(style: str) -> Iterator[tuple[str, str]]:
    """Yield the declarations of a style attribute as SVG's presentation attributes."""
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (font := FONT.fullmatch(value)):
            yield "font-size", font["size"]
            if font["weight"]:
                yield "font-weight", font["weight"]
        elif name != "font":
            yield name, value
