"""tree_sae measures correctly on a tree made by hand, and its figures show it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from builders import history, measured, run
from figure_checks import is_brief, overlapping
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from small_lab import examination, load_of_idea
from small_sae import header

from agent import TEMPLATES
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis, named_latents
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.verdicts import Verdict
from agent.report import figure_style
from agent.study.runs import Run

ANALYSIS = TEMPLATES / "ideas/tree_sae/analysis.py"
GROUPS = {"level_0": (0, 4), "level_1": (4, 6), "level_2": (6, 7)}
PARENT = [4, 4, 5, 5, 6, 6, -1]
# The seven latents on eight kinds of tokens, each equally often. Child 3's path to parent 5 was pruned.
TOKENS = [
    [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0],
    [1.0, 3.0, 0.0, 0.0, 2.0, 0.0, 4.0],
    [0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 0.0],
    [0.0, 3.0, 0.0, 0.0, 0.0, 2.0, 0.0],
    [0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 4.0],
    [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
]


def by_hand(folder: Path, groups: dict[str, tuple[int, int]] = GROUPS, **extra: torch.Tensor) -> Examination:
    """Return the examination, on a world, of an SAE whose latents are its seven scaled inputs."""
    is_open = torch.tensor([True, True, True, False, True, True, False])
    tree = {"parent": torch.tensor(PARENT), "projections": 0.5 * is_open, "open": is_open} | extra
    training = header().training.model_copy(update={"d_in": 7, "d_sae": 7})
    described = header(d_in=7, d_sae=7, scale=0.5, groups=groups, training=training)
    checkpoint.save(folder, lambda x: x.relu(), torch.eye(7), torch.zeros(7), described, extra=tree if groups else {})
    return examination(folder, torch.tensor(TOKENS * 1000) / 0.5, folder.parent / "examined")


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures, and what was saved for figures.py."""
    directory = tmp_path_factory.mktemp("tree")
    figures = idea_analysis.measure(ANALYSIS, by_hand(directory / "checkpoint"))
    return figures, json.loads((directory / "examined/tree.json").read_text())


def test_parents_and_children_are_named(tmp_path: Path):
    exam = by_hand(tmp_path / "checkpoint")
    idea_analysis.measure(ANALYSIS, exam)
    named = named_latents.read(exam.out)
    assert named[4].labels[0].startswith("level 1, child of 6, parent of ")
    assert named[4].related[0] == 6
    assert named[0].labels == ["level 0, child of 4"]


def test_the_levels_are_counted(examined: tuple[dict[str, float], Any]):
    figures, _ = examined
    assert [figures[f"level_{i}_size"] for i in range(3)] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert [figures[f"level_{i}_l0"] for i in range(3)] == pytest.approx([8 / 8, 6 / 8, 2 / 8])
    assert [figures[f"level_{i}_alive_fraction"] for i in range(3)] == [1, 1, 1]
    assert figures["open_edges"] == pytest.approx(5 / 6)
    assert "path_attribution" not in figures  # a world has no loss


def test_coverage_counts_all_edges_and_is_compared_with_swapped_parents(examined: tuple[dict[str, float], Any]):
    """Children 0 to 3 fire 2, 3, 2, 1 times, with their parents 2, 2, 1, 1 times, with the other one 0, 1, 0, 0; those
    of level 1 fire 3 times each, with the one parent they have 1 time each, and it cannot be swapped."""
    figures, _ = examined
    assert figures["parent_coverage"] == pytest.approx(8 / 14)
    assert figures["parent_coverage_swapped"] == pytest.approx(1 / 8)
    assert figures["hierarchical_consistency"] == pytest.approx(8 / 14 - 1 / 8)


def test_pruning_does_not_change_the_consistency_of_a_tree(examined: tuple[dict[str, float], Any], tmp_path: Path):
    figures, _ = examined
    below_top = torch.arange(7) < 6
    for folder, is_open in (("all open", below_top), ("closed", below_top & (torch.arange(7) == 1))):
        pruned = idea_analysis.measure(
            ANALYSIS, by_hand(tmp_path / folder / "a", projections=0.5 * is_open, open=is_open)
        )
        assert pruned["open_edges"] != figures["open_edges"]
        for name in ("parent_coverage", "parent_coverage_swapped", "hierarchical_consistency"):
            assert pruned[name] == pytest.approx(figures[name])


def test_reuse_and_specialization_follow_what_the_paths_carry(examined: tuple[dict[str, float], Any]):
    """Parent 4 is sent 2 * 0.5 by child 0 and 6 * 0.5 by child 1, one alone on two tokens of three; parent 6 is sent 2
    by each of its two, one at a time."""
    figures, _ = examined
    entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log()).item()
    assert figures["feature_reuse"] == pytest.approx((torch.tensor(entropy).exp().item() + 2) / 2)
    assert figures["path_specialization"] == pytest.approx((1 + 0.75 + 1 + 1 + 1) / 5)


def test_the_saved_tree_has_the_open_paths_and_their_top_tokens(examined: tuple[dict[str, float], Any]):
    _, kept = examined
    nodes = {node["latent"]: node for node in kept["nodes"]}
    assert set(nodes) == {6, 4, 5, 0, 1, 2}  # child 3's only path is pruned
    assert nodes[1]["edge"] == pytest.approx(0.5 * 6 / 8)
    assert nodes[4]["activation"] == pytest.approx(6 / 8)
    assert len(kept["values"]) == len(nodes)
    assert len(kept["values"][0]) == len(kept["samples"])
    trees = {node["tree"] for node in kept["nodes"]}
    assert len(kept["samples"]) == len(trees) * load_of_idea("tree_sae", "measures.py").TOKENS_OF_A_TREE
    assert max(map(max, kept["values"])) == 1


def test_latents_are_swapped_for_others_that_fire_about_as_often():
    swapped = load_of_idea("tree_sae", "analysis.py").swapped
    fired = torch.randperm(100, generator=torch.Generator().manual_seed(0)).double()
    draws = [fired[other] - fired for other in swapped(fired)]
    assert len(draws) == 10
    for difference in draws:
        assert difference.abs().max() <= 5
        assert difference.abs().min() >= 1
    assert list(swapped(torch.ones(1))) == []


def test_an_sae_without_a_tree_has_no_figures(tmp_path: Path):
    assert idea_analysis.measure(ANALYSIS, by_hand(tmp_path / "a", {})) == {}
    assert idea_analysis.measure(ANALYSIS, by_hand(tmp_path / "b", {"level_0": (0, 7)})) == {}


def test_a_tree_with_every_path_pruned_has_nothing_to_draw(tmp_path: Path):
    exam = by_hand(tmp_path / "a", projections=torch.zeros(7), open=torch.zeros(7, dtype=torch.bool))
    figures = idea_analysis.measure(ANALYSIS, exam)
    assert figures["open_edges"] == 0
    assert figures["feature_reuse"] != figures["feature_reuse"]  # there is none
    assert json.loads((exam.out / "tree.json").read_text())["nodes"] == []


# Where there is a language model

LEVELS = {"level_0": (0, 6), "level_1": (6, 10), "level_2": (10, 12)}
PARENTS = [6, 7, 8, 9, 6, 7, 10, 11, 10, 11, -1, -1]


class Probed(Evaluator):
    """The evaluator with quick probes: the accuracy of an SAE is a hundredth of the first latent it has, plus two
    thousandths of how many it has; it has one direction each."""

    def __init__(self, evaluator: Evaluator) -> None:
        vars(self).update(vars(evaluator))

    def probe(self, sae: Any, out: Path, name: str) -> Any:  # noqa: ARG002
        first, count = sae.W_dec[0].abs().argmax().item(), sae.encode(sae.W_dec).shape[1]
        return {task: {1: {}, 5: {"test_accuracy": (5 * first + count) / 500 + task}} for task in (-0.1, 0.1)}, {}


@pytest.fixture(scope="module")
def modelled(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examination, dict[str, float]]:
    """A tree on the small model, whose latents are its first twelve activations and have directions of their own; the
    sixth is made of 0 and 4, its children; 3's path is pruned. And what was measured of it."""
    folder, d_in = tmp_path_factory.mktemp("modelled"), evaluator.held_out("dev").activations.shape[1]
    is_open = torch.tensor([i not in (3, 10, 11) for i in range(12)])
    extra = {"parent": torch.tensor(PARENTS), "projections": torch.linspace(0.2, 0.9, 12) * is_open, "open": is_open}
    training = header().training.model_copy(update={"d_in": d_in, "d_sae": 12})
    described = header(d_in=d_in, d_sae=12, scale=1.0, groups=LEVELS, training=training, hook_name=evaluator.hook_name)

    def encode(x: torch.Tensor) -> torch.Tensor:
        own = x[:, :12].relu()
        return torch.cat([own[:, :6], 0.2 * own[:, :1] + 0.5 * own[:, 4:5], own[:, 7:]], 1)

    checkpoint.save(folder / "checkpoint", encode, torch.eye(d_in)[:12], torch.zeros(d_in), described, extra=extra)
    rows = evaluator.held_out("dev").activations[:2000]
    exam = examination(folder / "checkpoint", rows, folder / "out", Probed(evaluator))
    exam = replace(exam, held_out=replace(exam.held_out, ids=exam.held_out.ids[:4]))
    return exam, idea_analysis.measure(ANALYSIS, exam)


def test_each_level_is_probed_by_itself(modelled: tuple[Examination, dict[str, float]]):
    _, figures = modelled
    accuracies = [figures[f"level_{i}_probing_accuracy"] for i in range(3)]
    assert accuracies == pytest.approx([(0 + 6) / 500, (30 + 4) / 500, (50 + 2) / 500])


def test_path_attribution_is_the_share_that_comes_along_paths(
    modelled: tuple[Examination, dict[str, float]],
):
    """Compute it by its formula, token by token and parent by parent. Swapped parents are one rank up or down by firing
    rate; the first and the last have one neighbour only."""
    exam, figures = modelled
    tree = exam.checkpoint.extra
    fired = torch.cat(list(exam.latents())).count_nonzero(0)
    x, gradient = exam.loss_gradient()
    latents = exam.sae.encode(x).double()
    effect = (latents * (gradient @ exam.sae.W_dec.T)).abs()
    sent = latents * tree["projections"]
    own, other, whole = 0.0, [], 0.0
    for start, end in ((6, 10), (10, 12)):
        order = sorted(range(start, end), key=lambda i: fired[i].item())
        sums = {p: sum(sent[:, c] for c in range(12) if PARENTS[c] == p) for p in range(start, end)}
        swaps = []
        for by in (-1, 1):
            places = [i + by if 0 <= i + by < len(order) else i - by for i in range(len(order))]
            swaps.append({order[i]: order[place] for i, place in enumerate(places)})

        def along(receives: dict[int, int], sums: dict[int, Any] = sums) -> float:
            parts = [effect[:, p] * (sums[q] / latents[:, p]).clamp(max=1) for p, q in receives.items()]
            return sum(part[latents[:, p] > 0].sum().item() for part, p in zip(parts, receives, strict=True))

        own += along({p: p for p in range(start, end)})
        whole += effect[:, start:end].sum().item()
        other += [(along(swap), effect[:, start:end].sum().item()) for swap in swaps]
    assert figures["path_attribution"] == pytest.approx(own / whole, rel=1e-4)
    assert figures["path_attribution_swapped"] == pytest.approx(
        sum(part for part, _ in other) / sum(part for _, part in other), rel=1e-4
    )
    assert figures["path_attribution_swapped"] < 0.95 * figures["path_attribution"]


def test_an_edges_thickness_is_the_attribution_along_it(modelled: tuple[Examination, dict[str, float]]):
    """Latent 6 has two children, 0 and 4; each edge carries its child's part of what both sent."""
    exam, _ = modelled
    kept = json.loads((exam.out / "tree.json").read_text())
    edges = {node["latent"]: node["edge"] for node in kept["nodes"]}
    assert kept["attributed"]
    assert 3 not in edges
    x, gradient = exam.loss_gradient()
    latents = exam.sae.encode(x).double()
    parent = (latents[:, 6] * gradient[:, 6]).abs()
    weights = exam.checkpoint.extra["projections"]
    for child in (0, 4):
        sums = weights[0] * latents[:, 0] + weights[4] * latents[:, 4]
        carried = (parent * weights[child] * latents[:, child] / torch.maximum(sums, latents[:, 6])).nan_to_num()
        assert edges[child] == pytest.approx(carried.mean().item(), rel=1e-4)
        assert edges[child] > 0


# Figures


def study(directory: Path, kept: dict[str, Any], count: int) -> list[Run]:
    """Return run 0, trees, and last a tree that failed."""
    runs = []
    for number in range(count):
        info = measured(16.0, 0.84, 0.96, 0.98, 0.67)
        history(directory / f"run_{number}", info)
        if number:
            path = directory / f"run_{number}/metrics.jsonl"
            own = {"consistency": 1.0 / number, "open_edges": 0.9}
            own |= {f"level_{i}_{of}": 10.0 - i for i in range(3) for of in ("l0", "size")}
            rows = [json.loads(line) | {"own": own} for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            folder = directory / f"run_{number}/eval/analysis"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "tree.json").write_text(json.dumps(kept))
        if number and number == count - 1:
            info = info.model_copy(update={"verdict": Verdict(name="degenerate", evidence="dead")})
        runs.append(run(directory, number, "A tree with all mechanisms" if number else "Baseline", info))
    return runs


def drawn(directory: Path, runs: list[Run]) -> dict[str, figure_style.Figure]:
    with matplotlib.rc_context(figure_style.STYLE):
        return {figure.name: figure for figure in load_of_idea("tree_sae", "figures.py").draw(directory, runs)}


@pytest.mark.parametrize("count", [3, 9])
def test_the_figures_are_drawn_and_described(tmp_path: Path, examined: tuple[Any, dict[str, Any]], count: int):
    figures = drawn(tmp_path, study(tmp_path, examined[1], count))
    assert list(figures) == ["training_progression.png", "feature_paths.png", "level_activations.png"]
    for name in figures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert is_brief(figures[name].description), figures[name].description
    for name in ("feature_paths.png", "level_activations.png"):
        assert "run 0 has no measured tree" in figures[name].description
        assert f"run {count - 1} has no measured tree with an open path (degenerate)" in figures[name].description
    assert overlapping(figures["training_progression.png"]) == []


def test_the_figures_show_the_saved_tree_and_the_history(tmp_path: Path, examined: tuple[Any, dict[str, Any]]):
    figures, kept = drawn(tmp_path, study(tmp_path, examined[1], 3)), examined[1]
    (paths,) = panels_of(figures["feature_paths.png"])
    circles = [circle.get_sizes()[0] for circle in paths.collections if isinstance(circle, PathCollection)]
    largest = max(node["activation"] for node in kept["nodes"])
    assert circles == pytest.approx([4 + 90 * node["activation"] / largest for node in kept["nodes"]])
    assert [text.get_text() for text in paths.texts] == [str(node["latent"]) for node in kept["nodes"]]
    carried = [node["edge"] for node in kept["nodes"] if node["parent"] >= 0]
    assert len(carried) == 5, "the pruned path is left out"
    assert [line.get_linewidth() for line in paths.lines] == pytest.approx(
        [0.3 + 4 * edge / max(carried) for edge in carried]
    )
    assert "activation carried" in figures["feature_paths.png"].description
    ends = {
        panel.get_ylabel(): [np.array(line.get_ydata())[-1] for line in panel.lines]
        for panel in panels_of(figures["training_progression.png"])
    }
    assert ends["mean squared error"] == [1, 1, 1]
    assert ends["consistency loss"] == pytest.approx([math.nan, 1, 1 / 2], nan_ok=True)
    assert ends["open edges (share)"] == pytest.approx([math.nan, 0.9, 0.9], nan_ok=True)


def panels_of(figure: figure_style.Figure) -> list[Axes]:
    assert figure.drawing
    return figure.drawing.axes


def test_the_baseline_alone_has_no_figures(tmp_path: Path):
    assert drawn(tmp_path, study(tmp_path, {}, 1)) == {}


def test_pairs_are_counted_alike_at_once_and_one_by_one(monkeypatch: pytest.MonkeyPatch):
    products = load_of_idea("tree_sae", "analysis.py").products
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(50, 6, generator=generator), torch.rand(50, 4, generator=generator)
    i, j = torch.randint(6, (3, 5), generator=generator), torch.randint(4, (3, 5), generator=generator)
    at_once = products(a, b, i, j)
    monkeypatch.setitem(products.__globals__, "ALL_PAIRS", 0)
    torch.testing.assert_close(products(a, b, i, j), at_once)
