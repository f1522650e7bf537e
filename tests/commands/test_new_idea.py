"""agent ideas new: an idea from a language model is checked, compared with existing ones, and written if approved."""

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
from agent.llm.client import Client, LLMError
from agent.llm.limits import Limits
from agent.llm.server import server as server_of_model
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
    """Return a root with a copy of the shipped ideas."""
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    return tmp_path


def request_idea(patch: pytest.MonkeyPatch, server: ScriptedServer, root: Path) -> ideas.Idea:
    for name, value in server.environment.items():
        patch.setenv(name, value)
    client = Client(server_of_model("m"), root / "transcript.jsonl", Limits())
    return new_idea.request_idea(SENTENCE, client, root / "templates")


# --- the command ---


def test_an_approved_idea_is_written_and_says_what_it_needs(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    command = [sys.executable, "-P", "-m", "agent", "ideas", "new", SENTENCE, "--llm", "m"]
    with ScriptedServer(fenced(GATED)) as server:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout.root)} | server.environment
        ended = subprocess.run(command, input="y\n", env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    name = "gates_which_latents_fire_and"
    for text in ("Gates: which latents fire", "1. A gate with tied weights (gate)", "120 tokens in 1 call\n", "[y/N]"):
        assert text in ended.stdout
    assert f"agent run --idea {name} --max-runs 2 --proposer llm --llm m" in ended.stdout
    assert "similar to" not in ended.stdout
    written = checkout.root / f"templates/ideas/{name}"
    assert [path.name for path in written.iterdir()] == ["idea.yaml"]
    assert "no template: run it with --proposer llm" in checkout.agent("ideas", "show", name).stdout
    refused = checkout.agent("run", "--idea", name, "--max-runs", "1")
    assert refused.returncode == 2
    message = f"error: {name} has a plan in words and no experiment.py.j2: it needs --proposer llm --llm MODEL\n"
    assert refused.stderr == message


def test_an_idea_may_be_written_to_a_folder_of_the_users(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    folder = root / "my ideas/gate"
    with ScriptedServer(fenced(GATED)) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        new_idea.new(SENTENCE, "m", root, to=folder)
        assert ideas.load(str(folder)).title == "Gates: which latents fire, and how strongly?"
        assert f"study it with: agent run --idea '{folder}' --max-runs 2" in capsys.readouterr().out
        assert ideas.idea_names(root / "templates") == ideas.idea_names()
        for to, message in ((folder, "there is something already"), (root / "two words", "name it with letters")):
            with pytest.raises(UserError, match=message):
                new_idea.new(SENTENCE, "m", root, to=to)
    assert len(server.requests) == 1


@pytest.mark.parametrize("typed", ["\n", "n\n", ""])
def test_an_idea_that_is_not_approved_is_only_saved_as_a_draft(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str
):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with ScriptedServer(fenced(LEVELS)) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        no_terminal = pytest.raises(
            UserError, match=r"cannot ask for approval without a terminal; draft saved to .*idea\."
        )
        with nullcontext() if typed else no_terminal:
            new_idea.new(SENTENCE, "m", root)
    assert (
        "similar to the idea hierarchical_sae, 'Learning compositional features with tiers'" in capsys.readouterr().out
    )
    (draft_dir,) = (root / "runs").iterdir()
    assert ideas.parse((draft_dir / "idea.yaml").read_text(), draft_dir / "idea.yaml").title == "Latents in levels"
    assert ideas.idea_names(root / "templates") == ideas.idea_names()
    files = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    with pytest.raises(UserError, match="is unfinished"):
        workspace.find_study_to_resume(root, None)


def test_without_a_key_nothing_is_written(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LLMError, match="OPENAI_API_KEY is not set"):
        new_idea.new(SENTENCE, "m", root)
    assert not (root / "runs").exists()


# --- the prompt, and errors sent back ---


def test_the_prompt_has_the_sentence_the_baseline_the_metrics_and_the_existing_ideas(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    with ScriptedServer(fenced(GATED)) as server:
        idea = request_idea(monkeypatch, server, root)
    assert [step.name for step in idea.plan] == ["gate", "untied"]
    for text in (
        SENTENCE,
        "def compute_loss(sae",
        "- loss_added: loss added in nats/token; lower is better; the smallest difference of interest is 0.03",
        "- l0: L0 in latents/token; neither direction is better\n",
        "- Learning compositional features with tiers: A composition loss between tiers",
    ):
        assert text in server.requests[0].text


def test_only_metrics_measured_by_default_are_offered(root: Path):
    prompt = new_idea._prompt(SENTENCE, (), root / "templates")
    measured = prompt.partition("# What is measured")[2].partition("# Your answer")[0]
    assert [line.partition(":")[0] for line in measured.strip().splitlines()] == [
        *("- l0", "- explained_variance_centered", "- ce_loss_score", "- loss_added", "- alive_fraction"),
        "- probing_auc_5",
    ]
    assert "that decides, one of explained_variance_centered, ce_loss_score, loss_added, alive_f" in prompt
    absorbing = GATED.replace("primary_metric: ce_loss_score", "primary_metric: absorption")
    with pytest.raises(BadIdea, match="primary_metric: expected explained_variance_centered or ce_loss_score or "):
        new_idea.parse_answer(absorbing)


def test_the_example_answer_in_the_prompt_is_valid(root: Path):
    prompt = (root / "templates/prompts/new_idea.j2").read_text()
    asked = prompt[prompt.index("# Your answer") :]
    thought = "<think>Perhaps\n```yaml\n" + "title: no\n" * 99 + "```\n</think>"
    idea = new_idea.parse_answer(thought + asked)
    assert len(idea.plan) == 2
    assert yaml.safe_load(new_idea.as_yaml(idea))["answer"] == {
        "supported_if_all": [{"step": "any", "metric": "ce_loss_score", "outcome": ["better"]}],
        "refuted_if_any": [{"step": "short_name", "metric": "ce_loss_score", "below": 0.005}],
    }


def test_all_schema_errors_are_sent_back_to_the_model(root: Path, monkeypatch: pytest.MonkeyPatch):
    broken = GATED.replace("title: A gate", "titel: A gate", 1).replace("l0: same", "lO: same")
    with ScriptedServer(fenced(broken), fenced(GATED)) as server:
        request_idea(monkeypatch, server, root)
    first, second = (request.body["messages"] for request in server.requests)
    assert second[:2] == [*first, {"role": "assistant", "content": fenced(broken)}]
    for text in (
        "idea.yaml line 9: plan.0.title: expected this field, found none",
        "line 10: plan.0.titel: unknown field: did you mean title?",
    ):
        assert text in second[2]["content"]


def test_the_command_gives_up_after_four_invalid_answers(root: Path, monkeypatch: pytest.MonkeyPatch):
    with (
        ScriptedServer(*["I have no idea."] * 5) as server,
        pytest.raises(UserError, match=r"none of 4 answers .* expected fields such as title and plan, found str"),
    ):
        request_idea(monkeypatch, server, root)
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
def test_an_idea_is_parsed_from_yaml_or_json_fenced_or_not(text: str):
    assert len(new_idea.parse_answer(text).plan) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
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
        ("plan:", "plan: " + "[" * 500, "nested more than 50 deep"),
        ("plan:", "plan: *nothing\nother:", "undefined alias"),
        ("plan:", "plan: !!python/object/apply:os.getcwd []\nother:", "could not determine a constructor"),
    ],
)
def test_an_idea_that_needs_a_template_or_breaks_the_schema_is_refused(old: str, new: str, message: str):
    assert GATED.count(old) == 1
    with pytest.raises(BadIdea, match=r"idea\.yaml") as error:
        new_idea.parse_answer(GATED.replace(old, new))
    assert message in str(error.value)


# --- what is written ---


def test_a_written_idea_parses_to_the_same_idea(root: Path):
    idea = new_idea.parse_answer(GATED.replace("2024;", "2024 – 'über' \"all\": {x}, [y] & *z;"))
    text = new_idea.as_yaml(idea)
    parsed = ideas.parse(text, root / "idea.yaml")
    assert new_idea.as_yaml(parsed) == text
    assert parsed.description.split() == idea.description.split()
    assert parsed.plan[0].description.strip() == idea.plan[0].description
    assert [step.predictions for step in parsed.plan] == [step.predictions for step in idea.plan]
    assert [step.when for step in parsed.plan] == [step.when for step in idea.plan]
    assert max(map(len, text.splitlines())) <= 120
    assert "description: |\n  Latents are switched" in text


def test_a_taken_name_gets_a_number(root: Path, monkeypatch: pytest.MonkeyPatch):
    taken = root / "templates/ideas/gates_which_latents_fire_and"
    taken.mkdir()
    with ScriptedServer(GATED) as server:
        assert request_idea(monkeypatch, server, root).name == "gates_which_latents_fire_and_2"


# --- similar ideas ---


def test_the_same_idea_in_similar_words_is_found(root: Path):
    (other,) = new_idea.similar_ideas(new_idea.parse_answer(LEVELS), root)
    assert other.source == "the idea hierarchical_sae"
    assert "composition" in other.common_words
    assert new_idea.similar_ideas(new_idea.parse_answer(GATED), root) == []


def test_studies_and_notes_of_the_same_idea_are_found(root: Path):
    from agent.study.events import StudyStarted

    idea = new_idea.parse_answer(GATED)
    fields = {name: getattr(idea, name) for name in ("title", "description", "hypothesis", "primary_metric")}
    more = {"idea": "g", "smallest_effect": 0.005, "fixed": ideas.Fixed(), "evals": ("core",), "ground": "g"}
    started = StudyStarted(**fields, **more, max_runs=1)
    for place in ("runs/1_g", "notes/1_g", "notes/2_g", "runs/3_damaged"):
        (root / place).mkdir(parents=True)
    Ledger(root / "runs/1_g/events.jsonl").append(started)
    (root / "runs/3_damaged/events.jsonl").write_text("{}\n")
    for place in ("notes/1_g", "notes/2_g"):
        (root / place / "notes.txt").write_text(f"# Title\nA gate\n\n# Experiment description\n{idea.description}\n")
    similar = [(other.source, other.title) for other in new_idea.similar_ideas(idea, root)]
    assert sorted(similar) == [(f"the notes {root / 'notes/2_g/notes.txt'}", "A gate"), ("the study 1_g", idea.title)]
