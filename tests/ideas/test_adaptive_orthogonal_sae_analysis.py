"""adaptive_orthogonal_sae measures correctly on a checkpoint made by hand, and its figures show it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import failed, measured, run
from figure_checks import is_brief, overlapping
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from small_lab import examination, experiment, load, load_of_idea
from small_sae import header

from agent import ideas
from agent.lab import checkpoint
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.results import FamilyScores, keep
from agent.report import figure_style
from agent.study.runs import Run

IDEA = ideas.load("adaptive_orthogonal_sae")
FAMILIES = {
    "sparse_probing": "sae_top_5_test_accuracy",
    "absorption": "mean_absorption_fraction_score",
    "scr": "scr_metric_threshold_20",
    "tpp": "tpp_threshold_20_total_metric",
    "forgetting": "forgetting_score",
}


@pytest.fixture(scope="module")
def analysis() -> Any:
    return load_of_idea(IDEA.name, "analysis.py")


@pytest.fixture(scope="module")
def drawing() -> Any:
    return load_of_idea(IDEA.name, "figures.py")


# By hand: five latents that are their inputs, in the directions below. 0 fires with 1, and 2 with 3; 4 never fires.
COSINES = (0.6, 0.8)  # of 0 with 1, and of 2 with 3; nothing else overlaps but the dead one, which is 0 again
ROWS = torch.tensor([[1.0, 0, 0, 0, 0], [0.6, 0.8, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0.8, 0.6, 0], [1, 0, 0, 0, 0]])


def by_hand(folder: Path, group: list[int] | None = None) -> Examination:
    """Return the examination of the SAE by hand; its decoder rows are twice as long, which changes no angle."""
    extra = {} if group is None else {"group": torch.tensor(group)}
    training = header().training.model_copy(update={"d_in": 5, "d_sae": 5})
    described = header(d_in=5, d_sae=5, training=training)
    checkpoint.save(folder, lambda x: x.relu(), 2 * ROWS, torch.zeros(5), described, extra=extra)
    activations = torch.tensor([[1.0, 2, 0, 0, 0], [0, 0, 2, 1, 0]]).repeat(2000, 1)
    return examination(folder, activations, folder.parent / "examined")


def test_the_figures_of_a_decoder_are_right(tmp_path: Path, analysis: Any):
    figures = analysis.measure(by_hand(tmp_path / "checkpoint"))
    random = figures.pop("condition_number_random")
    shuffled = 0.7 - figures.pop("within_group_cosine")
    assert figures == pytest.approx(
        {
            "decoder_cosine_mean": sum(COSINES) / 6,
            "decoder_cosine_largest": (0.6 + 0.6 + 0.8 + 0.8) / 4,
            "decoder_cosine_max": 0.8,
            "across_group_cosine": 0.0,
            "condition_number": 2.5,  # sqrt((1 + c) / (1 - c)): 2 and 3
            "condition_number_max": 3.0,
        },
        abs=1e-5,
    )
    assert 1 <= random <= 2.5
    assert 0 <= shuffled < 0.7


def test_the_groups_of_training_are_measured_too(tmp_path: Path, analysis: Any):
    apart = analysis.measure(by_hand(tmp_path / "apart/checkpoint", [0, 1, 0, 1, 0]))
    together = analysis.measure(by_hand(tmp_path / "together/checkpoint", [0, 0, 1, 1, 0]))
    assert apart["condition_number_own"] == pytest.approx(1)
    assert together["condition_number_own"] == pytest.approx(2.5)
    # Phi is 1 in the pairs that fire together, and -1 in the others.
    assert together["group_coactivation"] > 0.1 > 0 >= apart["group_coactivation"]
    for name in ("condition_number", "condition_number_random", "decoder_cosine_mean", "across_group_cosine"):
        assert apart[name] == together[name]  # these groups do not depend on training's


def test_every_figure_is_named_and_the_distributions_are_kept(tmp_path: Path, analysis: Any, drawing: Any):
    exam = by_hand(tmp_path / "checkpoint", [0, 0, 1, 1, 0])
    assert set(analysis.measure(exam)) | {"forgetting_score"} == set(drawing.MEASURES)
    kept = run_of(tmp_path, 0, exam.out).kept(drawing.KEPT)
    assert sorted(kept["conditions"]["coactivation"]) == pytest.approx([2, 3], abs=1e-5)
    assert len(kept["conditions"]["random"]) == 2 * drawing.DRAWS
    pairs, largest = kept["cosines"]["pairs"], kept["cosines"]["largest"]
    assert len(pairs) == len(largest) == drawing.BINS
    assert sum(pairs) == pytest.approx(1)
    assert sum(largest) == pytest.approx(1)
    assert pairs[0] == pytest.approx(4 / 6)


def run_of(directory: Path, number: int, examined: Path) -> Run:
    """Return a run whose analysis left the files of `examined`."""
    target = directory / f"run_{number}/eval/analysis"
    target.parent.mkdir(parents=True)
    examined.rename(target)
    return run(directory, number, "By hand", None)


def test_an_sae_without_live_latents_has_no_figures(tmp_path: Path, analysis: Any):
    exam = by_hand(tmp_path / "checkpoint")
    dead = replace(exam, held_out=replace(exam.held_out, activations=-exam.activations))
    assert analysis.measure(dead) == {}


def test_groups_are_formed_as_in_training(tmp_path: Path, analysis: Any, small_model: Path):
    module = load(experiment(tmp_path, small_model, IDEA.plan[0], IDEA.name))
    active = torch.rand(500, 40, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.01, 0.3, 40)
    module.GROUP_SWEEPS = analysis.SWEEPS  # the experiment's constant
    start = torch.arange(40) % 3
    ours = analysis.coactivation_groups(analysis.coactivation(active), start, 3)
    assert torch.equal(ours, module.coactivation_groups(active, start, 3))
    assert not torch.equal(ours, start)


class WithLoss(Examination):
    """An examination on a language model, with a known forgetting score."""

    has_loss = True  # type: ignore[assignment]

    def forgetting(self, sae: Any) -> float | None:  # noqa: ARG002
        return 0.25


def test_forgetting_is_measured_where_there_is_a_language_model(tmp_path: Path, analysis: Any):
    exam = by_hand(tmp_path / "checkpoint")
    assert analysis.measure(WithLoss(**vars(exam)))["forgetting_score"] == 0.25


# Figures


def study(directory: Path, count: int, probed: bool = False) -> list[Run]:
    """Return run 0 and the plan's steps, repeated from the sixth on, with invented figures."""
    runs = []
    for number in range(count):
        step = IDEA.plan[(number - 1) % len(IDEA.plan)] if number else None
        parameters = IDEA.defaults | step.parameters if step else {}
        settings = {"K": 16} | {name.upper(): value for name, value in parameters.items()}
        info = measured(16.2 + 0.01 * number, 0.84 - 0.002 * number, 0.96 - 0.001 * number, 0.98, 0.67)
        training = header().training.model_copy(update={"settings": settings})
        figures = {"decoder_cosine_largest": 0.31 - 0.02 * number, "forgetting_score": 0.16 + 0.004 * number}
        figures |= {"decoder_cosine_mean": 0.07, "decoder_cosine_max": 0.5}
        more = {family: FamilyScores(metrics={name: 0.1 + 0.02 * number}) for family, name in FAMILIES.items()}
        update = {"training": training, "analysis": figures, "evaluations": more if probed else {}}
        runs.append(run(directory, number, step.title if step else "Baseline", info.model_copy(update=update)))
        conditions = {
            "coactivation": [8 + 0.3 * i + number for i in range(11)],
            "random": [7 + 0.05 * i for i in range(55)],
        }
        if step:
            conditions["own"] = [8.4 + 0.2 * i for i in range(11)]
        pairs = [math.exp(-((i / 5) ** 2)) for i in range(50)]
        largest = [math.exp(-((i - 14 + number) ** 2) / 8) for i in range(50)]
        folder = directory / f"run_{number}/eval/analysis"
        folder.mkdir(parents=True)
        cosines = {name: [x / sum(each) for x in each] for name, each in (("pairs", pairs), ("largest", largest))}
        keep(folder, "decoder.json", {"conditions": conditions, "cosines": cosines})
    return runs


def drawn(drawing: Any, directory: Path, runs: Sequence[Run]) -> dict[str, figure_style.Figure]:
    with rc_context(figure_style.STYLE):
        return {figure.name: figure for figure in drawing.draw(directory, runs)}


@pytest.mark.parametrize(("count", "probed"), [(2, False), (6, True), (8, False)])
def test_the_figures_are_drawn_and_nothing_overlaps(tmp_path: Path, drawing: Any, count: int, probed: bool):
    figures = drawn(drawing, tmp_path, study(tmp_path, count, probed))
    assert list(figures) == ["alpha_sweep.png", "condition_numbers.png", "decoder_cosines.png"]
    for name, figure in figures.items():
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert overlapping(figure) == [], name
        assert is_brief(figure.description), figure.description
        assert "Not shown" not in figure.description


def lines_of(panel: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return the x and y of each line that the legend names, by its label."""
    handles, labels = panel.get_legend_handles_labels()
    data = [np.array(line.get_data()) for line in handles if isinstance(line, Line2D)]
    return {label: (list(x), list(y)) for label, (x, y) in zip(labels, data, strict=True)}


def test_the_sweep_shows_each_runs_figures_at_its_alpha(tmp_path: Path, drawing: Any):
    runs = study(tmp_path, 3)
    sweep = drawn(drawing, tmp_path, runs)["alpha_sweep.png"]
    assert sweep.drawing
    panels = {panel.get_title(loc="left").partition(" (")[0]: lines_of(panel) for panel in sweep.drawing.axes}
    baseline, _, last = [figure_style.label(each) for each in runs]
    assert baseline == "run 0: Baseline"
    assert panels["L0"][last][0] == [IDEA.plan[1].parameters["alpha"]]
    assert (panels["L0"][baseline][1], panels["L0"][last][1]) == ([16.2, 16.2], [16.22])
    assert panels["explained variance"][baseline][1] == [0.84, 0.84]
    assert panels["explained variance"][last][1] == [0.836]
    assert panels["largest decoder |cosine|"][last][1] == [0.27]
    assert panels["forgetting"][last][1] == [0.168]


def test_condition_numbers_are_drawn_with_their_medians(tmp_path: Path, drawing: Any):
    figure = drawn(drawing, tmp_path, study(tmp_path, 3))["condition_numbers.png"]
    assert figure.drawing
    lines = [np.array(line.get_data()) for line in figure.drawing.axes[0].lines]
    groups = {round(float(y.mean()), 2): list(x) for x, y in lines if len(x) > 2}
    medians = {round(float(y.mean()), 2): x[0] for x, y in lines if len(x) == 2}
    fire_together, random = 0.76, 1.24  # where they are drawn in the row of run 1
    assert groups[fire_together] == pytest.approx([9 + 0.3 * i for i in range(11)])
    assert (medians[fire_together], medians[random]) == pytest.approx((10.5, 8.35))


def test_the_sweep_joins_runs_that_differ_in_alpha_alone(tmp_path: Path, drawing: Any):
    runs = study(tmp_path, 6)
    (sweep,) = drawing.sweeps_of([each for each in runs if drawing.alpha_of(each) is not None])
    alphas = [drawing.alpha_of(each) for each in sweep]
    assert alphas == sorted(set(alphas))
    assert len(alphas) == 3
    panel = drawn(drawing, tmp_path, runs)["alpha_sweep.png"].drawing.axes[0]  # type: ignore[union-attr]
    (line,) = [line for line in panel.lines if line.get_label() == "runs that differ in alpha alone"]
    assert list(line.get_ydata()) == pytest.approx([each.info.metric("l0") for each in sweep if each.info])
    assert panel.lines[0].get_linestyle() == "--"
    assert panel.lines[0].get_ydata()[0] == pytest.approx(16.2)


def test_what_is_not_shown_is_said(tmp_path: Path, drawing: Any):
    runs = study(tmp_path, 4)
    (tmp_path / "run_2/eval/analysis/decoder.json").unlink()
    timed_out = failed("timed_out", "60 s")
    runs[3] = run(tmp_path, 3, "Died", timed_out)
    figures = drawn(drawing, tmp_path, runs)
    assert figures["alpha_sweep.png"].description.endswith("Not shown: run 3 has no alpha or no result (timed_out).")
    for name in ("condition_numbers.png", "decoder_cosines.png"):
        assert "Not shown: run 2 has no measured" in figures[name].description
        assert "(timed_out)" in figures[name].description


def test_the_baseline_alone_has_its_decoder_shown_and_no_sweep(tmp_path: Path, drawing: Any):
    assert list(drawn(drawing, tmp_path, study(tmp_path, 1))) == ["condition_numbers.png", "decoder_cosines.png"]
    assert drawn(drawing, tmp_path, [run(tmp_path, 0, "Baseline", None)]) == {}
