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
    shuffled = np.random.default_rng(0).permutation(b.shape[1])
    cosines = [a @ b.T, a @ b[:, shuffled].T]
    return tuple(float(matrix[linear_sum_assignment(matrix, maximize=True)].mean()) for matrix in cosines)  # type: ignore


def stability(run: Run) -> tuple[float, float, int] | None:
    """Return the means of matched_cosine of a run's live decoder rows over its other seeds, and how many there are.

    Other seeds are the fresh ones of a run that looked better, in run_<i>_seed_<seed>, and for run 0 the baseline's, in
    baseline_k<K>_seed_<seed>. Return None if there are none.
    """
    others = sorted(run.directory.parent.glob(f"{run.directory.name}_seed_*"))
    if run.number == 0 and run.info and run.info.training and "K" in run.info.training.settings:
        own = run.info.training
        names = f"baseline_k{own.settings['K']:g}_seed"
        others += [p for p in sorted(run.directory.parent.glob(f"{names}*")) if p.name != f"{names}{own.seed}"]
    own_rows, seeds = _live_rows(run.directory), [rows for path in others if (rows := _live_rows(path)) is not None]
    if own_rows is None or not seeds:
        return None
    cosines = [matched_cosine(own_rows, rows) for rows in seeds]
    return sum(c[0] for c in cosines) / len(cosines), sum(c[1] for c in cosines) / len(cosines), len(cosines)


def _live_rows(directory: Path) -> "np.ndarray | None":
    """Return the decoder rows [n, d_in] of the live latents, or all rows if it was not measured which are alive."""
    from safetensors.numpy import load_file

    path = directory / "checkpoint/tensors.safetensors"
    if not path.is_file():
        return None
    rows = load_file(path)["W_dec"]
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
    else:
        second = _metric(runs, "f1" if _measured(runs, "f1") else "ce_loss_score")
    dead, merged, left = (_own(runs, name) for name in ("dead_fraction", "duplicates_merged", "duplicate_pairs"))
    panels = [
        first,
        second,
        Panel("dead latents", "fraction of the latents", dead),
        Panel("duplicates merged", f"latents (grey: pairs left above {DUPLICATE})", merged, 0, left),
    ]
    text = [f"a row for each run: {first.title}; {second.title}; the fraction of the latents that never fire; and the"]
    text += ["latents merged as duplicates during training, with the pairs of live latents whose cosine is still above"]
    text += [f"{DUPLICATE}."]
    if not absorption:
        text += ["Absorption was not measured; explained variance is shown instead."]
    if any(stable):
        seeds = [f"run {r.number} with {s[2]}" for r, s in zip(runs, stable, strict=True) if s]
        text += ["Features found again: the mean cosine of a run's live decoder rows with their one-to-one partners in"]
        text += [f"its other seeds ({', '.join(seeds)}), and with the other seeds' dimensions shuffled; the runs"]
        text += ["without a figure have no other seed." if len(seeds) < len(runs) else "all have other seeds."]
    else:
        text += [f"No run has another seed to match features with, so {second.title} is shown instead."]
    return "metrics_comparison.png", panels, " ".join(text)


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
            "a row for each run: the cosine of each decoder row with its nearest; absorption itself was not measured "
            "in these runs. A latent that also writes another's direction is nearer to it, but so are latents of "
            "related features, so this is no measure of absorption."
        )
        return "absorption_rates.png", [panel], text
    if name == "absorption_true":
        rates_by_run = [_parents(run) for run in runs]
        meaning, item = (
            "share of a parent's samples on which a descendant's latent fires in place of its own",
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
    counts = ", ".join(f"run {run.number}: {len(rates)}" for run, rates in zip(runs, rates_by_run, strict=True))
    worst = "; ".join(
        f"run {run.number}: {sum(r > 0.1 for r in rates)} above 0.1"
        for run, rates in zip(runs, rates_by_run, strict=True)
    )
    text = (
        f"a row for each run: absorption, the {meaning}: the mean, and each {item} as a point, with the highest rate "
        f"marked and given. Each {item} without a latent in the run is left out (shown: {counts}). {worst}."
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
            "there is no probing of these runs, as a world has no labelled text; shown instead is how well the latents"
        )
        text += " detect the true features: F1, precision and recall, means over the latents."
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
        "test accuracy of sparse probing on the most informative latents: the mean over the datasets, each dataset as "
        "a point, and in grey the mean of a probe on all of the model's own activations."
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
    summaries = []
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
            at = {"annotation_clip": False, "va": "center_baseline", "fontsize": 8}
            row_end = axes.get_yaxis_transform()
            axes.annotate(
                "–" if value is None else _format(value, panel.digits),
                (1.03, i),
                (0, 0),
                row_end,
                "offset points",
                **at,
            )
        figure_style.name_rows(axes, [figure_style.label(run, titles - 0.15) if column == 0 else "" for run in runs])
        axes.margins(x=0.12)
        axes.set_title(panel.title, loc="left")
        axes.set_xlabel(panel.axis)
        axes.locator_params(axis="x", nbins=2)
        axes.tick_params(axis="x", labelsize=7)
        rows_text = [
            f"run {run.number} {_format(value, panel.digits)}{_grey(tick, panel.digits)}"
            for run, value, tick in zip(runs, panel.values, ticks, strict=True)
        ]
        summaries.append(f"{panel.title}: {', '.join(rows_text)}")
    return figure_style.save(figure, path, f"{text} {'; '.join(summaries)}.")


def _grey(tick: float | None, digits: int) -> str:
    return "" if tick is None else f" (grey {_format(tick, digits)})"


def _format(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"
