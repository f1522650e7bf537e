"""An idea's own measures: figures that are right on a checkpoint made by hand, and files that go wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import examination, run
from small_lab import save as save_run
from small_sae import header

from agent import TEMPLATES
from agent.lab import checkpoint
from agent.lab.evaluation import idea_analysis, scoring
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.requests import Score
from agent.lab.results import FinalInfo

TIERED = TEMPLATES / "ideas/hierarchical_sae/analysis.py"
GROUPS = {"tier_0": (0, 3), "tier_1": (3, 5), "tier_2": (5, 6)}
SCALE = 0.5
# What the six latents are on two activations out of three, and on the third.
FIRST, SECOND = [1.0, 0.0, 0.0, 2.0, 0.0, 5.0], [0.0, 3.0, 0.0, 0.0, 0.0, 1.0]


def by_hand(folder: Path) -> Examination:
    """An SAE whose latents are its six scaled inputs, and the activations on which they are FIRST or SECOND.

    W_0 predicts of tier 1 half of what it is; W_1 predicts tier 2 to the digit.
    """
    W_0, W_1 = torch.zeros(3, 2), torch.zeros(2, 1)
    W_0[0, 0], W_1[0, 0] = 1.0, 2.5
    extra = {"composition_0": W_0, "composition_1": W_1}
    training = header().training.model_copy(update={"d_in": 6, "d_sae": 6})
    made = header(d_in=6, d_sae=6, scale=SCALE, groups=GROUPS, training=training)
    checkpoint.save(folder, lambda x: x.relu(), torch.eye(6), torch.zeros(6), made, extra=extra)
    return examination(folder, torch.tensor([FIRST, FIRST, SECOND] * 2000) / SCALE, folder.parent / "examined")


def test_the_figures_of_tiers_are_right(tmp_path: Path):
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


def test_reading_an_analysis_needs_no_torch_and_leaves_no_bytecode(tmp_path: Path):
    copies = [Path(shutil.copy(TIERED.with_name(name), tmp_path)) for name in ("analysis.py", "figures.py")]
    for copy in copies:
        ended = run("-c", f"import sys, runpy; runpy.run_path({str(copy)!r}); sys.exit('torch' in sys.modules)")
        assert ended.returncode == 0, ended.stderr
    idea_analysis.measure(copies[0], by_hand(tmp_path / "checkpoint"))
    assert {path.name for path in tmp_path.iterdir()} == {"analysis.py", "figures.py", "checkpoint", "examined"}


# Through the evaluator


class Halved(torch.nn.Module):
    """As little as can be evaluated: it says of an input where it is above 0."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.W_dec, self.b_dec = torch.eye(d_in), torch.zeros(d_in)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


@pytest.fixture(scope="module")
def run_dir(harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("analysed") / "run", Halved(harvest[1].d_in), harvest[1])


def analysed(evaluator: Evaluator, run_dir: Path, path: Path, source: str | None = None) -> FinalInfo:
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


def test_figures_come_with_the_scores(evaluator: Evaluator, run_dir: Path, tmp_path: Path):
    figures = "{'tokens': len(exam.activations), 'scale': exam.activations.norm(dim=1).mean(), 'nothing': float('nan')}"
    info = analysed(evaluator, run_dir, tmp_path / "analysis.py", DEFINES.replace("RETURN", figures))
    held_out = evaluator.held_out("dev", 16)
    assert info.errors == {}
    assert info.analysis["tokens"] == len(held_out.activations)
    assert info.analysis["scale"] == pytest.approx(held_out.activations.norm(dim=1).mean().item())
    assert info.analysis["nothing"] is None
    assert "analysis.nothing" in info.non_finite


def test_an_sae_without_tiers_has_no_figures_of_tiers(evaluator: Evaluator, run_dir: Path):
    info = analysed(evaluator, run_dir, TIERED)
    assert (info.analysis, info.errors, info.verdict.name) == ({}, {}, "ok")


@pytest.mark.parametrize(
    ("source", "said"),
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
    evaluator: Evaluator, run_dir: Path, tmp_path: Path, source: str | None, said: str
):
    info = analysed(evaluator, run_dir, tmp_path / "analysis.py", source)
    assert said in info.errors["analysis"]
    assert info.analysis == {}
    assert info.core
    assert info.verdict.ok
