"""hierarchical_sae measures its tiers correctly on latents made by hand, and its figures show them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_checks import is_brief
from matplotlib.patches import Rectangle
from small_lab import examination, load_of_idea
from small_sae import header

from agent import TEMPLATES
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis, named_latents
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow, Verdict
from agent.report import figure_style
from agent.study.records import Proposal
from agent.study.run_state import RunState
from agent.study.runs import Run

PATH = TEMPLATES / "ideas/hierarchical_sae/analysis.py"
TOKENS = 20_000
# Five latents below, four above: two that are composed, one that is not, one that is dead.
GROUPS = {"tier_0": (0, 5), "tier_1": (5, 9)}


def latents() -> torch.Tensor:
    """Return latents `[TOKENS, 9]`: 5 is the sum of 0 and 1, 6 is twice 2, 7 is independent, 8 is dead."""
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(TOKENS, 6, generator=generator) < 0.2
    free = fires * (1 + torch.rand(TOKENS, 6, generator=generator))
    below, alone = free[:, :5], free[:, 5]
    above = [below[:, 0] + below[:, 1], 2 * below[:, 2], alone, torch.zeros(TOKENS)]
    return torch.cat([below, torch.stack(above, dim=1)], dim=1)


def by_hand(folder: Path, rows: torch.Tensor, **extra: torch.Tensor) -> Any:
    """Return the examination, on `rows [tokens, 9]`, of an SAE whose nine latents are its nine inputs."""
    training = header().training.model_copy(update={"d_in": 9, "d_sae": 9})
    described = header(d_in=9, d_sae=9, scale=1.0, groups=GROUPS, training=training)
    checkpoint.save(folder / "checkpoint", lambda x: x.relu(), torch.eye(9), torch.zeros(9), described, extra=extra)
    return examination(folder / "checkpoint", rows, folder / "examined")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    W = torch.zeros(5, 4)
    W[0, 0] = W[1, 0] = 1.0
    W[2, 1] = 2.0
    W[3, 2] = 0.1  # a part learned for the latent that has none
    return idea_analysis.measure(PATH, by_hand(tmp_path_factory.mktemp("made"), latents(), composition_0=W))


def test_planted_patterns_are_found(tmp_path: Path):
    exam = by_hand(tmp_path, latents())
    idea_analysis.measure(PATH, exam)
    patterns = json.loads((exam.out / "patterns.json").read_text())["patterns"]
    parts = {pattern["latent"]: sorted(pattern["parts"]) for pattern in patterns}
    assert parts == {5: [0, 1], 6: [2]}
    for pattern in patterns:
        assert pattern["r2"] == pytest.approx(1, abs=1e-6)
        assert pattern["weights"] == pytest.approx([1, 1] if pattern["latent"] == 5 else [2], abs=1e-4)


def test_wholes_and_parts_are_named_with_their_tiers(tmp_path: Path):
    exam = by_hand(tmp_path, latents())
    idea_analysis.measure(PATH, exam)
    named = named_latents.read(exam.out)
    assert set(named) == {5, 6, 0, 1, 2}
    assert named[5].labels[0].startswith("tier 1, composed of ")
    assert sorted(named[5].related) == [0, 1]
    assert (named[2].labels, named[2].related) == (["tier 0, part of 6 of tier 1"], [6])


def test_composed_latents_and_their_parts_are_counted(figures: dict[str, float]):
    assert figures["composed_fraction"] == pytest.approx(2 / 3), "of the live ones"
    assert figures["parts_mean"] == pytest.approx(3 / 2)
    assert figures["parts_two_to_five"] == pytest.approx(1 / 2)
    assert figures["parts_shared"] == 0


def test_coverage_is_the_predicted_share_of_activity(figures: dict[str, float]):
    above = latents()[:, 5:].pow(2).sum(0)
    known = ((above[0] + above[1]) / above.sum()).item()
    assert 0.5 * known < figures["composition_0_coverage"] < known, "some of it by chance, which is subtracted"


def test_latents_without_parts_are_left_uncomposed(figures: dict[str, float]):
    variance = latents()[:, 5:].var(0)
    assert figures["residual_share"] == pytest.approx((variance[2] / variance.sum()).item(), abs=0.02)
    assert figures["residual_dimensions"] < 0.6, "one direction of three"
    assert figures["residual_missed"] == pytest.approx(0.8, abs=0.05), (
        "the variance about the mean of one that fires 0.2"
    )


def test_the_learned_map_is_compared_with_the_patterns(figures: dict[str, float]):
    assert figures["learned_parts_agree"] == 1
    assert figures["composition_0_r2"] > 0.5


def test_independent_latents_are_not_composed(tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(TOKENS, 9, generator=generator) < 0.2) * torch.rand(TOKENS, 9, generator=generator)
    figures = idea_analysis.measure(PATH, by_hand(tmp_path, rows))
    assert figures["composed_fraction"] == 0
    assert figures["composition_0_coverage"] == pytest.approx(0, abs=0.02)
    assert figures["residual_share"] == pytest.approx(1, abs=0.01)
    assert "parts_mean" not in figures


def test_mutual_information_is_normalised():
    nmi = load_of_idea("hierarchical_sae", "analysis.py").nmi
    counts = [torch.tensor([10, 10, 50, 0]), torch.tensor([10, 50, 50, 50]), torch.tensor([10, 5, 25, 0])]
    alike, independent, also, silent = nmi(100, *counts).tolist()
    assert alike == pytest.approx(1)
    assert independent == pytest.approx(0, abs=1e-9)
    assert also == pytest.approx(0, abs=1e-9)
    assert silent == 0


def test_mutual_information_is_measured_against_shuffled_pairs(tmp_path: Path):
    """Each upper latent fires with one lower latent: NMI 1, and 0 with the part of another."""
    generator = torch.Generator().manual_seed(2)
    below = (torch.rand(TOKENS, 5, generator=generator) < 0.2).float()
    figures = idea_analysis.measure(PATH, by_hand(tmp_path, torch.cat([below, below[:, :4]], dim=1)))
    assert figures["composition_0_nmi"] == pytest.approx(1, abs=0.01)


def test_ablating_a_copy_has_the_effect_of_ablating_the_original(evaluator: Evaluator, tmp_path: Path):
    """The upper latents are copies of lower latents and of their decoder rows."""
    rows = evaluator.held_out("dev").activations
    directions = torch.eye(rows.shape[1])[:12]
    W_dec = torch.cat([directions, directions[:4]])
    training = header().training.model_copy(update={"d_in": rows.shape[1], "d_sae": 16})
    groups = {"tier_0": (0, 12), "tier_1": (12, 16)}
    described = header(
        d_in=rows.shape[1], d_sae=16, scale=1.0, groups=groups, training=training, hook_name=evaluator.hook_name
    )

    def encode(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :12], x[:, :4]], dim=1).relu()

    checkpoint.save(tmp_path / "checkpoint", encode, W_dec, torch.zeros(rows.shape[1]), described)
    exam = examination(tmp_path / "checkpoint", rows, tmp_path / "out", evaluator)
    few = replace(exam.held_out, ids=exam.held_out.ids[:8])
    figures = idea_analysis.measure(PATH, replace(exam, held_out=few))
    assert figures["causal_parts_loss"] == pytest.approx(figures["causal_whole_loss"], rel=1e-3)
    assert figures["causal_control_loss"] != pytest.approx(figures["causal_whole_loss"], rel=1e-2)
    assert 0.1 < figures["causal_cosine"] <= 2
    assert {"tier_0_forgetting", "tier_1_forgetting"} <= set(figures)


def test_of_wide_tiers_the_first_are_parts_and_a_sample_is_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    analysis = load_of_idea("hierarchical_sae", "analysis.py")
    names = analysis.measure.__globals__
    monkeypatch.setitem(names, "LOWER", 3)
    monkeypatch.setitem(names, "UPPER", 3)
    exam = by_hand(tmp_path, latents())
    figures = analysis.measure(exam)
    looked_at = analysis.sampled(5, 9, 3)
    assert looked_at == sorted(set(looked_at)) == analysis.sampled(5, 9, 3)
    assert all(5 <= latent < 9 for latent in looked_at)
    patterns = json.loads((exam.out / "patterns.json").read_text())["patterns"]
    known = {5: [0, 1], 6: [2]}
    assert {p["latent"]: sorted(p["parts"]) for p in patterns} == {
        latent: known[latent] for latent in looked_at if latent in known
    }
    live = [latent for latent in looked_at if latent != 8]
    assert figures["composed_fraction"] == pytest.approx(len(known.keys() & set(live)) / len(live))


# Figures


def run(directory: Path, number: int, own: Any, measured: Any) -> Run:
    proposal = Proposal(name="p", title=f"Step {number}", description="d", why="w", predictions={}, source="")
    run_dir = directory / f"run_{number}"
    run_dir.mkdir(parents=True)
    row: dict[str, Any] = {"loss": 1.0, "l0": 8.0, "mse": 0.5, "alive_fraction": 1.0, "grad_norm": 1.0}
    rows = [
        MetricsRow(step=i, tokens=10 * i, learning_rate=1e-3, seconds=1.0, own=own, **row | {"loss": 2 / i})
        for i in range(1, 20)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    info = FinalInfo(verdict=Verdict(name="ok", evidence="made"), analysis=measured) if measured else None
    return Run(RunState(number=number, proposal=proposal, stage="done"), run_dir, info)


def test_the_figures_show_what_was_measured(tmp_path: Path, figures: dict[str, float]):
    own = {"tier_0_l0": 5.0, "tier_1_l0": 3.0}
    runs = [run(tmp_path, 0, {}, {"other": 1.0}), run(tmp_path, 1, own, figures), run(tmp_path, 2, own, None)]
    import matplotlib

    with matplotlib.rc_context(figure_style.STYLE):
        training, activity = load_of_idea("hierarchical_sae", "figures.py").draw(tmp_path, runs)
    assert (training.name, activity.name) == ("training_metrics.png", "tier_activity_comparison.png")
    assert training.drawing
    assert activity.drawing
    ends = {
        panel.get_ylabel(): [np.array(line.get_data())[:, -1].tolist() for line in panel.lines]
        for panel in training.drawing.axes
    }
    assert ends == {
        "L2 (mse per dimension)": 3 * [[19, 0.5]],
        "sparsity (L0)": 3 * [[19, 8]],
        "total loss": 3 * [[19, 2 / 19]],
        "active latents of tier 0": 2 * [[19, 5]],
        "active latents of tier 1": 2 * [[19, 3]],
    }
    bars = {
        panel.get_title(loc="left"): [bar.get_width() for bar in panel.patches if isinstance(bar, Rectangle)]
        for panel in activity.drawing.axes
    }
    assert bars["composition coverage"] == pytest.approx([math.nan, figures["composition_0_coverage"]], nan_ok=True)
    assert bars["share of L0"] == [figures["tier_0_l0_share"], figures["tier_1_l0_share"]]
    assert bars["share of the latents"] == pytest.approx([5 / 9, 4 / 9])
    for figure in (training, activity):
        assert is_brief(figure.description), figure.description
    assert "Not shown: run 2 has no measured tiers." in activity.description


def test_before_training_nothing_is_drawn(tmp_path: Path):
    proposal = Proposal(name="p", title="t", description="d", why="w", predictions={}, source="")
    idle = Run(RunState(number=0, proposal=proposal, stage="done"), tmp_path, None)
    assert load_of_idea("hierarchical_sae", "figures.py").draw(tmp_path, [idle]) == []
