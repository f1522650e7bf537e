"""What the nested prefixes of a Matryoshka SAE do: how each rebuilds alone, how each is used, what is in the first."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import canvas
from agent.lab import results
from agent.lab.results import Measure
from agent.study import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

    from agent.lab.evaluation.examination import Examination

DRAWS = 8  # random orders of the latents, beside their own
MOST = 5  # prefixes that are measured
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#E69F00", "#D55E00")  # dark to light to warm, as prefixes have an order
HATCHES = ("", "////", "....", "xxxx", "----")  # without their colour they differ by these

MEASURES = {
    **{
        f"prefix_{i}_explained_variance": Measure(
            title=f"prefix {i} alone: explained variance",
            says=f"1 - sum ||x - x_{i}||^2 / sum ||x - mean||^2, where x_{i} is what the latents of prefix {i} decode "
            "to without the others (Bussmann et al. 2025, arXiv 2503.17547)",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_random_explained_variance": Measure(
            title=f"as many random latents as prefix {i}: explained variance",
            says=f"the same of as many latents as prefix {i} has, drawn at random from the whole SAE: the mean of "
            f"{DRAWS} draws",
        )
        for i in range(MOST - 1)
    },
    **{
        f"prefix_{i}_l0_share": Measure(
            title=f"added by prefix {i}: share of L0",
            says=f"the share of the active latents that are in prefix {i} and in no shorter one",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_alive_fraction": Measure(
            title=f"added by prefix {i}: alive fraction",
            says=f"the share of the latents in prefix {i}, and in no shorter one, that fire on the evaluation samples",
        )
        for i in range(MOST)
    },
    "parents_learned": Measure(
        title="parents with a latent",
        says="the share of the world's parent features (those with descendants) that a latent belongs to: it fires, "
        "and its decoder row is most like this feature, with a cosine of at least 0.5",
    ),
    "parents_in_first": Measure(
        title="parents in the first prefix",
        says="of the parents with a latent, the share whose latent, or the one most like it, is in the first prefix",
    ),
    "parents_in_first_by_chance": Measure(
        title="parents in the first prefix, by chance",
        says="the same share of all features with a latent, and so what to expect if being a parent meant nothing",
    ),
    "parents_in_first_by_rate": Measure(
        title="parents in the first prefix, by firing rate",
        says="the same share of the parents if the features with a latent stood in the order of how often they are "
        "present: parents are present more often than their descendants, so what lies beyond chance and not beyond "
        "this is an order by firing rate and no knowledge of the hierarchy",
    ),
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Those of MEASURES that the SAE and its subject allow: prefixes where it has them, parents on a world."""
    groups = [group for name, group in exam.checkpoint.header.groups.items() if name.startswith("prefix_")][:MOST]
    figures = {}
    if groups:
        results.keep(exam.out, "prefixes.json", {"ends": [end for _, end in groups]})
        figures = _reconstruction(exam, groups) | _use(exam, groups)
    return figures | ({} if exam.has_loss else _parents(exam, groups))


def _reconstruction(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The explained variance of each prefix, in the latents' own order and in random ones."""
    import torch

    sae, generator = exam.sae, torch.Generator().manual_seed(0)
    d_sae = len(sae.W_dec)
    orders = [torch.arange(d_sae), *(torch.randperm(d_sae, generator=generator) for _ in range(DRAWS))]
    orders = [order.to(sae.W_dec.device) for order in orders]
    errors, deviation = torch.zeros(len(orders), len(groups), dtype=torch.float64), 0.0
    for x, latents in zip(exam.activations.split(4096), exam.latents(), strict=True):
        deviation += (x - exam.held_out.mean).double().pow(2).sum().item()
        for i, order in enumerate(orders):
            left = x - sae.b_dec
            for j, (start, end) in enumerate(groups):
                chosen = order[start:end]
                left = left - latents[:, chosen] @ sae.W_dec[chosen]
                errors[i, j] += left.double().pow(2).sum().item()
    explained = 1 - errors / deviation
    own, drawn = explained[0].tolist(), explained[1:].mean(0).tolist()
    figures = {f"prefix_{i}_explained_variance": value for i, value in enumerate(own)}
    return figures | {f"prefix_{i}_random_explained_variance": value for i, value in enumerate(drawn[:-1])}


def _use(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How the active and the live latents spread over what each prefix adds."""
    import torch

    fired = torch.stack([(latents != 0).sum(0) for latents in exam.latents()]).sum(0).double()
    figures = {}
    for i, (start, end) in enumerate(groups):
        figures[f"prefix_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"prefix_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    return figures


def _parents(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How many of the parents of a world's hierarchy have a latent, and how many have it in the first prefix.

    A latent belongs to a feature as it does where absorption is measured (agent.lab.evaluation.families.synthetic).
    """
    import torch
    import torch.nn.functional as F

    from agent.lab.evaluation.families.synthetic import MATCHED, descendants
    from agent.lab.evaluation.world import Drawn, WorldEvaluator

    assert isinstance(exam.evaluator, WorldEvaluator)
    assert isinstance(exam.held_out, Drawn)
    world = exam.evaluator.world
    if world.hierarchy is None:
        return {}
    fired = torch.stack([(latents != 0).any(0) for latents in exam.latents()]).any(0)
    directions = F.normalize(world.feature_dict.feature_vectors, dim=1)
    cosine, feature = (F.normalize(exam.sae.W_dec, dim=1) @ directions.T).max(1)
    mine = ((cosine >= MATCHED) & fired).tolist()
    latent = {int(feature[i]): i for i in cosine.argsort().tolist() if mine[i]}  # the last of them is the most alike
    everyone = set(descendants(world))
    parents = everyone & latent.keys()
    figures = {"parents_learned": len(parents) / len(everyone)}
    if not groups or not parents:
        return figures
    end = groups[0][1]
    first = {name for name, i in latent.items() if i < end}
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in exam.held_out.features]).sum(0).tolist()
    by_rate = set(sorted(latent, key=lambda name: -present[name])[: len(first)])
    return figures | {
        "parents_in_first": len(parents & first) / len(parents),
        "parents_in_first_by_chance": len(first) / len(latent),
        "parents_in_first_by_rate": len(parents & by_rate) / len(parents),
    }


def draw(directory: Path, runs: Sequence[Run]) -> list[canvas.Figure]:
    """Of the runs that count and have prefixes: how each prefix rebuilds alone (prefix_reconstruction.png), how the
    latents spread over what each adds (prefix_activity.png) and how that came about in training (prefix_training.png);
    on a world also what parents stand in the first (prefix_parents.png)."""
    shown = [run for run in runs if run.counts and run.info and "prefix_0_l0_share" in run.info.analysis]
    if not shown:
        return []
    figures = [_reconstruction_figure(directory, shown, runs), _activity_figure(directory, shown, runs)]
    trained = [run for run in runs if any("prefix_0_l0_share" in row.own for row in run.metrics())]
    if trained:
        figures.append(_training_figure(directory, trained, runs))
    if with_parents := [run for run in shown if _figures(run).get("parents_in_first") is not None]:
        figures.append(_parents_figure(directory, with_parents, runs))
    return figures


def _reconstruction_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> canvas.Figure:
    columns = {"EV of the prefix alone": "explained_variance", "EV of random latents": "random_explained_variance"}
    figure, (axes,) = canvas.panels(1, len(columns), height=2.4, named=len(shown))
    axes[1].sharey(axes[0])
    told = []
    for run in shown:
        ends, name = run.kept("prefixes.json").get("ends", []), canvas.label(run)
        values = {kind: _values(run, f"prefix_{{}}_{kind}", len(ends)) for kind in columns.values()}
        values["random_explained_variance"][-1:] = values["explained_variance"][-1:]  # all latents are all latents
        for panel, kind in zip(axes, columns.values(), strict=True):
            panel.plot(ends, values[kind], label=name, linewidth=1.2, alpha=0.85, **canvas.style(run, 5))
        pairs = zip(ends, *values.values(), strict=True)
        said = [f"{end} latents {own:.3f} ({drawn:.3f})" for end, own, drawn in pairs]
        told.append(f"run {run.number}: {', '.join(said)}")
    for panel, title in zip(axes, columns, strict=True):
        panel.axhline(0, color=canvas.GREY, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="latents", ylabel=title)
    canvas.legend(figure, axes[0])
    return canvas.save(
        figure,
        directory / "prefix_reconstruction.png",
        "explained variance (EV) against the number of latents (logarithmic), on the left of each prefix alone, on the "
        f"right of as many latents drawn at random from the same SAE, mean of {DRAWS} draws; the last prefix is the "
        "whole SAE, and below 0 the mean activation would do better. Each prefix, with the random latents in brackets: "
        f"{'; '.join(told)}.{canvas.missing(shown, runs, 'has no measured prefixes')}",
    )


def _activity_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> canvas.Figure:
    counts = [sum(name.endswith("_l0_share") for name in _figures(run)) for run in shown]
    counted = range(max(counts))
    columns = {  # what a panel shows, its axis, and the measure of each prefix
        ("share of L0", "fraction of L0"): "prefix_{}_l0_share",
        ("alive fraction", "fraction of what the prefix adds"): "prefix_{}_alive_fraction",
    }
    height, thickness = 0.42 * len(shown) + 0.05, 0.8 / len(counted)
    figure, axes = _rows(shown, len(columns), height)
    for panel, ((title, axis), measured) in zip(axes, columns.items(), strict=True):
        values = [_values(run, measured, len(counted)) for run in shown]
        for i in counted:
            rows = [row + (i - (count - 1) / 2) * thickness for row, count in enumerate(counts)]
            look = {"color": COLOURS[i], "hatch": HATCHES[i], "edgecolor": "white", "linewidth": 0}
            name = f"prefix {i}{'' if i else ' (smallest)'}"
            panel.barh(rows, [each[i] for each in values], thickness, label=name, **look)
        panel.axvline(0, color=canvas.GREY, linewidth=1)
        panel.set_title(title, loc="left")
        panel.set_xlabel(axis)
    canvas.legend(figure, axes[0], columns=len(counted))
    told = []
    for run in shown:
        said = [f"{title} {_tell(_values(run, name, len(counted)))}" for (title, _), name in columns.items()]
        told.append(f"run {run.number}: {', '.join(said)}")
    return canvas.save(
        figure,
        directory / "prefix_activity.png",
        "the latents that each prefix adds to the one before it, smallest prefix first: the share of the active "
        f"latents that they are, and the fraction of them that are alive. {'; '.join(told)}."
        + canvas.missing(shown, runs, "has no measured prefixes"),
    )


def _training_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> canvas.Figure:
    figure, (axes,) = canvas.panels(1, 2, height=2.0, named=len(shown))
    told = []
    for run in shown:
        rows, label = run.metrics(), canvas.label(run)
        ends = [name for name in rows[0].own if name.startswith("prefix_")]
        apart = max(1, len(rows) // 5)
        last = []
        for panel, name in zip(axes, (ends[0], ends[-1]), strict=True):
            shares = [math.nan if (share := row.own.get(name)) is None else share for row in rows]
            marked = (3 * run.number % apart, apart)
            x = [row.tokens / 1e6 for row in rows]
            panel.plot(x, shares, label=label, linewidth=1.4, markevery=marked, **canvas.style(run, 3.5))
            last.append(shares[-1])
        told.append(f"run {run.number}: {last[0]:.3f} and {last[1]:.3f}{canvas.remark(run)}")
    for panel, title in zip(axes, ("L0 share, smallest prefix", "L0 share, added by the largest"), strict=True):
        panel.set(xlabel="tokens (millions)", ylabel=title)
        panel.set_ylim(bottom=0)
    canvas.legend(figure, axes[0])
    return canvas.save(
        figure,
        directory / "prefix_training.png",
        "the share of L0, the active latents, that lies in the smallest prefix, and that the largest adds to the one "
        "before it, against training tokens, as the training recorded them on its own batches. At the end of training, "
        f"{'; '.join(told)}.{canvas.missing(shown, runs, 'left no history of its prefixes')}",
    )


def _parents_figure(directory: Path, shown: Sequence[Run], runs: Sequence[Run]) -> canvas.Figure:
    marks = {
        "parents_in_first": ("parents in the first prefix", "o", "#0072B2"),
        "parents_in_first_by_chance": ("expected by chance", "|", "#000000"),
        "parents_in_first_by_rate": ("if it held the most frequent features", "D", "#D55E00"),
    }
    figure, (panel,) = _rows(shown, 1, 0.3 * len(shown) + 0.05)
    for name, (said, marker, colour) in marks.items():
        x = [_figures(run)[name] or 0.0 for run in shown]
        look: dict[str, Any] = {
            "color": colour,
            "markerfacecolor": colour if marker == "o" else "none",
            "markersize": 8,
        }
        panel.plot(x, range(len(shown)), marker, label=said, **look)
    panel.set_xlim(left=0)
    panel.set_xlabel("fraction of the parents that have a latent")
    canvas.legend(figure, panel, columns=3)
    told = []
    for run in shown:
        learned, first, chance, by_rate = (_figures(run)[name] for name in ("parents_learned", *marks))
        told.append(f"run {run.number}: {first:.3f}, {chance:.3f} and {by_rate:.3f} ({learned:.3f} have a latent)")
    return canvas.save(
        figure,
        directory / "prefix_parents.png",
        "of the world's parent features that have a latent, the fraction that has it in the first prefix, beside what "
        "chance gives and what a prefix of the most frequent features would give. "
        f"{'; '.join(told)}.{canvas.missing(shown, runs, 'has no parents measured in a first prefix')}",
    )


def _rows(shown: Sequence[Run], columns: int, height: float) -> "tuple[MatplotlibFigure, list[Axes]]":
    """Panels beside each other with a row for each run, named on the left."""
    titles, above = 2.75, 0.28
    figure, cell = canvas.page(above + height + 0.75), (canvas.WIDTH - titles) / columns
    axes = [canvas.add_panel(figure, titles + i * cell, above, cell - 0.25, height) for i in range(columns)]
    for i, panel in enumerate(axes):
        canvas.name_rows(panel, [canvas.label(run, titles - 0.15) if i == 0 else "" for run in shown])
        panel.grid(visible=False, axis="y")
        panel.locator_params(axis="x", nbins=4)
    return figure, axes


def _figures(run: Run) -> Mapping[str, float | None]:
    assert run.info
    return run.info.analysis


def _values(run: Run, name: str, count: int) -> list[float]:
    """A measure of each prefix, by the name's number; NaN where there is none."""
    found = [_figures(run).get(name.format(i)) for i in range(count)]
    return [math.nan if value is None else value for value in found]


def _tell(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values if not math.isnan(value))
