"""Draw how features stay apart: absorption, dead and duplicate latents, probing, features found by other seeds too."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from measures import DUPLICATE

from agent.lab import results
from agent.lab.metrics import METRICS
from agent.report import figure_style
from agent.study.runs import Run

if TYPE_CHECKING:
    import numpy as np

ROWS = 2048  # decoder rows of a run that are matched with another's, at most
ABSORPTIONS = ("absorption_true", "absorption")  # of a world, and SAE-Bench's of a model that can spell


def matched_cosine(a: "np.ndarray", b: "np.ndarray") -> tuple[float, float]:
    """Return how much of one SAE another one finds again: decoder rows `a [n, d_in]` and `b [m, d_in]` of any norm.

    The first figure is the mean cosine of a's rows with their one-to-one partners in b, in the assignment with the
    highest sum (Hungarian method, as in Paulo and Belrose 2025, arXiv 2501.16615). The second is the same with b's
    dimensions shuffled, which keeps b's own geometry but removes all it shares with a. Rows without a partner, in the
    larger SAE, do not count. If a has more than ROWS rows, at most ROWS of them, evenly spaced, choose among all of b.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (a, b))
    a = a[:: math.ceil(len(a) / ROWS)]

    def matched(others: "np.ndarray") -> float:
        cosines = a @ others.T
        return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())

    return matched(b), matched(b[:, np.random.default_rng(0).permutation(b.shape[1])])


def stability(run: Run) -> tuple[float, float] | None:
    """Return the means of matched_cosine of a run's live decoder rows over its other seeds.

    Other seeds are the fresh ones of a run that looked better, in run_<i>_seed_<seed>, and for run 0 the baseline's, in
    baseline_k<K>_seed_<seed>. Return None if there are none.
    """
    others = sorted(run.directory.parent.glob(f"{run.directory.name}_seed_*"))
    if run.number == 0 and run.info and run.info.training and "K" in run.info.training.settings:
        own = run.info.training
        names = f"baseline_k{own.settings['K']:g}_seed"
        others += [p for p in sorted(run.directory.parent.glob(f"{names}*")) if p.name != f"{names}{own.seed}"]
    own_rows = _live_rows(run.directory)
    if own_rows is None:
        return None
    cosines = [matched_cosine(own_rows, rows) for path in others if (rows := _live_rows(path)) is not None]
    if not cosines:
        return None
    return sum(c[0] for c in cosines) / len(cosines), sum(c[1] for c in cosines) / len(cosines)


def _live_rows(directory: Path) -> "np.ndarray | None":
    """Return the decoder rows [n, d_in] of the live latents, or all rows if it was not measured which are alive."""
    from safetensors import safe_open

    path = directory / "checkpoint/tensors.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "numpy") as file:  # reads no other tensor
        rows = file.get_tensor("W_dec")
    alive = results.read_kept(directory / "eval/analysis/alive.json").get("alive")
    return rows[alive] if alive else rows


class Panel(NamedTuple):
    """A row for each run: a value, a grey tick to compare it with, and as grey points the values it summarises."""

    title: str
    axis: str
    values: Sequence[float | None]
    digits: int = 3
    ticks: Sequence[float | None] = ()
    points: Sequence[Sequence[float]] = ()


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """Draw metrics_comparison.png, absorption_rates.png and probing_accuracy.png."""
    shown = [run for run in runs if run.counts]
    if not shown:
        return []
    not_shown = figure_style.missing(shown, runs, "has no result")
    pages = [_metrics_comparison(shown), _absorption_rates(shown), _probing_accuracy(shown)]
    return [_write(directory / name, shown, panels, text + not_shown) for name, panels, text in pages]


Page = tuple[str, list[Panel], str]  # a figure's name, its panels, and what it shows


def _metrics_comparison(runs: Sequence[Run]) -> Page:
    """Return four panels: absorption, features found again by other seeds, dead latents, duplicates, or substitutes."""
    absorption = next((name for name in ABSORPTIONS if _measured(runs, name)), None)
    stable = [stability(run) for run in runs]
    first = _metric(runs, absorption or "explained_variance_centered")
    if any(stable):
        values, ticks = ([None if means is None else means[i] for means in stable] for i in range(2))
        second = Panel("features found again", "matched cosine (grey: shuffled)", values, 3, ticks)
        reading = (
            "Features found again is the mean cosine of decoder rows matched with another seed's; its grey tick is the "
            "same with shuffled dimensions."
        )
    else:
        second = _metric(runs, "f1" if _measured(runs, "f1") else "ce_loss_score")
        reading = f"No run has another seed to match features with, so {second.title} is shown instead."
    dead, merged, left = (_own(runs, name) for name in ("dead_fraction", "duplicates_merged", "duplicate_pairs"))
    panels = [
        first,
        second,
        Panel("dead latents", "fraction of the latents", dead),
        Panel("duplicates merged", f"latents (grey: pairs left above {DUPLICATE})", merged, 0, left),
    ]
    missing = "" if absorption else " (absorption was not measured)"
    text = f"a row for each run: {first.title}{missing}, {second.title}, dead latents and duplicates merged. {reading}"
    return "metrics_comparison.png", panels, text


def _absorption_rates(runs: Sequence[Run]) -> Page:
    """Return a panel of the absorption rate and one of each parent's or letter's rate."""
    name = next((name for name in ABSORPTIONS if _measured(runs, name)), None)
    if name is None:
        nearest = _own(runs, "nearest_cosine"), _own(runs, "nearest_cosine_random")
        panel = Panel(
            "absorption: not measured; nearest decoder cosine",
            "mean over latents (grey: random directions)",
            nearest[0],
            3,
            nearest[1],
        )
        text = (
            "as absorption was not measured, the mean cosine of live decoder rows with their nearest, a row for each "
            "run (grey tick: random directions). It is no measure of absorption: related features are near each other "
            "too."
        )
        return "absorption_rates.png", [panel], text
    if name == "absorption_true":
        rates_by_run = [_parents(run) for run in runs]
        meaning, item = (
            "share of a parent's samples on which a descendant's latent fires in its place",
            "parent feature",
        )
    else:
        scored = [run.info.evaluations.get("absorption") if run.info else None for run in runs]
        key = "mean_absorption_fraction"
        rates_by_run = [[v for d in (s.details.values() if s else ()) if (v := d.get(key)) is not None] for s in scored]
        meaning, item = "SAE-Bench's share of a letter's words whose letter other latents represent", "letter"
    panels = [
        _metric(runs, name),
        Panel(
            f"each {item}, highest marked",
            "rate",
            [max(rates, default=None) for rates in rates_by_run],
            2,
            points=rates_by_run,
        ),
    ]
    text = (
        f"{meaning}, a row for each run: the mean, and each {item} (grey points), the highest marked. Those without a "
        "latent in a run are left out, so means may be over different ones."
    )
    return "absorption_rates.png", panels, text


def _parents(run: Run) -> list[float]:
    """Return the true absorption of each parent feature, as the evaluation recorded it."""
    path = next(iter(sorted(run.directory.glob("eval/synthetic/*_synthetic.json"))), None)
    parents = results.read_kept(path).get("absorption", {}).get("parents", {}) if path else {}
    return [parent["absorbed"] for parent in parents.values()]


def _probing_accuracy(runs: Sequence[Run]) -> Page:
    """Return panels of sparse probing by the number of latents; on a world, which has none, of F1 and its parts."""
    probings = [run.info.probing if run.info else None for run in runs]
    if not any(probings):
        truth = [run.info.evaluations.get("synthetic") if run.info else None for run in runs]
        panels = [
            Panel(title, "mean over latents", [t.metrics.get(name) if t else None for t in truth])
            for name, title in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
        ]
        text = (
            "F1, precision and recall with which the latents detect the true features, a row for each run. They stand "
            "in for probing, as a world has no labelled text."
        )
        return "probing_accuracy.png", panels, text
    ks = sorted({k for probing in probings if probing for k in probing.accuracy})
    panels = [
        Panel(
            f"top {k} latent{'s' if k > 1 else ''}",
            "accuracy (grey: model's own)",
            [probing.accuracy.get(k) if probing else None for probing in probings],
            3,
            [probing.llm_accuracy if probing else None for probing in probings],
            [
                [v for d in probing.datasets if (v := d.accuracy.get(k)) is not None] if probing else []
                for probing in probings
            ],
        )
        for k in (ks[0], ks[-1])
    ]
    text = (
        "test accuracy of sparse probing on the most informative latents, a row for each run: the mean over datasets, "
        "and each dataset (grey points). Compare it with the grey tick, a probe on all of the model's own activations."
    )
    return "probing_accuracy.png", panels, text


def _values(runs: Sequence[Run], name: str) -> list[float | None]:
    return [run.info.metric(name) if run.info else None for run in runs]


def _measured(runs: Sequence[Run], name: str) -> bool:
    return any(value is not None for value in _values(runs, name))


def _own(runs: Sequence[Run], name: str) -> list[float | None]:
    return [run.info.analysis.get(name) if run.info else None for run in runs]


def _metric(runs: Sequence[Run], name: str) -> Panel:
    better = {"higher": "better →", "lower": "← better", "none": ""}[METRICS[name].better]
    return Panel(METRICS[name].title, better, _values(runs, name), METRICS[name].digits)


def _write(path: Path, runs: Sequence[Run], panels: Sequence[Panel], text: str) -> figure_style.Figure:
    """Draw panels side by side, four of them two by two, with a row and its value for each run, and save the figure."""
    columns = 2 if len(panels) in (2, 4) else len(panels)
    titles, above, below, height = 2.35, 0.28, 0.52, 0.22 * len(runs) + 0.1
    rows, cell = math.ceil(len(panels) / columns), (figure_style.WIDTH - titles) / columns
    figure = figure_style.page(rows * (above + height + below) + 0.05)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        top = row * (above + height + below) + above
        axes = figure_style.add_panel(figure, titles + column * cell, top, cell - 0.62, height)
        ticks, points = panel.ticks or [None] * len(runs), panel.points or [[]] * len(runs)
        for i, (run, value, tick, cloud) in enumerate(zip(runs, panel.values, ticks, points, strict=True)):
            spread = [i + 0.22 * ((7 * j) % 5 - 2) / 2 for j in range(len(cloud))]  # so that equal points stay visible
            axes.plot(cloud, spread, ".", color=figure_style.GREY, markersize=3, alpha=0.5, markeredgewidth=0)
            if tick is not None:
                axes.plot([tick], [i], "|", color=figure_style.GREY, markersize=11, markeredgewidth=1.6)
            if value is not None:
                axes.plot([value], [i], **{**figure_style.style(run, 5), "linestyle": "none"})
            written = "–" if value is None else f"{value:.{panel.digits}f}"
            at = {"annotation_clip": False, "va": "center_baseline", "fontsize": 8}
            axes.annotate(written, (1.03, i), (0, 0), axes.get_yaxis_transform(), "offset points", **at)
        figure_style.name_rows(axes, [figure_style.label(run, titles - 0.15) if column == 0 else "" for run in runs])
        axes.margins(x=0.12)
        axes.set_title(panel.title, loc="left")
        axes.set_xlabel(panel.axis)
        axes.locator_params(axis="x", nbins=2)
        axes.tick_params(axis="x", labelsize=7)
    return figure_style.save(figure, path, text)
