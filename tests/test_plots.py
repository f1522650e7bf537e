"""Figures say what their data say, in print and without colour, and nothing in them overlaps."""

import importlib.util
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text

from agent import plots
from agent.comparison import Baseline, compare, figures, judge
from agent.ideas import TEMPLATES
from agent.lab.results import Core, FinalInfo, Latents, Probing
from agent.lab.verdicts import MetricsRow, Verdict
from agent.ledger import RunState
from agent.proposers import Proposal
from agent.study import Run

TITLES = (
    "Baseline",
    "Three tiers with a composition loss",
    "Learned tier importance weights",
    "Curriculum over tiers",
    "Ablation: no composition loss",
    "Ablation: tiers that grow",
)
# L0, explained variance, CE-loss score, alive fraction, probing AUC: as a study of hierarchical_sae came out
MEASURED = (
    (16.29, 0.8445, 0.9623, 0.981, 0.671),
    (16.27, 0.8418, 0.9607, 0.979, 0.674),
    (16.25, 0.8386, 0.9589, 0.975, 0.668),
    (16.17, 0.7928, 0.9437, 0.702, 0.672),
    (16.25, 0.8079, 0.9499, 0.744, 0.665),
    (16.15, 0.7825, 0.9380, 0.653, 0.660),
)
PRIMARY, SMALLEST_EFFECT = "ce_loss_score", 0.005


def measured(l0: float, ev: float, score: float, alive: float, auc: float) -> FinalInfo:
    core = dict.fromkeys(Core.model_fields, 0.5) | {
        "l0": l0,
        "explained_variance_centered": ev,
        "ce_loss_score": score,
        "loss_added": 5 * (1 - score),
        "tokens": 10,
    }
    return FinalInfo(
        verdict=Verdict(name="ok", evidence="as measured"),
        core=Core.model_validate(core),
        latents=Latents.model_validate(dict.fromkeys(Latents.model_fields, 1.0) | {"alive_fraction": alive}),
        probing=Probing(auc={5: auc}, accuracy={}, random_auc={}, llm_auc=0.8, llm_accuracy=0.8, datasets=[]),
    )


def baseline(k: int, seed: int = 0) -> Baseline:
    """K 16 is a little above L0 16; five seeds of it spread by 0.0005 of explained variance."""
    l0, noise = 1.018 * k, (0.0, 0.7, -1.2, 1.1, -0.6)[seed]
    doublings = math.log2(k / 16)
    ev, score = 0.8445 + 0.05 * doublings, 0.9623 + 0.011 * doublings
    info = measured(l0, ev + 0.0005 * noise, score + 0.0003 * noise, 0.98 + 0.002 * noise, 0.671 + 0.004 * noise)
    return Baseline(k=k, seed=seed, figures=figures(info))


BASELINES = [baseline(k) for k in (8, 11, 15, 17, 23, 32)] + [baseline(16, seed) for seed in range(5)]


def history(directory: Path, final: FinalInfo, loss: float = 40.0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    l0, alive = final.metric("l0"), final.metric("alive_fraction")
    assert alive is not None
    rows = [
        MetricsRow(
            step=10 * i,
            tokens=15_000 * i,
            loss=loss / i**0.5,
            l0=l0,
            mse=1.0,
            alive_fraction=alive + (1 - alive) * math.exp(-i / 30),
            learning_rate=1e-3,
            grad_norm=1.0,
            seconds=float(i),
        )
        for i in range(1, 101)
    ]
    (directory / "metrics.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))


def run(directory: Path, number: int, title: str, info: FinalInfo | None) -> Run:
    proposal = Proposal(name="p", title=title, description="d", why="w", predictions={}, source="")
    return Run(RunState(number=number, proposal=proposal, stage="done"), directory / f"run_{number}", info)


def study(directory: Path, count: int = 6, baselines: Sequence[Baseline] = BASELINES) -> list[Run]:
    """Run 0, then as many variants as wanted, each beside the baseline and with its tiers measured."""
    runs = []
    for number in range(count):
        l0, *rest = MEASURED[number % len(MEASURED)]
        info = measured(l0 + 0.01 * (number // 6), *rest)
        history(directory / f"run_{number}", info, 40 + 2 * number)
        if number:
            comparison = compare(info, baselines) if baselines else None
            info = info.model_copy(update={"comparison": comparison, "analysis": tiers(number)})
        runs.append(run(directory, number, TITLES[number % len(TITLES)], info))
    return runs


def tiers(number: int) -> dict[str, float | None]:
    shares, alive = (0.55, 0.30, 0.15), (0.99, 0.9 - 0.05 * number % 0.5, 0.8 - 0.13 * number % 0.7)
    return {
        **{f"tier_{i}_l0_share": share for i, share in enumerate(shares)},
        **{f"tier_{i}_alive": fraction for i, fraction in enumerate(alive)},
        **{f"composition_{i}_r2": 0.31 - 0.05 * number * i for i in range(2)},
    }


def idea_draw() -> plots.Draw:
    path = TEMPLATES / "ideas/hierarchical_sae/analysis.py"
    spec = importlib.util.spec_from_file_location("analysis", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw


def write(directory: Path, runs: list[Run], baselines: Sequence[Baseline] = BASELINES) -> dict[str, plots.Figure]:
    comparisons = {run.number: run.info.comparison for run in runs if run.info and run.info.comparison}
    judgements = judge(comparisons, PRIMARY, SMALLEST_EFFECT, {})
    written = plots.write(directory, runs, baselines, judgements, PRIMARY, SMALLEST_EFFECT, idea_draw())
    return {figure.name: figure for figure in written}


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


def long_titles(runs: list[Run]) -> list[Run]:
    proposals = [
        run.state.proposal.model_copy(update={"title": f"WIDE $\\frac TITLE\n{'OF MANY WORDS ' * 9}"}) for run in runs
    ]
    states = [RunState(run.number, proposal, "done") for run, proposal in zip(runs, proposals, strict=True)]
    return [Run(state, run.directory, run.info) for run, state in zip(runs, states, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 6, 12, 30])
def test_nothing_overlaps(tmp_path: Path, count: int):
    for name, figure in write(tmp_path, study(tmp_path, count)).items():
        assert overlapping(figure) == [], name
