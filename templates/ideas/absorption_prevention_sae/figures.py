"""Draws how features stay apart: absorption, dead and duplicate latents, probing, what another seed finds again."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.lab import results
from agent.lab.metrics import METRICS
from agent.report import figure_style
from agent.study.runs import Run

if TYPE_CHECKING:
    import numpy as np

DUPLICATE = 0.9  # cosine of two decoder rows from which they are duplicates; the same in analysis.py
ROWS = 2048  # the most decoder rows of a run that are matched with another's
ABSORPTIONS = ("absorption_true", "absorption")  # of a world, and SAE-Bench's of a model that can spell


def matched_cosine(a: "np.ndarray", b: "np.ndarray") -> tuple[float, float]:
    """How much of one SAE another one finds again: decoder rows `a [n, d_in]` and `b [m, d_in]`, in their own units.

    The first figure is the mean cosine of a's rows with their partners in b, one to one, in the assignment with the
    highest sum (Hungarian method, as in Paulo and Belrose 2025, arXiv 2501.16615); the second the same with b's
    dimensions shuffled, which leaves b's own geometry and takes away all it shares with a. There are as many pairs as
    the smaller one has rows; what has no partner does not count. Of more than ROWS rows of a, as many are taken at
    equal distances, which then choose among all of b's.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (a, b))
    a = a[:: math.ceil(len(a) / ROWS)]
    shuffled = np.random.default_rng(0).permutation(b.shape[1])
    cosines = [a @ b.T, a @ b[:, shuffled].T]
    return tuple(float(each[linear_sum_assignment(each, maximize=True)].mean()) for each in cosines)  # type: ignore


def stability(run: Run) -> tuple[float, float, int] | None:
    """matched_cosine of a run's live decoder rows with those of each of its other seeds: the means, and how many seeds.

    Other seeds are the fresh ones of a run that seemed better, in run_<i>_seed_<seed> beside it, and for run 0 the
    baseline's, in baseline_k<K>_seed_<seed>. None where there are none.
    """
    others = sorted(run.directory.parent.glob(f"{run.directory.name}_seed_*"))
    if run.number == 0 and run.info and run.info.training and "K" in run.info.training.settings:
        own = run.info.training
        names = f"baseline_k{own.settings['K']:g}_seed"
        others += [p for p in sorted(run.directory.parent.glob(f"{names}*")) if p.name != f"{names}{own.seed}"]
    mine, theirs = _live_rows(run.directory), [rows for path in others if (rows := _live_rows(path)) is not None]
    if mine is None or not theirs:
        return None
    found = [matched_cosine(mine, rows) for rows in theirs]
    return sum(f[0] for f in found) / len(found), sum(f[1] for f in found) / len(found), len(found)


def _live_rows(directory: Path) -> "np.ndarray | None":
    """Decoder rows [n, d_in] of the latents that fire, or all of them where nobody looked which do."""
    from safetensors.numpy import load_file

    path = directory / "checkpoint/tensors.safetensors"
    if not path.is_file():
        return None
    rows = load_file(path)["W_dec"]
    alive = results.read_kept(directory / "eval/analysis/alive.json").get("alive")
    return rows[alive] if alive else rows


class Panel(NamedTuple):
    """A row for each run: a value, as a grey tick what to hold it against, and as grey points what it sums up."""

    title: str
    axis: str
    values: Sequence[float | None]
    digits: int = 3
    ticks: Sequence[float | None] = ()
    points: Sequence[Sequence[float]] = ()


def draw(directory: Path, runs: Sequence[Run]) -> list[figure_style.Figure]:
    """metrics_comparison.png, absorption_rates.png where absorption was measured, and probing_accuracy.png."""
    shown = [run for run in runs if run.counts]
    if not shown:
        return []
    lacking = figure_style.missing(shown, runs, "has no result")
    pages = [_metrics_comparison(shown), _absorption_rates(shown), _probing_accuracy(shown)]
    return [_write(directory / name, shown, panels, text + lacking) for name, panels, text in pages]


Page = tuple[str, list[Panel], str]  # a figure's name, its panels, and what it shows


def _metrics_comparison(runs: Sequence[Run]) -> Page:
    """2x2: absorption, features found again by other seeds, dead latents, duplicates; or what stands in for them."""
    absorption = next((name for name in ABSORPTIONS if _measured(runs, name)), None)
    stable = [stability(run) for run in runs]
    first = _metric(runs, absorption or "explained_variance_centered")
    if any(stable):
        values, ticks = ([None if found is None else found[i] for found in stable] for i in range(2))
        second = Panel("features found again", "matched cosine (grey: shuffled)", values, 3, ticks)
    else:
        second = _metric(runs, "f1" if _measured(runs, "f1") else "ce_loss_score")
    dead, merged, left = (_own(runs, name) for name in ("dead_fraction", "duplicates_merged", "duplicate_pairs"))
    panels = [
        first,
        second,
        Panel("dead latents", "fraction of the latents", dead),
        Panel("duplicates merged", f"latents (grey: pairs left above {DUPLICATE})", merged, 0, left),
    ]
    said = [f"a row for each run: {first.title}; {second.title}; the fraction of the latents that never fire; and"]
    said += ["latents merged as duplicates during the training, beside the pairs of live latents whose cosine is still"]
    said += [f"above {DUPLICATE}."]
    if not absorption:
        said += ["Absorption was not measured, and explained variance stands in its place."]
    if any(stable):
        seeds = [f"run {r.number} with {s[2]}" for r, s in zip(runs, stable, strict=True) if s]
        said += ["Features found again: the mean cosine of a run's live decoder rows with their one-to-one partners in"]
        said += [f"its other seeds ({', '.join(seeds)}), and with the other seeds' dimensions shuffled; the runs"]
        said += ["without a figure have no other seed." if len(seeds) < len(runs) else "all have other seeds."]
    else:
        said += [f"No run has another seed to be matched with, so {second.title} is shown for feature stability."]
    return "metrics_comparison.png", panels, " ".join(said)


def _absorption_rates(runs: Sequence[Run]) -> Page:
    """How often features are absorbed, and each parent or letter by itself."""
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
        said = (
            "a row for each run: how near the latents' decoder rows lie to each other; absorption itself was not "
            "measured of these runs. A latent that writes another's direction beside its own lies nearer to it, but so "
            "do latents of related features, so this is no measure of absorption."
        )
        return "absorption_rates.png", [panel], said
    if name == "absorption_true":
        each = [_parents(run) for run in runs]
        what, one = "share of a parent's samples on which a descendant's latent speaks for it", "parent feature"
    else:
        found = [run.info.evaluations.get("absorption") if run.info else None for run in runs]
        key = "mean_absorption_fraction"
        each = [[v for d in (f.details.values() if f else ()) if (v := d.get(key)) is not None] for f in found]
        what, one = "SAE-Bench's share of a letter's words whose letter other latents speak for", "letter"
    panels = [
        _metric(runs, name),
        Panel(f"each {one}, highest marked", "rate", [max(rates, default=None) for rates in each], 2, points=each),
    ]
    counts = ", ".join(f"run {run.number}: {len(rates)}" for run, rates in zip(runs, each, strict=True))
    worst = "; ".join(
        f"run {run.number}: {sum(r > 0.1 for r in rates)} above 0.1" for run, rates in zip(runs, each, strict=True)
    )
    said = (
        f"a row for each run: absorption, the {what}: the mean, and every {one} by itself, with the highest rate "
        f"marked and given. A {one} that no latent of the run has is left out (there are {counts}). {worst}."
    )
    return "absorption_rates.png", panels, said


def _parents(run: Run) -> list[float]:
    """The true absorption of each parent feature, as the evaluation recorded it."""
    path = next(iter(sorted(run.directory.glob("eval/synthetic/*_synthetic.json"))), None)
    parents = results.read_kept(path).get("absorption", {}).get("parents", {}) if path else {}
    return [parent["absorbed"] for parent in parents.values()]


def _probing_accuracy(runs: Sequence[Run]) -> Page:
    """Sparse probing by the number of latents that the probe sees; on a world, which has none, F1 and its parts."""
    found = [run.info.probing if run.info else None for run in runs]
    if not any(found):
        truth = [run.info.evaluations.get("synthetic") if run.info else None for run in runs]
        panels = [
            Panel(title, "mean over latents", [t.metrics.get(name) if t else None for t in truth])
            for name, title in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
        ]
        said = "there is no probing of these runs, as a world has no labelled text; in its place stands how well the"
        said += (
            " latents tell which of the true features are present: F1, precision and recall, means over the latents."
        )
        return "probing_accuracy.png", panels, said
    ks = sorted({k for probing in found if probing for k in probing.accuracy})
    panels = [
        Panel(
            f"top {k} latent{'s' if k > 1 else ''}",
            "accuracy (grey: model's own)",
            [probing.accuracy.get(k) if probing else None for probing in found],
            3,
            [probing.llm_accuracy if probing else None for probing in found],
            [
                [v for d in probing.datasets if (v := d.accuracy.get(k)) is not None] if probing else []
                for probing in found
            ],
        )
        for k in (ks[0], ks[-1])
    ]
    said = (
        "test accuracy of sparse probing on the latents that tell most: the mean over the datasets, each dataset as a"
    )
    said += " point, and in grey the mean of a probe on all of the model's own activations."
    return "probing_accuracy.png", panels, said


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
    """Panels beside each other, four of them two by two; a row for each run, with its value to the right of it."""
    columns = 2 if len(panels) in (2, 4) else len(panels)
    titles, above, below, height = 2.35, 0.28, 0.52, 0.22 * len(runs) + 0.1
    rows, cell = math.ceil(len(panels) / columns), (figure_style.WIDTH - titles) / columns
    figure = figure_style.page(rows * (above + height + below) + 0.05)
    told = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        top = row * (above + height + below) + above
        axes = figure_style.add_panel(figure, titles + column * cell, top, cell - 0.62, height)
        ticks, points = panel.ticks or [None] * len(runs), panel.points or [[]] * len(runs)
        for i, (run, value, tick, cloud) in enumerate(zip(runs, panel.values, ticks, points, strict=True)):
            spread = [i + 0.22 * ((7 * j) % 5 - 2) / 2 for j in range(len(cloud))]  # so that equal points are many
            axes.plot(cloud, spread, ".", color=figure_style.GREY, markersize=3, alpha=0.5, markeredgewidth=0)
            if tick is not None:
                axes.plot([tick], [i], "|", color=figure_style.GREY, markersize=11, markeredgewidth=1.6)
            if value is not None:
                axes.plot([value], [i], **{**figure_style.style(run, 5), "linestyle": "none"})
            at = {"annotation_clip": False, "va": "center_baseline", "fontsize": 8}
            beside = axes.get_yaxis_transform()
            axes.annotate(
                "–" if value is None else _said(value, panel.digits), (1.03, i), (0, 0), beside, "offset points", **at
            )
        figure_style.name_rows(axes, [figure_style.label(run, titles - 0.15) if column == 0 else "" for run in runs])
        axes.margins(x=0.12)
        axes.set_title(panel.title, loc="left")
        axes.set_xlabel(panel.axis)
        axes.locator_params(axis="x", nbins=3)
        each = zip(runs, panel.values, ticks, strict=True)
        said = [
            f"run {run.number} {_said(value, panel.digits)}{_grey(tick, panel.digits)}" for run, value, tick in each
        ]
        told.append(f"{panel.title}: {', '.join(said)}")
    return figure_style.save(figure, path, f"{text} {'; '.join(told)}.")


def _grey(tick: float | None, digits: int) -> str:
    return "" if tick is None else f" (grey {_said(tick, digits)})"


def _said(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"
