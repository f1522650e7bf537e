"""Figures agree with their data, are readable without colour, and have no overlapping texts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builders import failed, history, measured, run
from figure_checks import overlapping
from matplotlib.container import BarContainer

from agent import TEMPLATES, ideas
from agent.comparison.brackets import Brackets
from agent.comparison.judgement import Goal, judge
from agent.comparison.matching import all_metrics, compare
from agent.ideas import Idea
from agent.lab.evaluation import idea_files
from agent.lab.results import FamilyScores
from agent.report import idea_analysis, plots
from agent.running.sandbox import UNCONFINED
from agent.study.records import Baseline
from agent.study.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = (
    "Baseline",
    "Three tiers with a composition loss",
    "Learned tier importance weights",
    "Curriculum over tiers",
    "Ablation: no composition loss",
    "Ablation: tiers that grow",
)
# L0, explained variance, CE-loss score, alive fraction, probing AUC: as in a study of hierarchical_sae
MEASURED = (
    (16.29, 0.8445, 0.9623, 0.981, 0.671),
    (16.27, 0.8418, 0.9607, 0.979, 0.674),
    (16.25, 0.8386, 0.9589, 0.975, 0.668),
    (16.17, 0.7928, 0.9437, 0.702, 0.672),
    (16.25, 0.8079, 0.9499, 0.744, 0.665),
    (16.15, 0.7825, 0.9380, 0.653, 0.660),
)
PRIMARY, SMALLEST_EFFECT = "ce_loss_score", 0.005


def baseline(k: int, seed: int = 0) -> Baseline:
    """Make a baseline whose L0 is a little above K, and whose seeds vary by 0.0005 in explained variance."""
    l0, noise = 1.018 * k, (0.0, 0.7, -1.2, 1.1, -0.6)[seed]
    doublings = math.log2(k / 16)
    ev, score = 0.8445 + 0.05 * doublings, 0.9623 + 0.011 * doublings
    info = measured(l0, ev + 0.0005 * noise, score + 0.0003 * noise, 0.98 + 0.002 * noise, 0.671 + 0.004 * noise)
    return Baseline(k=k, seed=seed, figures=all_metrics(info))


BASELINES = [baseline(k) for k in (8, 11, 15, 17, 23, 32)] + [baseline(16, seed) for seed in range(5)]


def study(directory: Path, count: int = 6, baselines: Sequence[Baseline] = BASELINES) -> list[Run]:
    """Make `count` runs: the baseline, then variants that are compared with it and have measured tiers."""
    runs = []
    for number in range(count):
        l0, *rest = MEASURED[number % len(MEASURED)]
        info = measured(l0 + 0.01 * (number // 6), *rest)
        history(directory / f"run_{number}", info, 40 + 2 * number, tiered=number > 0)
        if number:
            comparison = compare(info, Brackets(baselines)) if baselines else None
            info = info.model_copy(update={"comparison": comparison, "analysis": tiers(number)})
        runs.append(run(directory, number, TITLES[number % len(TITLES)], info))
    return runs


def tiers(number: int) -> dict[str, float | None]:
    shares, alive = (0.55, 0.30, 0.15), (0.99, 0.9 - 0.05 * number % 0.5, 0.8 - 0.13 * number % 0.7)
    return {
        **{f"tier_{i}_l0_share": share for i, share in enumerate(shares)},
        **{f"tier_{i}_alive_fraction": fraction for i, fraction in enumerate(alive)},
        **{f"composition_{i}_r2": 0.31 - 0.05 * number * i for i in range(2)},
        **{f"composition_{i}_coverage": 0.1 * (i + 1) for i in range(2)},
        **{f"composition_{i}_nmi": 0.05 * (i + 1) for i in range(2)},
    }


def idea_draw() -> plots.Draw:
    return idea_files.run_file(TEMPLATES / "ideas/hierarchical_sae/figures.py")["draw"]


def write(
    directory: Path, runs: list[Run], baselines: Sequence[Baseline] = BASELINES, draw: plots.Draw | None = None
) -> dict[str, plots.Figure]:
    comparisons = {run.number: run.info.comparison for run in runs if run.info and run.info.comparison}
    judgements = judge(comparisons, Goal(PRIMARY, SMALLEST_EFFECT), {}, {})
    written = plots.write(
        directory, runs, Brackets(baselines), judgements, PRIMARY, SMALLEST_EFFECT, draw or idea_draw()
    )
    return {figure.name: figure for figure in written}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, plots.Figure]]:
    directory = tmp_path_factory.mktemp("six runs")
    return directory, write(directory, study(directory))


def test_the_figures_of_a_study(six: tuple[Path, dict[str, plots.Figure]]):
    directory, written = six
    own = ["training_metrics.png", "tier_activity_comparison.png"]
    assert list(written) == ["training_curves.png", "l0_front.png", "comparison.png", *own]
    for name in written:
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    assert not list(directory.glob("*.partial"))


def test_descriptions_say_what_is_to_be_seen(six: tuple[Path, dict[str, plots.Figure]]):
    _, written = six
    assert written["l0_front.png"].description == (
        "explained variance and CE-loss score against L0, a point for each run; below, the rectangle enlarged. "
        "The line is the baseline, linear in log L0 between its levels, the band where 95% of its trainings fall."
    )
    comparison = written["comparison.png"].description
    assert comparison.endswith("smallest effect worth having in CE-loss score, 0.005 to either side.")
    assert "Not shown" not in comparison


def panel_of(figure: plots.Figure, axis: str) -> "Axes":
    """Return the first panel whose vertical axis has this title."""
    assert figure.drawing
    return next(panel for panel in figure.drawing.axes if panel.get_ylabel().startswith(axis))


def test_points_levels_and_intervals_are_those_of_the_data(six: tuple[Path, dict[str, plots.Figure]]):
    _, written = six
    lines = {str(line.get_label()): line for line in panel_of(written["l0_front.png"], "CE-loss score").lines}
    ours = next(line for label, line in lines.items() if label.startswith("run 3"))
    assert ours.get_xydata().tolist() == [pytest.approx([16.17, 0.9437])]
    levels = [1.018 * k for k in (8, 11, 15, 16, 17, 23, 32)]
    assert list(lines["the baseline's levels"].get_xdata()) == pytest.approx(levels)
    drawing = written["comparison.png"].drawing
    assert drawing
    bars = [
        collection.get_segments()[0]
        for container in drawing.axes[0].containers
        for collection in container.get_children()
        if hasattr(collection, "get_segments")
    ]
    assert [float(end[0]) for end in bars[2]] == pytest.approx([-0.0193, -0.0177], abs=1e-4)  # run 3


def test_the_tiers_of_each_run_are_drawn(six: tuple[Path, dict[str, plots.Figure]]):
    tiers = six[1]["tier_activity_comparison.png"]
    assert tiers.drawing
    of_run_1 = {  # the first that has tiers
        panel.get_title(loc="left"): [
            bars.patches[0].get_width() for bars in panel.containers if isinstance(bars, BarContainer)
        ]
        for panel in tiers.drawing.axes
    }
    assert of_run_1["share of L0"] == [0.55, 0.3, 0.15]
    assert of_run_1["alive fraction"] == pytest.approx([0.99, 0.85, 0.67])
    assert "composition R²" in of_run_1
    assert "Not shown" not in tiers.description


def test_the_band_is_as_wide_as_the_interval_that_judges_a_new_seed(tmp_path: Path):
    """A run at the reseeded level is judged by the same interval: t(n-1) s sqrt(1 + 1/n)."""
    info = measured(16 * 1.018, 0.8445, 0.9623, 0.98, 0.671)
    half_widths = {name: compared.half_width for name, compared in compare(info, Brackets(BASELINES)).metrics.items()}
    figure = write(tmp_path, [run(tmp_path, 0, "Baseline", info)])["l0_front.png"]
    for axis, name in (("explained variance", "explained_variance_centered"), ("CE-loss score", "ce_loss_score")):
        panel = panel_of(figure, axis)
        (band,) = [each for each in panel.collections if each.get_label() == "where 95% of its trainings fall"]
        at = [y for x, y in band.get_paths()[0].vertices if abs(x - 8 * 1.018) < 1e-6]
        assert (max(at) - min(at)) / 2 == pytest.approx(half_widths[name], rel=0.01)


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, plots.Figure]:
    directory = tmp_path_factory.mktemp("thirteen runs")
    return write(directory, study(directory, 13))


def test_nothing_overlaps(tmp_path: Path, thirteen: dict[str, plots.Figure]):
    for written in (write(tmp_path, study(tmp_path, 2)), thirteen):
        for name, figure in written.items():
            assert overlapping(figure) == [], name


def test_twelve_metrics_are_laid_out_in_rows_without_overlap(tmp_path: Path):
    scores = {
        "sparse_probing": "sae_top_5_test_accuracy",
        "absorption": "mean_absorption_fraction_score",
        "scr": "scr_metric_threshold_20",
        "tpp": "tpp_threshold_20_total_metric",
        "forgetting": "forgetting_score",
        "autointerp": "autointerp_score",
        "meta_structure": "decoder_fraction_variance_explained",
    }

    names = ("sparse_probing_5", "absorption", "scr", "tpp", "forgetting", "autointerp", "meta_structure")
    wide = [
        baseline.model_copy(update={"figures": baseline.figures | dict.fromkeys(names, 0.1 + 0.01 * baseline.seed)})
        for baseline in BASELINES
    ]
    runs = study(tmp_path, 3)
    for number in (1, 2):
        info = runs[number].info
        assert info
        evaluations = {family: FamilyScores(metrics={name: 0.1 + 0.02 * number}) for family, name in scores.items()}
        info = info.model_copy(update={"evaluations": evaluations})
        runs[number] = replace(runs[number], info=info.model_copy(update={"comparison": compare(info, Brackets(wide))}))
    figure = write(tmp_path, runs, wide)["comparison.png"]
    assert figure.drawing
    panels = {panel.get_title("left"): panel for panel in figure.drawing.axes}
    assert len(panels) == 12
    assert len({round(panel.get_position().y0, 3) for panel in panels.values()}) == 4
    assert panels["SCR, top 20"].get_xlabel() == "difference\nnever decides"
    assert overlapping(figure) == []


def test_any_title_fits(tmp_path: Path):
    runs = []
    for variant in study(tmp_path, 3):
        title = "WIDE $\\frac TITLE\n" + "OF MANY WORDS " * 9
        runs.append(run(tmp_path, variant.number, title, variant.info))
    runs.append(run(tmp_path, 3, title, failed("out_of_memory", "9 GiB")))
    history(runs[3].directory, measured(*MEASURED[3]))
    written = write(tmp_path, runs)
    for name, figure in written.items():
        assert overlapping(figure) == [], name
    drawing = written["training_curves.png"].drawing
    assert drawing
    labels = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert labels[1].startswith("run 1: WIDE $\\frac TITLE OF")
    assert labels[3].endswith("… (out_of_memory)")


def test_a_diverging_loss_keeps_its_axis_legible(tmp_path: Path):
    runs = study(tmp_path, 2)
    history(runs[1].directory, measured(*MEASURED[1]), loss=1e12)
    assert overlapping(write(tmp_path, runs)["training_curves.png"]) == []


def test_runs_differ_without_their_colour(thirteen: dict[str, plots.Figure]):
    for name in ("training_curves.png", "l0_front.png"):
        drawing = thirteen[name].drawing
        assert drawing
        lines = [line for line in drawing.axes[0].lines if str(line.get_label()).startswith("run ")]
        assert len({(line.get_marker(), line.get_fillstyle()) for line in lines}) == 13, name


def test_figures_can_be_drawn_without_baselines(tmp_path: Path):
    written = write(tmp_path, study(tmp_path, 2, []), [])
    own = ["training_metrics.png", "tier_activity_comparison.png"]
    assert list(written) == ["training_curves.png", "l0_front.png", *own]
    assert "The baseline's curve was not measured, nor the noise." in written["l0_front.png"].description
    assert overlapping(written["l0_front.png"]) == []


def test_baselines_of_one_seed_or_one_k_have_no_band(tmp_path: Path):
    runs = study(tmp_path, 1)
    one_seed = write(tmp_path, runs, [baseline(8), baseline(16), baseline(32)])["l0_front.png"].description
    assert "the noise between seeds was not measured, so it has no band" in one_seed
    one_k = write(tmp_path, runs, [baseline(16, seed) for seed in range(5)])["l0_front.png"].description
    assert "The baseline was measured at too few L0 to have a line." in one_k


def test_runs_that_are_not_shown_are_listed(tmp_path: Path):
    runs = study(tmp_path, 5)
    assert runs[2].info
    far = measured(60.0, 0.93, 0.99, 0.9, 0.7)
    runs[1] = run(tmp_path, 1, "Far", far.model_copy(update={"comparison": compare(far, Brackets(BASELINES))}))
    unprobed = measured(*MEASURED[2]).model_copy(update={"probing": None})
    runs[2] = run(
        tmp_path, 2, "Unprobed", unprobed.model_copy(update={"comparison": compare(unprobed, Brackets(BASELINES))})
    )
    runs[3] = run(tmp_path, 3, "Died", failed("timed_out", "60 s"))
    runs[4] = run(tmp_path, 4, "Goes on", None)
    (tmp_path / "run_4" / "metrics.jsonl").unlink()
    written = write(tmp_path, runs)
    assert "Not shown: run 4 left no training history." in written["training_curves.png"].description
    assert "run 3 has no result (timed_out); run 4 has no result." in written["l0_front.png"].description
    comparison = written["comparison.png"].description
    assert "run 1 is not comparable, no baselines on both sides of L0 60.00 within 10% of it" in comparison
    assert "AUC, top 5 latents" not in comparison
    assert "run 3" not in comparison
    assert "tier_activity_comparison.png" not in written
    assert overlapping(written["comparison.png"]) == []


def test_a_study_without_data_has_no_figures(tmp_path: Path):
    runs = [run(tmp_path, 0, "Baseline", None)]
    assert write(tmp_path, runs, []) == {}


FIGURES = """
from agent.report import figure_style

def draw(directory, runs):
    figure, _ = figure_style.panels(1, 1, height=1, named=1)
    return [figure_style.save(figure, directory / "own.png", f"of {len(runs)} runs, {runs[0].info.metric('l0')}")]
"""


def idea_with(figures: str, folder: Path) -> Idea:
    (folder / "ideas/mine").mkdir(parents=True)
    (folder / "ideas/mine/figures.py").write_text(figures)
    return ideas.load("hierarchical_sae").model_copy(update={"folder": folder / "ideas/mine"})


def test_the_figures_of_an_idea_are_drawn_by_a_process_of_its_own(tmp_path: Path):
    drawing = idea_analysis.Drawing(idea_with(FIGURES, tmp_path), UNCONFINED)
    figures = write(tmp_path, study(tmp_path, 2), BASELINES, drawing)
    assert figures["own.png"].description == f"of 2 runs, {study(tmp_path, 2)[0].info.metric('l0')}"  # type: ignore[union-attr]
    assert (tmp_path / "own.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise KeyError(f'{len(runs)} runs')", "KeyError: '1 runs' ({folder}/ideas/mine/figures.py line 5)"),
        ("import os; os.abort()", "{folder}/ideas/mine/figures.py killed: killed by SIGABRT"),
        ("(directory / 'comparison.png').write_text('')", "comparison.png is a figure of every study"),
        ("(directory / 'notes.png').symlink_to('/etc/passwd')", "notes.png is not a regular file"),
    ],
)
def test_the_notes_say_why_the_figures_of_an_idea_could_not_be_drawn(tmp_path: Path, line: str, reason: str):
    idea = idea_with(FIGURES.replace("    figure, _", f"    {line}\n    figure, _"), tmp_path)
    (last,) = idea_analysis.Drawing(idea, UNCONFINED)(tmp_path, study(tmp_path, 1))
    assert last.name == "the idea's own figures"
    assert f"could not be drawn: {reason.format(folder=tmp_path)}" in last.description


def test_a_missing_primary_metric_is_reported(tmp_path: Path):
    *_, figure = plots.write(tmp_path, study(tmp_path, 2), Brackets(BASELINES), {}, "kl_div_score", 0.01, None)
    assert "KL score, the primary metric, is not shown" in figure.description
    assert "dotted" not in figure.description


def test_the_axis_says_in_which_direction_a_metric_is_better(six: tuple[Path, dict[str, plots.Figure]]):
    drawing = six[1]["comparison.png"].drawing
    assert drawing
    labels = {panel.get_title("left"): panel.get_xlabel() for panel in drawing.axes}
    assert labels["loss added"] == "difference (nats/token)\n← better"
    assert labels["explained variance"] == "difference\nbetter →"
    assert "better →" in labels["CE-loss score (primary metric)"]


def test_each_run_has_its_outcome_beside_its_row(six: tuple[Path, dict[str, plots.Figure]]):
    drawing = six[1]["comparison.png"].drawing
    assert drawing
    main = drawing.axes[0]
    assert [text.get_text() for text in main.texts] == [
        "outcome",
        "negligible",
        "negligible",
        "worse",
        "worse",
        "worse",
    ]
    rows = [text.get_window_extent().y0 for text in main.texts]
    labels = [text.get_window_extent().y0 for text in main.get_yticklabels()]
    assert rows[1:] == pytest.approx(labels, abs=5)
