"""The figures of a study's notes, each with a description taken from the data it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.display import format_value
from agent.lab.results import METRICS
from agent.study import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

# Okabe and Ito, "Color Universal Design" (2008), without the yellow that vanishes on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.formatter.useoffset": False,
    "savefig.dpi": 150,
}
CURVES = (("loss", "training loss"), ("l0", "L0 (latents per token)"), ("alive_fraction", "alive fraction"))
SCORES = ("explained_variance_centered", "ce_loss_score")


@dataclass(frozen=True)
class Figure:
    """A figure that was written, and what it shows."""

    name: str
    description: str


def write(directory: Path, runs: Sequence[Run]) -> list[Figure]:
    """Write the figures there is data for, as PNG."""
    trained = [run for run in runs if run.metrics()]
    scored = [run for run in runs if run.counts and run.info and run.info.metric("l0") is not None]
    figures = []
    if trained:
        figures.append(_training_curves(directory / "training_curves.png", trained, runs))
    if scored:
        figures.append(_l0_front(directory / "l0_explained_variance.png", scored, runs))
    return figures


def _training_curves(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> Figure:
    from matplotlib.ticker import LogLocator

    figure, axes = _panels(len(CURVES))
    for panel, (_, label) in zip(axes, CURVES, strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[2].set_ylim(-0.02, 1.04)
    told = []
    for run in shown:
        rows = run.metrics()
        for panel, (name, _) in zip(axes, CURVES, strict=True):
            x = [row.tokens / 1e6 for row in rows]
            y = [math.nan if getattr(row, name) is None else getattr(row, name) for row in rows]
            panel.plot(x, y, color=_pick(COLOURS, run), linestyle=_pick(LINES, run), linewidth=2, label=_label(run))
        told.append(f"run {run.number} to {rows[-1].tokens:,} tokens{_remark(run)}")
    low, high = axes[1].get_ylim()
    middle = (low + high) / 2
    axes[1].set_ylim(min(low, 0.9 * middle), max(high, 1.1 * middle))  # else rounding of a constant L0 fills the panel
    _save(figure, path, axes[0])
    return Figure(
        path.name,
        "training loss (logarithmic), L0 and alive fraction against training tokens, as the training itself recorded "
        f"them on its training batches: {'; '.join(told)}. The loss is each experiment's own: where a run adds terms "
        f"to it, its height does not compare with another run's.{_missing(shown, runs, 'left no training history')}",
    )


def _l0_front(path: Path, shown: Sequence[Run], runs: Sequence[Run]) -> Figure:
    figure, axes = _panels(len(SCORES))
    for panel, name in zip(axes, SCORES, strict=True):
        panel.set(xlabel="L0 (latents per token)", ylabel=METRICS[name].title + " (higher is better)")
        for run in shown:
            panel.plot(
                [_value(run, "l0")],
                [_value(run, name)],
                color=_pick(COLOURS, run),
                marker=_pick(MARKERS, run),
                markersize=12,
                alpha=0.85,
                linestyle="none",
                label=_label(run),
            )
        _widen(panel)
    _save(figure, path, axes[0])
    told = []
    for run in shown:
        values = [f"{METRICS[name].title} {format_value(name, _value(run, name))}" for name in ("l0", *SCORES)]
        told.append(f"run {run.number}: {', '.join(values)}")
    return Figure(
        path.name,
        "explained variance and CE-loss score against L0, one point for each run that counts, one seed each, without "
        f"intervals because the noise was not measured. {'; '.join(told)}.{_missing(shown, runs, 'has no result')}",
    )


def _panels(count: int) -> "tuple[MatplotlibFigure, list[Axes]]":
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(1, count, figsize=(4.6 * count, 4.8), layout="constrained")
    return figure, list(axes)


def _widen(panel: "Axes") -> None:
    """Runs of one L0 must not be spread over the whole axis: show at least a tenth of it to either side."""
    low, high = panel.get_xlim()
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.1 * middle)
    panel.set_xlim(middle - half, middle + half)
    panel.margins(y=0.15)


def _save(figure: "MatplotlibFigure", path: Path, named: "Axes") -> None:
    """Save with one legend below the panels, where it overlaps nothing."""
    from matplotlib import pyplot

    handles, labels = named.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, handlelength=3.5)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    pyplot.close(figure)
    temporary.replace(path)


def _label(run: Run) -> str:
    title = run.state.proposal.title
    return f"run {run.number}: {title if len(title) <= 44 else title[:43] + '…'}{_remark(run)}"


def _remark(run: Run) -> str:
    return "" if run.info is None or run.counts else f" ({run.info.verdict.name})"


def _missing(shown: Sequence[Run], runs: Sequence[Run], why: str) -> str:
    missing = [f"run {run.number} {why}{_remark(run)}" for run in runs if run not in shown]
    return f" Not shown: {'; '.join(missing)}." if missing else ""


def _value(run: Run, name: str) -> float:
    value = run.info.metric(name) if run.info else None
    return math.nan if value is None else value


def _pick(styles: Sequence[Any], run: Run) -> Any:
    return styles[run.number % len(styles)]
