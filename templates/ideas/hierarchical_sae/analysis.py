"""What the tiers of a hierarchical SAE do: how the active latents spread over them, and what predicts what."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent import canvas
from agent.lab.results import Measure
from agent.study import Run

if TYPE_CHECKING:
    from agent.lab.evaluation.examination import Examination

TIER_COLOURS = ("#000000", "#0072B2", "#56B4E9", "#E69F00")  # dark to light, as tiers have an order
TIER_HATCHES = ("", "////", "....", "xxxx")  # without their colour they differ by these

MEASURES = {
    **{
        f"tier_{i}_l0_share": Measure(
            title=f"tier {i}: share of L0", says=f"the share of the active latents that belong to tier {i}"
        )
        for i in range(3)
    },
    **{
        f"tier_{i}_alive_fraction": Measure(
            title=f"tier {i}: alive fraction", says=f"the share of tier {i}'s latents that fire on the evaluation text"
        )
        for i in range(3)
    },
    **{
        f"composition_{i}_r2": Measure(
            title=f"composition R², tier {i} to {i + 1}",
            says=f"1 - sum ||h_{i} W - h_{i + 1}||^2 / sum ||h_{i + 1} - mean||^2: how much of the latents h_{i + 1} of "
            f"tier {i + 1} the learned map W predicts from those of tier {i}; 0 is what their mean would predict",
        )
        for i in range(2)
    },
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Each of MEASURES on the held-out activations; nothing for an SAE without tiers.

    Latents are those of the scaled activations, as in training, where W was learned on them.
    """
    import torch

    checkpoint = exam.checkpoint
    tiers = list(checkpoint.header.groups.values())
    if not tiers:
        return {}
    compositions = [checkpoint.extra[f"composition_{i}"].double() for i in range(len(tiers) - 1)]
    d_sae, tokens = checkpoint.header.d_sae, len(exam.activations)
    fired, total, squares = torch.zeros(3, d_sae, dtype=torch.float64, device=checkpoint.device)
    errors = [0.0 for _ in compositions]
    for batch in exam.latents():
        latents = batch.double()
        fired += (latents != 0).sum(0)
        total += latents.sum(0)
        squares += latents.pow(2).sum(0)
        for i, W in enumerate(compositions):
            (a, b), (c, d) = tiers[i], tiers[i + 1]
            errors[i] += (latents[:, a:b] @ W - latents[:, c:d]).pow(2).sum().item()
    deviations = squares - total.pow(2) / tokens  # sum over the tokens of (h - mean)^2
    figures = {}
    for i, (start, end) in enumerate(tiers):
        figures[f"tier_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"tier_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    for i, (start, end) in enumerate(tiers[1:]):
        figures[f"composition_{i}_r2"] = (1 - errors[i] / deviations[start:end].sum()).item()
    return figures


def draw(directory: Path, runs: Sequence[Run]) -> list[canvas.Figure]:
    """tier_activity.png: how the active and the live latents spread over the tiers, and how well one predicts the next.

    Of the runs that count and have tiers, from their measures tier_i_l0_share, tier_i_alive_fraction and composition_i_r2.
    """
    found = [(run, run.info.analysis) for run in runs if run.counts and run.info]
    shown = [(run, analysis) for run, analysis in found if "tier_0_l0_share" in analysis]
    if not shown:
        return []
    tiers = range(max(sum(name.endswith("_l0_share") for name in analysis) for _, analysis in shown))
    columns = {  # what a panel shows, its axis, and the measure of each tier
        ("share of L0", "fraction of L0"): [f"tier_{i}_l0_share" for i in tiers],
        ("alive fraction", "fraction of the tier"): [f"tier_{i}_alive_fraction" for i in tiers],
        ("composition R²", "R² from the tier below"): ["", *(f"composition_{i - 1}_r2" for i in tiers[1:])],
    }
    titles, above, height, thickness = 2.75, 0.28, 0.36 * len(shown) + 0.05, 0.8 / len(tiers)
    figure = canvas.page(above + height + 0.75)
    cell = (canvas.WIDTH - titles) / len(columns)
    for place, ((title, axis), names) in enumerate(columns.items()):
        panel = canvas.add_panel(figure, titles + place * cell, above, cell - 0.25, height)
        for i, name in enumerate(names):
            values = [math.nan if (value := analysis.get(name)) is None else value for _, analysis in shown]
            rows = [row + (i - (len(tiers) - 1) / 2) * thickness for row in range(len(shown))]
            look = {"color": TIER_COLOURS[i % 4], "hatch": TIER_HATCHES[i % 4], "edgecolor": "white", "linewidth": 0}
            panel.barh(rows, values, thickness, label=f"tier {i}{' (lowest)' if i == 0 else ''}", **look)
        canvas.name_rows(panel, [canvas.label(run, titles - 0.15) if place == 0 else "" for run, _ in shown])
        panel.axvline(0, color=canvas.GREY, linewidth=1)
        panel.grid(visible=False, axis="y")
        panel.set_title(title, loc="left")
        panel.set_xlabel(axis)
        panel.locator_params(axis="x", nbins=3)
    canvas.legend(figure, figure.axes[0], columns=len(tiers))
    told = []
    for run, analysis in shown:
        values = [_tell(analysis.get(name) for name in names if name) for names in columns.values()]
        said = ", ".join(f"{title} {value}" for (title, _), value in zip(columns, values, strict=True))
        told.append(f"run {run.number}: {said}")
    return [
        canvas.save(
            figure,
            directory / "tier_activity.png",
            "the tiers of each run that has them, lowest first: the share of the active latents that lie in the tier, "
            "the fraction of the tier's latents that are alive, and the R² of predicting the tier by the composition "
            f"map from the one below, which the lowest tier does not have. {'; '.join(told)}."
            + canvas.missing([run for run, _ in shown], runs, "has no measured tiers"),
        )
    ]


def _tell(values: Iterable[float | None]) -> str:
    return " / ".join("not measured" if value is None else f"{value:.3f}" for value in values)
