"""matryoshka_sae measures its prefixes correctly on checkpoints made by hand, and its figures show them."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import failed, run
from figure_checks import is_brief, overlapping
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from small_lab import load_of_idea
from small_world import FEATURES, examined, make_evaluator, on_world

from agent.lab.evaluation import ground_truth
from agent.lab.evaluation.evaluator import HeldOut
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow, Verdict
from agent.report import figure_style
from agent.study.runs import Run

SIZES = [4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # of what each latent represents; its variance is the square
GROUPS = {"prefix_0": (0, 1), "prefix_1": (1, 3), "prefix_2": (3, 8)}


@pytest.fixture(scope="module")
def analysis() -> SimpleNamespace:
    return load_of_idea("matryoshka_sae", "analysis.py")


@pytest.fixture(scope="module")
def drawing() -> SimpleNamespace:
    return load_of_idea("matryoshka_sae", "figures.py")


def by_hand(folder: Path, groups: Any = GROUPS) -> Examination:
    """Return one on activations along one axis at a time, equally often but the first twice: it explains them fully."""
    rows = torch.cat([torch.diag(torch.tensor(SIZES)), torch.zeros(1, 8)])
    rows[-1, 0] = SIZES[0]
    rows = rows.repeat(1000, 1)
    held_out = HeldOut(torch.empty(0), rows, rows.mean(0), rows)
    return examined(folder, SimpleNamespace(model_name="tiny-lm"), held_out, torch.eye(8), groups, scale=0.5)


# The measures


def test_a_prefix_explains_what_its_latents_explain(analysis: SimpleNamespace, tmp_path: Path):
    exam = by_hand(tmp_path)
    figures = analysis.measure(exam)
    deviation = (exam.activations - exam.held_out.mean).pow(2).sum().item() / 1000
    whole = 2 * 16 + 9 + 4 + 4 + 4
    for i, kept in enumerate((2 * 16, 2 * 16 + 9 + 4, whole)):
        assert figures[f"prefix_{i}_explained_variance"] == pytest.approx(1 - (whole - kept) / deviation, abs=1e-5)
    assert json.loads((tmp_path / "prefixes.json").read_text()) == {"ends": [1, 3, 8]}


def test_random_latents_explain_less_than_the_largest(analysis: SimpleNamespace, tmp_path: Path):
    """On average, random latents explain their share of what the whole SAE explains."""
    exam = by_hand(tmp_path)
    figures = analysis.measure(exam)
    deviation, whole = (exam.activations - exam.held_out.mean).pow(2).sum().item() / 1000, 53
    for i, share in enumerate((1 / 8, 3 / 8)):
        drawn, least = figures[f"prefix_{i}_random_explained_variance"], 1 - whole / deviation
        assert least < drawn < figures[f"prefix_{i}_explained_variance"]
        assert drawn == pytest.approx(1 - whole * (1 - share) / deviation, abs=0.2)
    assert "prefix_2_random_explained_variance" not in figures


def test_l0_and_alive_fraction_count_only_what_a_prefix_adds(analysis: SimpleNamespace, tmp_path: Path):
    figures = analysis.measure(by_hand(tmp_path, {"prefix_0": (0, 1), "prefix_1": (1, 8)}))
    assert figures["prefix_0_l0_share"] == pytest.approx(2 / 9)
    assert figures["prefix_1_l0_share"] == pytest.approx(7 / 9)
    assert figures["prefix_1_alive_fraction"] == 1


def test_an_sae_without_prefixes_has_no_prefix_figures(analysis: SimpleNamespace, tmp_path: Path):
    assert analysis.measure(by_hand(tmp_path, {"tier_0": (0, 8)})) == {}
    assert not (tmp_path / "prefixes.json").exists()


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> WorldEvaluator:  # noqa: ARG001
    return make_evaluator(tmp_path_factory.mktemp("worlds") / "small world")


def test_parents_are_found_in_the_first_prefix(analysis: SimpleNamespace, evaluator: WorldEvaluator, tmp_path: Path):
    """Half of the parents have a latent; the first prefix holds two of them and two features without descendants."""
    parents = sorted(ground_truth.descendants(evaluator.world))
    others = [feature for feature in range(FEATURES) if feature not in parents]
    half = len(parents) // 2
    features = [*parents[:2], *others[:2], *parents[2:half], *others[2:8]]
    groups = {"prefix_0": (0, 4), "prefix_1": (4, len(features))}
    figures = analysis.measure(on_world(tmp_path, evaluator, features, groups))
    assert figures["parents_learned"] == pytest.approx(half / len(parents))
    assert figures["parents_in_first"] == pytest.approx(2 / half)
    assert figures["parents_in_first_by_chance"] == pytest.approx(4 / len(features))
    assert 0 <= figures["parents_in_first_by_rate"] <= 4 / half


def test_an_order_by_firing_rate_beats_chance_but_not_the_firing_rate(
    analysis: SimpleNamespace, evaluator: WorldEvaluator, tmp_path: Path
):
    """The most frequent features come first, and parents are frequent."""
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in evaluator.held_out("dev", 16).features]).sum(0)
    features = present.argsort(descending=True)[:32].tolist()
    groups = {"prefix_0": (0, 4), "prefix_1": (4, 32)}
    figures = analysis.measure(on_world(tmp_path, evaluator, features, groups))
    assert figures["parents_in_first"] == figures["parents_in_first_by_rate"]
    assert figures["parents_in_first"] > figures["parents_in_first_by_chance"]


def test_a_baseline_without_prefixes_has_the_share_of_parents_learned(
    analysis: SimpleNamespace, evaluator: WorldEvaluator, tmp_path: Path
):
    parents = sorted(ground_truth.descendants(evaluator.world))
    assert analysis.measure(on_world(tmp_path, evaluator, parents, {})) == {"parents_learned": 1.0}


# The figures


def test_every_measured_prefix_has_a_look_of_its_own(analysis: SimpleNamespace, drawing: SimpleNamespace):
    assert len(drawing.COLOURS) == len(drawing.HATCHES) == analysis.MOST


def figures_of(number: int, prefixes: int, world: bool) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for i in range(prefixes):
        figures[f"prefix_{i}_explained_variance"] = 0.8 - 0.3 / (i + 1) - 0.01 * number
        figures[f"prefix_{i}_l0_share"] = 1 / prefixes
        figures[f"prefix_{i}_alive_fraction"] = 1 - 0.02 * number * i
        if i < prefixes - 1:
            figures[f"prefix_{i}_random_explained_variance"] = 0.1 * i - 0.02 * number
    parents = {"parents_learned": 0.9, "parents_in_first": 0.2, "parents_in_first_by_chance": 0.12}
    return figures | (parents | {"parents_in_first_by_rate": 0.21} if world else {})


def study(directory: Path, count: int, world: bool) -> list[Run]:
    """Return run 0, a run that failed, and `count` others with three or five prefixes."""
    runs = [run(directory, 0, "Baseline", FinalInfo(verdict=Verdict(name="ok", evidence="")))]
    runs.append(run(directory, 1, "A loss that exploded", failed("nan")))
    for number in range(2, count + 2):
        prefixes = 5 if number == 4 else 3
        figures = figures_of(number, prefixes, world)
        info = FinalInfo(verdict=Verdict(name="ok", evidence=""), analysis=figures)
        added = run(directory, number, f"Prefixes with a title that is as long as titles get, number {number}", info)
        folder = added.directory / "eval/analysis"
        folder.mkdir(parents=True)
        (folder / "prefixes.json").write_text(json.dumps({"ends": [1024 >> i for i in range(prefixes)][::-1]}))
        rows = [history(step, prefixes, number) for step in range(1, 51)]
        (added.directory / "metrics.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
        runs.append(added)
    return runs


def history(step: int, prefixes: int, number: int) -> MetricsRow:
    first = 0.3 + 0.02 * number + 0.2 * (1 - math.exp(-step / 20))
    own = {f"prefix_{i}_l0_share": first if i == 0 else (1 - first) / (prefixes - 1) for i in range(prefixes)}
    known = {"l0": 16.0, "mse": 0.5, "alive_fraction": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0, "seconds": 1.0}
    return MetricsRow(step=step, tokens=20_000 * step, loss=1.0, own=own, **known)


@pytest.mark.parametrize(("count", "world"), [(1, True), (5, False), (8, True)])
def test_the_figures_are_described_and_nothing_overlaps(
    drawing: SimpleNamespace, tmp_path: Path, count: int, world: bool
):
    import matplotlib

    with matplotlib.rc_context(figure_style.STYLE):
        drawn = {figure.name: figure for figure in drawing.draw(tmp_path, study(tmp_path, count, world))}
    names = ["prefix_reconstruction.png", "prefix_activity.png", "prefix_training.png", "prefix_parents.png"]
    assert list(drawn) == names[: 4 if world else 3]
    for name, figure in drawn.items():
        assert (tmp_path / name).stat().st_size > 5000
        assert overlapping(figure) == []
        assert "Not shown: run 0" in figure.description
        assert "run 1" in figure.description
        assert "(nan)" in figure.description
        assert is_brief(figure.description), figure.description
    alone, random = panels_of(drawn[names[0]])
    assert curve_of_run_2(alone) == pytest.approx({256: 0.48, 512: 0.63, 1024: 0.68})
    assert curve_of_run_2(random) == pytest.approx({256: -0.04, 512: 0.06, 1024: 0.68})
    shares, alive = panels_of(drawn[names[1]])
    assert bars_of_run_2(shares) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert bars_of_run_2(alive) == pytest.approx([1, 0.96, 0.92])


def panels_of(figure: figure_style.Figure) -> list[Axes]:
    assert figure.drawing
    return figure.drawing.axes


def curve_of_run_2(panel: Axes) -> dict[int, float]:
    """Return the height of run 2 by the number of latents."""
    (line,) = [line for line in panel.lines if str(line.get_label()).startswith("run 2:")]
    return dict(np.array(line.get_data()).T.tolist())


def bars_of_run_2(panel: Axes) -> list[float]:
    """Return the lengths of the bars of run 2, which is the first that is shown and has three prefixes."""
    lengths = [bars.patches[0].get_width() for bars in panel.containers if isinstance(bars, BarContainer)]
    assert all(map(math.isnan, lengths[3:]))
    return lengths[:3]


def test_without_prefixes_nothing_is_drawn(drawing: SimpleNamespace, tmp_path: Path):
    assert drawing.draw(tmp_path, study(tmp_path, 0, False)) == []
