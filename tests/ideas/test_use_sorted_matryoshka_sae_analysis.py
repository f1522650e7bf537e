"""use_sorted_matryoshka_sae measures the order of latents on checkpoints made by hand, and its figures show it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import failed, run
from figure_checks import is_brief, overlapping
from small_lab import load_of_idea
from small_world import examined, make_evaluator, on_world

from agent.lab.evaluation import named_latents
from agent.lab.evaluation.evaluator import HeldOut
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow, Verdict
from agent.report import figure_style
from agent.study.runs import Run

IDEA = "use_sorted_matryoshka_sae"
GROUPS = {"prefix_0": (0, 2), "prefix_1": (2, 8)}
OFTEN = torch.tensor([1, 8, 7, 6, 5, 4, 3, 2])  # how often each latent fires: the first should be the last


@pytest.fixture(scope="module")
def analysis() -> SimpleNamespace:
    return load_of_idea(IDEA, "analysis.py")


@pytest.fixture(scope="module")
def drawing() -> SimpleNamespace:
    return load_of_idea(IDEA, "figures.py")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> WorldEvaluator:  # noqa: ARG001
    return make_evaluator(tmp_path_factory.mktemp("worlds") / "small world")


def by_hand(folder: Path, groups: Any = GROUPS, often: torch.Tensor = OFTEN) -> Examination:
    """Return one on activations along one axis at a time, each as often as `often` says."""
    rows = torch.eye(8).repeat_interleave(often, dim=0).repeat(100, 1)
    held_out = HeldOut(torch.empty(0), rows, rows.mean(0), rows)
    return examined(folder, SimpleNamespace(model_name="tiny-lm"), held_out, torch.eye(8), groups)


# The measures


def test_latents_in_the_order_of_their_use_are_sorted(analysis: SimpleNamespace, tmp_path: Path):
    figures = analysis.measure(by_hand(tmp_path, often=OFTEN.sort(descending=True).values))
    assert figures["order_by_use"] == pytest.approx(1)
    for kind in ("l0_share", "explained_variance"):
        assert figures[f"first_prefix_{kind}"] == pytest.approx(figures[f"most_used_{kind}"])


def test_a_latent_out_of_place_shows_in_the_order_and_in_the_first_prefix(analysis: SimpleNamespace, tmp_path: Path):
    """The least used of eight comes first: seven places off for it, one for each of the others."""
    exam = by_hand(tmp_path)
    figures = analysis.measure(exam)
    assert figures["order_by_use"] == pytest.approx(1 - 6 * (7**2 + 7) / (8 * (8**2 - 1)))
    assert figures["first_prefix_l0_share"] == pytest.approx(9 / 36)
    assert figures["most_used_l0_share"] == pytest.approx(15 / 36)
    deviation = (exam.activations - exam.held_out.mean).pow(2).sum().item() / 100
    assert figures["first_prefix_explained_variance"] == pytest.approx(1 - (36 - 9) / deviation, abs=1e-5)
    assert figures["most_used_explained_variance"] == pytest.approx(1 - (36 - 15) / deviation, abs=1e-5)
    assert json.loads((tmp_path / "use.json").read_text())["rates"] == pytest.approx((OFTEN / 36).tolist())


def test_the_most_used_latents_of_each_prefix_are_named(analysis: SimpleNamespace, tmp_path: Path):
    analysis.measure(by_hand(tmp_path))
    named = named_latents.read(tmp_path)
    assert list(named) == [1, 0, 2, 3, 4, 5, 6, 7]
    assert named[1].labels == ["added by prefix 0, latents 0 to 1; active on 22.22%"]


def test_an_sae_without_prefixes_has_no_order(analysis: SimpleNamespace, tmp_path: Path):
    assert analysis.measure(by_hand(tmp_path, {"tier_0": (0, 8)})) == {}


@pytest.mark.parametrize(("first", "found"), [([0, 1, 2, 3], 1.0), ([0, 1, 16, 17], 0.5), ([16, 17, 18, 19], 0.0)])
def test_the_most_frequent_features_are_looked_for_in_the_first_prefix(
    analysis: SimpleNamespace, evaluator: WorldEvaluator, tmp_path: Path, first: list[int], found: float
):
    """The SAE has the 32 most frequent features; `first` are the ranks of those in the first prefix."""
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in evaluator.held_out("dev", 16).features]).sum(0)
    by_rank = present.argsort(descending=True, stable=True)[:32].tolist()
    features = [by_rank[rank] for rank in [*first, *(rank for rank in range(32) if rank not in first)]]
    exam = on_world(tmp_path, evaluator, features, {"prefix_0": (0, 4), "prefix_1": (4, 32)})
    figures = analysis.measure(exam)
    assert figures["frequent_in_first"] == found
    assert figures["frequent_in_first_by_chance"] == 4 / 32
    labels = named_latents.read(tmp_path)[features.index(by_rank[0])].labels
    assert labels[-1].startswith(f"matches feature {by_rank[0]}, number 1 by frequency among those with a latent")


# The figures


def study(directory: Path, count: int) -> list[Run]:
    """Return run 0, a run that failed, and `count` others."""
    runs = [run(directory, 0, "Baseline", FinalInfo(verdict=Verdict(name="ok", evidence="")))]
    runs.append(run(directory, 1, "A loss that exploded", failed("nan")))
    for number in range(2, count + 2):
        info = FinalInfo(verdict=Verdict(name="ok", evidence=""), analysis={"order_by_use": 0.9})
        added = run(directory, number, f"Prefixes with a title that is as long as titles get, number {number}", info)
        folder = added.directory / "eval/analysis"
        folder.mkdir(parents=True)
        rates = [0.3 / (1 + place) ** 1.1 / number for place in range(64)]
        (folder / "use.json").write_text(json.dumps({"rates": [*rates[:-1], 0.0]}))
        rows = [history(step, number) for step in range(1, 51)]
        (added.directory / "metrics.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
        runs.append(added)
    return runs


def history(step: int, number: int) -> MetricsRow:
    own: dict[str, float | None] = {"prefix_0_l0_share": 0.3 + 0.02 * number, "k": max(16.0, 64.0 - 2 * step)}
    known = {"l0": 16.0, "mse": 0.5, "alive_fraction": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0, "seconds": 1.0}
    return MetricsRow(step=step, tokens=20_000 * step, loss=1.0, own=own, **known)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_figures_are_described_and_nothing_overlaps(drawing: SimpleNamespace, tmp_path: Path, count: int):
    import matplotlib

    with matplotlib.rc_context(figure_style.STYLE):
        drawn = {figure.name: figure for figure in drawing.draw(tmp_path, study(tmp_path, count))}
    assert list(drawn) == ["use_by_place.png", "order_training.png"]
    for name, figure in drawn.items():
        assert (tmp_path / name).stat().st_size > 5000
        assert overlapping(figure) == []
        assert "Not shown: run 0" in figure.description
        assert "(nan)" in figure.description
        assert is_brief(figure.description), figure.description


def test_without_prefixes_nothing_is_drawn(drawing: SimpleNamespace, tmp_path: Path):
    assert drawing.draw(tmp_path, study(tmp_path, 0)) == []
