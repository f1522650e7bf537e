"""`agent ideas check`: an idea of the user's own is tried step by step, and what is wrong with it is said."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent import TEMPLATES

STEP = {"description": "d", "why": "w", "predictions": {}}
IDEA = {
    "title": "An idea of mine",
    "description": "It changes a constant.",
    "hypothesis": "None.",
    "smallest_effect": 0.005,
    "baselines": ["batchtopk", "relu"],
    "fixed": {"tokens": 100_000, "d_sae": 128},
    "defaults": {"aux": 0.03, "more": ""},
    "plan": [
        {"name": "sound", "title": "s", "parameters": {"aux": 0.1}, **STEP},
        {"name": "crashing", "title": "c", "parameters": {"aux": 0.2, "more": "_ = 1 / (SEED - SEED)"}, **STEP},
        {"name": "importing", "title": "i", "parameters": {"more": "import os"}, **STEP},
        {"name": "broken", "title": "b", "parameters": {"more": "("}, **STEP},
    ],
}
TEMPLATE = """\
{% extends baseline %}
{% block constants %}
{{ super() }}
MINE = {{ aux }}  # changes nothing
{% endblock %}
{% block after_step %}
{{ super() }}
        {{ more }}
{% endblock %}
"""
MEASURES = """\
from agent.lab.results import Measure

MEASURES = {"norm": Measure(title="norm", definition="The mean norm of the decoder's rows.")}
NEEDS = {"extra mine": "nothing"}
"""
ANALYSIS = """\
def measure(exam):
    return {"norm": exam.checkpoint.W_dec.norm(dim=1).mean().item()}
"""


def agent(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "agent", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "my_idea"
    folder.mkdir()
    (folder / "idea.yaml").write_text(yaml.safe_dump(IDEA, sort_keys=False))
    (folder / "experiment.py.j2").write_text(TEMPLATE)
    (folder / "measures.py").write_text(MEASURES)
    (folder / "analysis.py").write_text(ANALYSIS)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_step_on_each_baseline_is_ok_or_has_its_reason(mine: Path):
    (mine / "idea.yaml").write_text(yaml.safe_dump(IDEA | {"baselines": ["relu"]}, sort_keys=False))
    ended = agent("ideas", "check", "./my_idea", cwd=mine.parent)
    assert ended.returncode == 1, ended.stderr
    shown = "".join(ended.stdout.split())  # which is folded
    for row in (
        "sound relu ok, 1 of 1 measures, without extra mine",
        "crashing relu crashed: ",
        "importing relu preflight: line ",
        "broken relu my_idea, step broken: the experiment.py that it renders cannot be parsed: line ",
    ):
        assert "".join(row.split()) in shown, ended.stdout
    assert "its measures need extra mine of finish(): nothing" in ended.stdout
    assert ended.stdout.endswith("failed\n")
    assert Path(os.devnull).is_char_device()  # root could have put a file in its place


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sound_idea_passes_and_measures_that_fail_are_said(mine: Path):
    (mine / "idea.yaml").write_text(yaml.safe_dump(IDEA | {"baselines": ["batchtopk"], "plan": IDEA["plan"][:1]}))
    ended = agent("ideas", "check", "./my_idea", cwd=mine.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("my_idea is sound\n")
    (mine / "analysis.py").write_text("def measure(exam):\n    return exam.nothing\n")
    ended = agent("ideas", "check", str(mine), cwd=mine.parent)
    assert ended.returncode == 1
    reason = "analysis.py: AttributeError: 'Examination' object has no attribute 'nothing'"
    assert "".join(reason.split()) in "".join(ended.stdout.split())  # which is folded


def test_what_is_wrong_with_idea_yaml_is_said_with_its_line(mine: Path):
    text = (mine / "idea.yaml").read_text()
    (mine / "idea.yaml").write_text(text.replace("title: An idea of mine\n", "titel: mine\n") + "more: 1\n")
    ended = agent("ideas", "check", "./my_idea", cwd=mine.parent)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    for part in ("idea.yaml line 1: title: expected this field", "line 1: titel: unknown field", "more: unknown field"):
        assert part in ended.stderr


def test_ideas_in_folders_of_the_current_one_are_listed_by_their_paths(mine: Path):
    shutil.copytree(TEMPLATES / "ideas/matryoshka_sae", mine.parent / "second")
    (mine / "idea.yaml").write_text("- 1\n")
    ended = agent("ideas", cwd=mine.parent)
    assert ended.returncode == 0, ended.stderr
    assert "./my_idea" in ended.stdout
    assert "./second" in ended.stdout
    assert "hierarchical_sae" in ended.stdout
    assert f"broken: {mine}/idea.yaml: expected fields" in ended.stdout.replace("\n", "")
    here = agent("ideas", cwd=TEMPLATES / "ideas")
    assert "./" not in here.stdout
