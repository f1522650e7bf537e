"""A whole study in bfloat16, by every evaluation that runs here: what a GPU would do, on the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scripted_judge import by_rule
from scripted_server import ScriptedServer
from small_lab import HOOK

from agent.lab import results
from agent.lab.evaluation.catalogue import NAMES
from agent.report import notes
from agent.study.state import State
from agent.study.workspace import Study, find_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
IDEA = "hierarchical_sae"
FIXED = {"hook_name": HOOK, "tokens": 100_000, "d_sae": 128, "k": 16}
LEFT_OUT = {"absorption", "unlearning"}  # the small model cannot spell, and is none of those with questions


def make_checkout(root: Path) -> Path:
    """Copy this checkout, with a plan of one step at a test's size."""
    for name in ("agent", "templates"):
        shutil.copytree(ROOT / name, root / name)
    path = root / "templates/ideas" / IDEA / "idea.yaml"
    idea = yaml.safe_load(path.read_text())
    del idea["answer"]  # it is about steps that are not in this plan
    path.write_text(yaml.safe_dump(idea | {"fixed": FIXED, "plan": idea["plan"][:1]}))
    return root


def agent(root: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {"PYTHONPATH": str(root), "SAE_AGENT_CACHE": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "agent", *arguments]
    return subprocess.run(command, cwd=root, env=os.environ | own | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def study(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, State]:
    root = make_checkout(tmp_path_factory.mktemp("checkout"))
    options = ["--model", str(small_model), "--device", "cpu", "--dtype", "bfloat16", "--evals", "full"]
    with ScriptedServer(otherwise=by_rule) as judge:
        ended = agent(root, "run", "--idea", IDEA, "--max-runs", "1", *options, **judge.environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = find_study(next(root.glob("runs/*")))
    assert found
    return found


def test_every_evaluation_scores_every_run(study: tuple[Study, State]):
    study_, state = study
    assert state.started.fixed.dtype == "bfloat16"
    assert set(state.started.evals) == set(NAMES) - LEFT_OUT - {"synthetic"}
    scored = [results.read(path.parent) for path in study_.directory.glob("*/final_info.json")]
    assert len(scored) == 1 + 1 + len(state.baselines) - 1
    for info in scored:
        assert info.verdict.ok, info.verdict
        assert info.errors == {}
        assert info.families == set(state.started.evals)
        assert info.environment["dtype"] == "bfloat16"


def test_the_sentinels_and_the_comparison_hold(study: tuple[Study, State]):
    _, state = study
    assert state.sentinels
    assert "probing_auc_5" in {expectation.metric for expectation in state.sentinels}
    assert (state.broken, state.sentinel_errors) == ([], {})
    comparison = state.runs[1].comparison
    assert comparison
    assert "ce_loss_score" in comparison.metrics


def test_the_notes_name_the_dtype(study: tuple[Study, State]):
    study_, state = study
    text = (study_.notes / "notes.txt").read_text()
    assert f"Fixed in every run: model {state.started.fixed.model} in bfloat16, hook {HOOK}" in text.replace(
        "\n  ", " "
    )
    assert not notes.edited(text)
