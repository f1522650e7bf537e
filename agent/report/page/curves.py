"""The training curves of one run beside the baseline's, as SVG that is quick to make for hundreds of runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from agent.lab.verdicts import MetricsRow
from agent.report.plots import CURVES

WIDTH, HEIGHT, GAP = 240.0, 130.0, 26.0  # of a panel, and between two
LEFT, TOP, BELOW = 44.0, 20.0, 34.0
MOST_POINTS = 100  # of a curve
ROUND = (1, 2, 5, 10)


@dataclass(frozen=True)
class Line:
    """A curve to draw: a run's number and name, and its training history."""

    run: int
    name: str
    rows: Sequence[MetricsRow]
    kind: str  # class: own, or baseline


@dataclass(frozen=True)
class _Axis:
    """A linear or logarithmic axis from one place in the SVG to another."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return two to five round values."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**e for e in exponents for factor in (1, 2, 5)]
            inside = [value for value in values if self.low <= value <= self.high]
            return inside[:: math.ceil(len(inside) / 5)] if inside else [self.low, self.high]
        rough = (self.high - self.low) / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in ROUND if size * factor >= rough * 0.999)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def data(self) -> str:
        """Return the axis as the page's script reads it."""
        scale = "log" if self.logarithmic else "linear"
        return f"{self.low:.6g} {self.high:.6g} {self.start:g} {self.end:g} {scale}"


def curves(lines: Sequence[Line], prefix: str) -> Markup:
    """Draw loss, L0 and alive fraction against tokens. Return nothing if there is no history."""
    lines = [line for line in lines if line.rows]
    if not any(line.kind == "own" for line in lines):
        return Markup()
    width, height = len(CURVES) * (LEFT + WIDTH + GAP), TOP + HEIGHT + BELOW
    panels = [
        _panel(lines, title, lambda row, field=field: getattr(row, field), place, f"{prefix}-{field}")
        for place, (field, title) in enumerate(CURVES)
    ]
    return Markup('<svg class="figure curves" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        f"Training curves of {lines[-1].name}", f"{width:g}", f"{height:g}", Markup("").join(panels)
    )


def _panel(
    lines: Sequence[Line], title: str, value: Callable[[MetricsRow], float | None], place: int, name: str
) -> Markup:
    points = [_points(line.rows, value) for line in lines]
    left = place * (LEFT + WIDTH + GAP) + LEFT
    x, y = _axes([point for each in points for point in each], left, logarithmic=place == 0, fraction=place == 2)
    drawn = [_ticks(x, y)]
    for line, each in zip(lines, points, strict=True):
        path = "L".join(f"{x.place(tokens):.1f} {y.place(height):.1f}" for tokens, height in each)
        drawn.append(
            Markup('<g class="mark {}" data-run="{}" data-name="{}"><path d="M{}"/></g>').format(
                line.kind, line.run, line.name, path
            )
        )
    return Markup(
        '<g class="panel" id="{}" data-x="{}" data-y="{}" data-x-title="tokens (millions)" data-y-title="{}">'
        '<text class="title" x="{}" y="{}">{}</text>{}</g>'
    ).format(name, x.data(), y.data(), title, f"{left:g}", f"{TOP - 8:g}", title, Markup("").join(drawn))


def _points(rows: Sequence[MetricsRow], value: Callable[[MetricsRow], float | None]) -> list[tuple[float, float]]:
    """Return tokens in millions with finite values, thinned."""
    found = [(row.tokens / 1e6, height) for row in rows if (height := value(row)) is not None and math.isfinite(height)]
    return found[:: math.ceil(len(found) / MOST_POINTS) or 1]


def _axes(points: list[tuple[float, float]], left: float, logarithmic: bool, fraction: bool) -> tuple[_Axis, _Axis]:
    heights = [height for _, height in points if height > 0 or not logarithmic] or [0.5, 1.0]
    low, high = (0.0, 1.0) if fraction else (min(heights), max(heights))
    logarithmic = logarithmic and low > 0 and min((height for _, height in points), default=0.0) > 0
    if logarithmic:
        low, high = low / 1.1, max(high * 1.1, low * 1.5)
    elif not fraction:
        room = max(0.08 * (high - low), 0.05 * abs(high), 1e-9)
        low, high = low - room, high + room
    last = max((tokens for tokens, _ in points), default=0.0) or 1.0
    return _Axis(0.0, last, left, left + WIDTH), _Axis(low, high, TOP + HEIGHT, TOP, logarithmic)


def _ticks(x: _Axis, y: _Axis) -> Markup:
    grid = [
        Markup(
            '<path class="grid" d="M{0} {1}H{2}"/><text class="tick" text-anchor="end" x="{3}" y="{4}">{5}</text>'
        ).format(f"{x.start:g}", f"{place:.1f}", f"{x.end:g}", f"{x.start - 5:g}", f"{place + 3.5:.1f}", f"{tick:.4g}")
        for tick in y.ticks()
        for place in [y.place(tick)]
    ]
    below = [
        Markup('<text class="tick" text-anchor="middle" x="{}" y="{}">{}</text>').format(
            f"{x.place(tick):.1f}", f"{y.start + 14:g}", f"{tick:.4g}"
        )
        for tick in x.ticks()
    ]
    middle = Markup('<text class="tick" text-anchor="middle" x="{}" y="{}">tokens (millions)</text>').format(
        f"{(x.start + x.end) / 2:g}", f"{y.start + 28:g}"
    )
    return Markup("").join([*grid, *below, middle])
