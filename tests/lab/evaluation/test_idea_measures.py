"""An idea's own measures: correct on a checkpoint made by hand, and a broken analysis.py leaves the scores."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import measured
from builders import run as run_record
from matplotlib import rc_context
from small_lab import examination, run
from small_lab import save as save_run
from small_sae import header

from agent import TEMPLATES, ideas
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis, scoring
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.requests import Score
from agent.lab.results import FinalInfo
from agent.report import figure_style
from agent.report import idea_analysis as report

TIERED = TEMPLATES / "ideas/hierarchical_sae/analysis.py"
GROUPS = {"tier_0": (0, 3), "tier_1": (3, 5), "tier_2": (5, 6)}
SCALE = 0.5
# The six latents on two activations out of three, and on the third.
FIRST, SECOND = [1.0, 0.0, 0.0, 2.0, 0.0, 5.0], [0.0, 3.0, 0.0, 0.0, 0.0, 1.0]


def by_hand(folder: Path) -> Examination:
    """Return the examination of an SAE whose latents are its six scaled inputs, on activations where they are FIRST or
    SECOND.

    W_0 predicts half of tier 1; W_1 predicts tier 2 exactly.
    """
    W_0, W_1 = torch.zeros(3, 2), torch.zeros(2, 1)
    W_0[0, 0], W_1[0, 0] = 1.0, 2.5
    extra = {"composition_0": W_0, "composition_1": W_1}
    training = header().training.model_copy(update={"d_in": 6, "d_sae": 6})
    described = header(d_in=6, d_sae=6, scale=SCALE, groups=GROUPS, training=training)
    checkpoint.save(folder, lambda x: x.relu(), torch.eye(6), torch.zeros(6), described, extra=extra)
    return examination(folder, torch.tensor([FIRST, FIRST, SECOND] * 2000) / SCALE, folder.parent / "examined")


def test_tier_figures_are_correct(tmp_path: Path):
    figures = idea_analysis.measure(TIERED, by_hand(tmp_path / "checkpoint"))
    of_tiers = ("tier_", "composition_0_r2", "composition_1_r2")
    assert {name: figure for name, figure in figures.items() if name.startswith(of_tiers)} == pytest.approx(
        {
            "tier_0_latents_share": 3 / 6,
            "tier_1_latents_share": 2 / 6,
            "tier_2_latents_share": 1 / 6,
            "tier_0_l0_share": 3 / 8,
            "tier_1_l0_share": 2 / 8,
            "tier_2_l0_share": 3 / 8,
            "tier_0_alive_fraction": 2 / 3,
            "tier_1_alive_fraction": 1 / 2,
            "tier_2_alive_fraction": 1,
            "composition_0_r2": 1 - 2 / (8 / 3),  # predicts 1, 1, 0 of 2, 2, 0
            "composition_1_r2": 1 - 1 / (32 / 3),  # predicts 5, 5, 0 of 5, 5, 1
        },
        rel=1e-6,
    )


def test_the_driver_reads_every_idea_without_torch():
    source = """
import sys
from agent import ideas
from agent.report import idea_analysis
for name in ideas.idea_names():
    own = idea_analysis.load(ideas.load(name))
    assert own.measures and own.draw, name
sys.exit("torch" in sys.modules)
"""
    process = run("-c", source)
    assert process.returncode == 0, process.stderr


def test_running_an_ideas_files_leaves_no_bytecode_and_no_module(tmp_path: Path):
    names = ("measures.py", "analysis.py", "figures.py")
    analysis = [Path(shutil.copy(TIERED.with_name(name), tmp_path)) for name in names][1]
    idea_analysis.measure(analysis, by_hand(tmp_path / "checkpoint"))
    assert {path.name for path in tmp_path.iterdir()} == {*names, "checkpoint", "examined"}
    assert "measures" not in sys.modules


def test_a_figure_must_be_named_in_measures_py(tmp_path: Path):
    (tmp_path / "measures.py").write_text("MEASURES = {'known': None}")
    analysis = tmp_path / "analysis.py"
    analysis.write_text("MEASURES = {'other': None}\ndef measure(exam): return {'known': 1, 'other': 2}")
    with pytest.raises(LookupError, match=r"'other', which is not in MEASURES of measures\.py"):
        idea_analysis.measure(analysis, by_hand(tmp_path / "checkpoint"))


# As ideas were written before measures.py: MEASURES in analysis.py, no torch at its top, modules under older names.
OLDER_ANALYSIS = """
from typing import TYPE_CHECKING
from agent.lab.results import Measure
if TYPE_CHECKING:
    from agent.lab.evaluation.examination import Examination
MEASURES = {"norm": Measure(title="norm", says="the mean norm of the activations")}
def measure(exam: "Examination") -> dict[str, float]:
    import torch
    from agent.lab.evaluation.examination import Examination
    from agent.lab.evaluation.subject import BenchSAE
    from agent.lab.evaluation.world import Drawn, WorldEvaluator
    assert isinstance(exam, Examination) and isinstance(exam.sae, BenchSAE)
    assert not isinstance(exam.evaluator, WorldEvaluator) and not isinstance(exam.held_out, Drawn)
    return {"norm": torch.linalg.vector_norm(exam.activations, dim=1).mean()}
"""
OLDER_FIGURES = """
from agent import canvas
from agent.display import format_value
from agent.study import Run
def draw(directory, runs):
    assert all(isinstance(run, Run) for run in runs)
    shown = [run for run in runs if run.counts]
    figure, ((panel,),) = canvas.panels(1, 1, height=2.0, named=len(shown))
    for run in shown:
        panel.plot([0, 1], [run.info.analysis["norm"]] * 2, label=canvas.label(run), **canvas.style(run, 3))
    canvas.legend(figure, panel)
    text = ", ".join(f"run {run.number} L0 {format_value('l0', run.info.metric('l0'))}" for run in shown)
    return [canvas.save(figure, directory / "norm.png", f"norms: {text}.")]
"""


def test_an_idea_in_the_older_layout_still_loads_is_measured_and_drawn(tmp_path: Path):
    idea = ideas.load("matryoshka_sae").model_copy(update={"folder": tmp_path})
    (tmp_path / "analysis.py").write_text(OLDER_ANALYSIS)
    (tmp_path / "figures.py").write_text(OLDER_FIGURES)
    own = report.load(idea)
    assert own.path
    assert own.measures
    assert own.draw
    assert own.measures["norm"].definition == "the mean norm of the activations"
    figures = idea_analysis.measure(own.path, by_hand(tmp_path / "checkpoint"))
    assert figures == {"norm": pytest.approx((2 * 30**0.5 + 10**0.5) / 3 / SCALE)}
    info = measured(16.0, 0.84, 0.96, 0.98, 0.67).model_copy(update={"analysis": figures})
    with rc_context(figure_style.STYLE):
        drawn = own.draw(tmp_path, [run_record(tmp_path, 0, "Baseline", info)])
    assert [(figure.name, figure.description) for figure in drawn] == [("norm.png", "norms: run 0 L0 16.00.")]
    assert (tmp_path / "norm.png").exists()


# Through the evaluator


class Halved(torch.nn.Module):
    """The least that can be evaluated: its latents are the positive inputs."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.W_dec, self.b_dec = torch.eye(d_in), torch.zeros(d_in)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


@pytest.fixture(scope="module")
def run_dir(harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("analysed") / "run", Halved(harvest[1].d_in), harvest[1])


def score_with_analysis(evaluator: Evaluator, run_dir: Path, path: Path, source: str | None = None) -> FinalInfo:
    if source is not None:
        path.write_text(source)
    return scoring.score(evaluator, Score(run_dir=run_dir, slice=True, analysis=path))


DEFINES = """
from agent.lab.results import Measure
MEASURES = {name: Measure(title=name, definition=name) for name in ("tokens", "scale", "nothing")}
def measure(exam):
    import torch
    return RETURN
"""


def test_an_ideas_figures_are_in_the_results(evaluator: Evaluator, run_dir: Path, tmp_path: Path):
    figures = "{'tokens': len(exam.activations), 'scale': exam.activations.norm(dim=1).mean(), 'nothing': float('nan')}"
    info = score_with_analysis(evaluator, run_dir, tmp_path / "analysis.py", DEFINES.replace("RETURN", figures))
    held_out = evaluator.held_out("dev", 16)
    assert info.errors == {}
    assert info.analysis["tokens"] == len(held_out.activations)
    assert info.analysis["scale"] == pytest.approx(held_out.activations.norm(dim=1).mean().item())
    assert info.analysis["nothing"] is None
    assert "analysis.nothing" in info.non_finite


def test_an_sae_without_tiers_has_no_tier_figures(evaluator: Evaluator, run_dir: Path):
    info = score_with_analysis(evaluator, run_dir, TIERED)
    assert (info.analysis, info.errors, info.verdict.name) == ({}, {}, "ok")
    assert list(info.not_measured) == ["groups tier_0, tier_1", "extra composition_0"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DEFINES.replace("RETURN", "{'other': 1.0}"), "'other', which is not in MEASURES"),
        (DEFINES.replace("RETURN", "{'tokens': torch.zeros(2)}"), "Error"),
        (DEFINES.replace("RETURN", "1 / 0"), "ZeroDivisionError: division by zero"),
        ("def measure(:", "SyntaxError: invalid syntax"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("MEASURES = {}", "KeyError: 'measure'"),
        (None, "FileNotFoundError"),
    ],
)
def test_an_analysis_that_fails_leaves_the_scores(
    evaluator: Evaluator, run_dir: Path, tmp_path: Path, source: str | None, message: str
):
    info = score_with_analysis(evaluator, run_dir, tmp_path / "analysis.py", source)
    assert message in info.errors["analysis"]
    assert info.analysis == {}
    assert info.core
    assert info.verdict.ok
