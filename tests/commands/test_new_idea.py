"""agent ideas new: a language model's idea is checked, held beside what is there, and written where it is approved."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from scripted_server import CANARY, ScriptedServer
from standin import make_checkout

from agent import TEMPLATES, ideas
from agent.commands import new_idea
from agent.ideas import BadIdea
from agent.lab.errors import UserError
from agent.llm.client import Client, Limits, LLMError
from agent.study import workspace
from agent.study.ledger import Ledger

GATED = """\
title: "Gates: which latents fire, and how strongly?"
description: |
  Latents are switched by a gate whose weights are those of the magnitudes up to a scale, as in Rajamanoharan et al.
  2024; an auxiliary reconstruction trains the gate.
hypothesis: Without shrinkage the CE-loss score should go up at the same L0.
primary_metric: ce_loss_score
smallest_effect: 0.005
plan:
  - name: gate
    title: A gate with tied weights
    description: "W_gate = exp(r) * W_enc, with r of shape [d_sae]; the gate's threshold is 0 # not learned"
    why: It tells whether shrinkage costs anything.
    predictions: {ce_loss_score: up, l0: same}
  - name: untied
    title: A gate with weights of its own
    description: As the step before, with W_gate trained apart from W_enc.
    why: It tells whether tying costs anything.
    predictions: {ce_loss_score: same}
    when: {step: gate, metric: ce_loss_score, came_out: up}
"""
LEVELS = """\
title: Latents in levels
description: |
  The dictionary is divided into three levels. A sparse linear map predicts the latents of a level from those of the
  level below, with a composition loss and a curriculum that lets the levels in one after another.
hypothesis: A composition loss should order the latents from general to specific, which should help sparse probing.
primary_metric: ce_loss_score
smallest_effect: 0.005
plan:
  - name: levels
    title: Three levels
    description: The latents are split into three disjoint levels of equal size, tied by a composition loss.
    why: The loss moves a level towards latents that predict the next one.
    predictions: {ce_loss_score: down}
"""
SENTENCE = "Would a gate help?"


def fenced(text: str) -> str:
    return f"Here is an idea.\n\n```yaml\n{text}```\nGood luck.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The shipped ideas at a place where more can be written."""
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    return tmp_path


def asked(patch: pytest.MonkeyPatch, server: ScriptedServer, root: Path) -> ideas.Idea:
    for name, value in server.environment.items():
        patch.setenv(name, value)
    client = Client("m", root / "transcript.jsonl", Limits())
    return new_idea.ask(SENTENCE, client, root / "templates")


# --- the command ---


def test_an_idea_that_is_approved_is_there_and_says_what_it_needs(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    command = [sys.executable, "-P", "-m", "agent", "ideas", "new", SENTENCE, "--llm", "m"]
    with ScriptedServer(fenced(GATED)) as server:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout.root)} | server.environment
        ended = subprocess.run(command, input="y\n", env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    name = "gates_which_latents_fire_and"
    for said in ("Gates: which latents fire", "1. A gate with tied weights (gate)", "120 tokens in 1 call\n", "[y/N]"):
        assert said in ended.stdout
    assert f"agent run --idea {name} --max-runs 2 --proposer llm --llm m" in ended.stdout
    assert "resembles" not in ended.stdout
    written = checkout.root / f"templates/ideas/{name}"
    assert [path.name for path in written.iterdir()] == ["idea.yaml"]
    assert "no template: run it with --proposer llm" in checkout.agent("ideas", "show", name).stdout
    refused = checkout.agent("run", "--idea", name, "--max-runs", "1")
    assert refused.returncode == 2
    said = f"error: {name} has a plan in words and no experiment.py.j2: it needs --proposer llm --llm MODEL\n"
    assert refused.stderr == said


@pytest.mark.parametrize("typed", ["\n", "n\n", ""])
def test_an_idea_that_is_not_approved_is_kept_and_not_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str
):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with ScriptedServer(fenced(LEVELS)) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with nullcontext() if typed else pytest.raises(UserError, match="nobody is there to approve it"):
            new_idea.new(SENTENCE, "m", root)
    assert (
        "resembles the idea hierarchical_sae, 'Learning compositional features with tiers'" in capsys.readouterr().out
    )
    (kept,) = (root / "runs").iterdir()
    assert ideas.parse((kept / "idea.yaml").read_text(), kept / "idea.yaml").title == "Latents in levels"
    assert ideas.idea_names(root / "templates") == ideas.idea_names()
    files = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    with pytest.raises(UserError, match="waits to be resumed"):
        workspace.find_study_to_resume(root, None)


def test_without_a_key_nothing_is_begun(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LLMError, match="OPENAI_API_KEY is not set"):
        new_idea.new(SENTENCE, "m", root)
    assert not (root / "runs").exists()


# --- what is asked, and what goes back ---


def test_the_model_is_told_the_sentence_the_baseline_the_metrics_and_the_ideas_there_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    with ScriptedServer(fenced(GATED)) as server:
        idea = asked(monkeypatch, server, root)
    assert [step.name for step in idea.plan] == ["gate", "untied"]
    for said in (
        SENTENCE,
        "def compute_loss(sae",
        "- loss_added: loss added in nats/token; lower is better; a difference is worth having from 0.03 on",
        "- l0: L0 in latents/token; neither direction is better\n",
        "- Learning compositional features with tiers: A composition loss between tiers",
    ):
        assert said in server.requests[0].text


def test_only_what_every_study_measures_is_offered_and_may_decide(root: Path):
    prompt = new_idea._prompt(SENTENCE, (), root / "templates")
    measured = prompt.partition("# What is measured")[2].partition("# Your answer")[0]
    assert [line.partition(":")[0] for line in measured.strip().splitlines()] == [
        *("- l0", "- explained_variance_centered", "- ce_loss_score", "- loss_added", "- alive_fraction"),
        "- probing_auc_5",
    ]
    assert "that decides: explained_variance_centered, ce_loss_score, loss_added, alive_f" in prompt
    absorbing = GATED.replace("primary_metric: ce_loss_score", "primary_metric: absorption")
    with pytest.raises(BadIdea, match="primary_metric: expected explained_variance_centered or ce_loss_score or "):
        new_idea.read(absorbing)


def test_the_answer_that_the_prompt_shows_is_one_that_it_takes(root: Path):
    prompt = (root / "templates/prompts/new_idea.j2").read_text()
    assert len(new_idea.read(prompt[prompt.index("# Your answer") :]).plan) == 2


def test_all_that_breaks_the_schema_goes_back_to_the_model(root: Path, monkeypatch: pytest.MonkeyPatch):
    broken = GATED.replace("title: A gate", "titel: A gate", 1).replace("l0: same", "lO: same")
    with ScriptedServer(fenced(broken), fenced(GATED)) as server:
        asked(monkeypatch, server, root)
    first, second = (request.body["messages"] for request in server.requests)
    assert second[:2] == [*first, {"role": "assistant", "content": fenced(broken)}]
    for said in (
        "idea.yaml line 9: plan.0.title: expected this field, found none",
        "line 10: plan.0.titel: unknown field: did you mean title?",
    ):
        assert said in second[2]["content"]


def test_a_model_that_cannot_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch):
    with (
        ScriptedServer(*["I have no idea."] * 5) as server,
        pytest.raises(UserError, match=r"none of 4 answers .* expected fields such as title and plan, found str"),
    ):
        asked(monkeypatch, server, root)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "text",
    [
        GATED,
        fenced(GATED),
        fenced(GATED).replace("```yaml", "```"),
        fenced(GATED).replace("\n", "\r\n"),
        json.dumps(yaml.safe_load(GATED)),
        "```json\n" + json.dumps(yaml.safe_load(GATED), indent=2) + "\n```",
    ],
)
def test_an_idea_is_read_as_yaml_or_json_fenced_or_not(text: str):
    assert len(new_idea.read(text).plan) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("plan:", "fixed: {d_sae: 4096}\nplan:", "fixed, defaults, parameters: leave them out"),
        (
            "    why: It tells whether t",
            "    parameters: {}\n    why: It tells whether t",
            "parameters: leave them out",
        ),
        (
            "{ce_loss_score: same}",
            "{l0: same}",
            "plan.1.predictions: expected the primary metric, ce_loss_score, among",
        ),
        ("{ce_loss_score: same}", "{}", "plan.1.predictions: expected the primary metric"),
        ("smallest_effect: 0.005", "smallest_effect: 0.0001", "smallest_effect: expected at least 0.005, found 0.0001"),
        ("primary_metric: ce_loss_score", "primary_metric: l0", "a headline metric with a better direction"),
        ("plan:", "plan: []\nother:", "plan: List should have at least 1 item"),
        ("plan:", "plan: " + "[" * 500, "recursion"),
        ("plan:", "plan: *nothing\nother:", "undefined alias"),
        ("plan:", "plan: !!python/object/apply:os.getcwd []\nother:", "could not determine a constructor"),
    ],
)
def test_what_is_unfit_is_named(old: str, new: str, said: str):
    assert GATED.count(old) == 1
    with pytest.raises(BadIdea, match=r"idea\.yaml") as caught:
        new_idea.read(GATED.replace(old, new))
    assert said in str(caught.value)


# --- what is written ---


def test_an_idea_is_written_as_it_was_read(root: Path):
    idea = new_idea.read(GATED.replace("2024;", "2024 – 'über' \"all\": {x}, [y] & *z;"))
    text = new_idea.as_yaml(idea)
    again = ideas.parse(text, root / "idea.yaml")
    assert new_idea.as_yaml(again) == text
    assert again.description.split() == idea.description.split()
    assert again.plan[0].description.strip() == idea.plan[0].description
    assert [step.predictions for step in again.plan] == [step.predictions for step in idea.plan]
    assert [step.when for step in again.plan] == [step.when for step in idea.plan]
    assert max(map(len, text.splitlines())) <= 120
    assert "description: |\n  Latents are switched" in text


def test_a_name_that_is_taken_is_numbered(root: Path, monkeypatch: pytest.MonkeyPatch):
    taken = root / "templates/ideas/gates_which_latents_fire_and"
    taken.mkdir()
    with ScriptedServer(GATED) as server:
        assert asked(monkeypatch, server, root).name == "gates_which_latents_fire_and_2"


# --- what is there already ---


def test_an_idea_told_again_resembles_the_first(root: Path):
    (other,) = new_idea.resembling(new_idea.read(LEVELS), root)
    assert other.what == "the idea hierarchical_sae"
    assert "composition" in other.common
    assert new_idea.resembling(new_idea.read(GATED), root) == []


def test_an_idea_told_again_resembles_the_studies_of_the_first(root: Path):
    from agent.study.events import StudyStarted

    idea = new_idea.read(GATED)
    told = {name: getattr(idea, name) for name in ("title", "description", "hypothesis", "primary_metric")}
    more = {"idea": "g", "smallest_effect": 0.005, "fixed": ideas.Fixed(), "evals": ("core",), "ground": "g"}
    started = StudyStarted(**told, **more, max_runs=1)
    for place in ("runs/1_g", "notes/1_g", "notes/2_g", "runs/3_damaged"):
        (root / place).mkdir(parents=True)
    Ledger(root / "runs/1_g/events.jsonl").append(started)
    (root / "runs/3_damaged/events.jsonl").write_text("{}\n")
    for place in ("notes/1_g", "notes/2_g"):
        (root / place / "notes.txt").write_text(f"# Title\nA gate\n\n# Experiment description\n{idea.description}\n")
    found = [(other.what, other.title) for other in new_idea.resembling(idea, root)]
    assert sorted(found) == [(f"the notes {root / 'notes/2_g/notes.txt'}", "A gate"), ("the study 1_g", idea.title)]
