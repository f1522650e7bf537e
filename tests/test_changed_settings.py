"""`agent resume` with another language model or larger limits: recorded, said in the notes, and gone on with."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from scripted_server import Answer, Request, ScriptedServer, answer
from standin import Checkout, make_checkout

from agent.audit import audit
from agent.study.events import SettingsChanged

pytestmark = pytest.mark.slow

PREDICTIONS = "ce_loss_score: same\nl0: same\nexplained_variance_centered: same\nloss_added: same\nalive_fraction: same"
ENDED = "## Reasoning\nNothing is worth its cost.\n\n## Plan\nALL_COMPLETED"


def plan(start: str) -> str:
    return f"## Reasoning\nTo see.\n\n## Plan\n1. [from {start}] Another behaviour: to see."


def edit(old: str, new: str) -> str:
    search, replace = (f'BEHAVIOUR = "{behaviour}"' for behaviour in (old, new))
    return (
        f"## Reasoning\nTo see.\n\n## Description\nThe behaviour is another one.\n\n## Predictions\n{PREDICTIONS}\n"
        f"probing_auc_5: same\n\n## Edits\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"
    )


CONCLUSION = "## Conclusion\nThe behaviour is another one.\n\n## Next\nA third."


def paragraph(run: int) -> str:
    return f"## Findings\nIts L0 is {{{{run_{run}.l0}}}}."


@pytest.fixture(scope="module")
def of_the_plan(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study of an idea's own plan that has spent its budget of one run."""
    checkout = make_checkout(tmp_path_factory.mktemp("template"))
    checkout.plan("fine.1", "fine.2", "fine.3")
    assert checkout.run(1).returncode == 0
    return checkout


@pytest.fixture(scope="module")
def of_a_model(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study whose language model ended its plan after one run of two."""
    checkout = make_checkout(tmp_path_factory.mktemp("model"))
    checkout.plan("fine")
    script = [plan("baseline"), edit("sound", "fine.1"), paragraph(1), ENDED, CONCLUSION]
    limits = ("--llm", "first", "--max-cost", "1", "--price-in", "1", "--price-out", "2", "--llm-window", "100000")
    ended, _ = answered(checkout, script, "run", "--idea", "stand_in", "--max-runs", "2", *limits)
    assert ended.returncode == 0, ended.stderr
    assert checkout.state.ended == "the model ended its plan (ALL_COMPLETED) after 1 of at most 2 runs"
    return checkout


def answered(
    checkout: Checkout, script: Sequence[Answer], *arguments: str
) -> "tuple[subprocess.CompletedProcess[str], list[Request]]":
    """Start `agent` beside a server with these answers; return how it ended, and what was asked."""
    with ScriptedServer(*script) as server:
        return checkout.agent(*arguments, **server.environment), server.requests


def resume(checkout: Checkout, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return checkout.agent("resume", str(checkout.study.directory), *options, **environment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-runs 0", "--max-runs"),
        ("--max-hours 0", "--max-hours 0: give a number of hours above 0"),
        ("--llm m", "--llm: {study} follows the idea's own plan: start a study with agent run --idea stand_in --llm"),
        ("--max-cost 1", "--max-cost: {study} follows the idea's own plan"),
    ],
)
def test_what_a_study_of_a_plan_cannot_go_on_with(of_the_plan: Checkout, options: str, message: str):
    assert_refused(of_the_plan, options, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--llm=", "--llm is empty"),
        ("--llm other", "--max-cost needs the model's prices: give --price-in and --price-out"),
        ("--max-cost 2 --price-in 1", "--price-in and --price-out go together"),
    ],
)
def test_what_a_study_of_a_model_cannot_go_on_with(of_a_model: Checkout, options: str, message: str):
    assert_refused(of_a_model, options, message)


def assert_refused(checkout: Checkout, options: str, message: str) -> None:
    before = checkout.study.ledger.read_bytes()
    ended = resume(checkout, *options.split(), OPENAI_API_KEY="unused")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message.format(study=checkout.study.name) in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert checkout.study.ledger.read_bytes() == before


def test_more_runs_of_a_plan(of_the_plan: Checkout):
    unchanged = resume(of_the_plan, "--max-runs", "1")
    assert "has ended: the budget of 1 run is spent" in unchanged.stdout, "nothing was to change"
    ended = resume(of_the_plan, "--max-runs", "2", "--max-hours", "2.5")
    assert ended.returncode == 0, ended.stderr
    (change,) = (event for event in of_the_plan.events if isinstance(event, SettingsChanged))
    assert (change.max_runs, change.max_hours, change.model, change.max_cost) == (2, 2.5, None, None)
    state = of_the_plan.state
    assert [run.proposal.title for run in state.runs[1:]] == ["Step 1 that is fine.1", "Step 2 that is fine.2"]
    assert (state.ended, state.began.max_runs) == ("the budget of 2 runs is spent", 1)
    assert "From run 2 on: at most 2 runs, at most 2.5 hours." in of_the_plan.notes
    assert_supported(of_the_plan)
    assert_refused(of_the_plan, "--max-runs 1", "--max-runs 1 is fewer than {study} has begun: give 2 or more")


def test_another_model_is_asked_for_a_plan_of_its_own(of_a_model: Checkout):
    prices = ("--price-in", "1", "--price-out", "2")  # as those of the model before
    script = [plan("run 1"), edit("fine.1", "fine.2"), paragraph(2), CONCLUSION]
    ended, requests = answered(of_a_model, script, "resume", str(of_a_model.study.directory), "--llm", "other", *prices)
    assert ended.returncode == 0, ended.stderr
    assert [request.body["model"] for request in requests] == ["other"] * 4
    state = of_a_model.state
    assert state.ended == "the budget of 2 runs is spent"
    model = state.started.language_model
    assert model
    assert (model.model, model.max_cost, model.prices, model.window) == ("other", 1, (1, 2), None)
    assert "by the language model first, from run 2 on other; figures" in of_a_model.notes
    assert "From run 2 on: the language model other, prices of $1 and $2 per million tokens" in of_a_model.notes

    script = [plan("run 2"), edit("fine.2", "fine.3"), paragraph(3), ENDED, CONCLUSION]
    ended, requests = answered(of_a_model, script, "resume", str(of_a_model.study.directory), "--max-runs", "4")
    assert ended.returncode == 0, ended.stderr
    assert "2 of 4 runs are left to start." in requests[0].text
    assert of_a_model.state.ended == "the model ended its plan (ALL_COMPLETED) after 3 of at most 4 runs"
    assert_supported(of_a_model)
    assert of_a_model.agent("review", str(of_a_model.study.directory)).returncode == 0
    page = (of_a_model.study.notes / "review.html").read_text()
    assert "first, from run 2 on other" in page
    assert "From run 3 on: at most 4 runs." in page


def test_a_larger_budget_of_tokens(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    script = [answer(plan("baseline"), tokens=(19_900, 50))]
    ended, _ = answered(
        checkout, script, "run", "--idea", "stand_in", "--max-runs", "1", "--llm", "m", "--max-llm-tokens", "20000"
    )
    assert ended.returncode == 1
    assert "the model's budget is spent" in (checkout.state.ended or "")
    script = [edit("sound", "fine.1"), paragraph(1), CONCLUSION]
    ended, requests = answered(checkout, script, "resume", str(checkout.study.directory), "--max-llm-tokens", "100000")
    assert ended.returncode == 0, ended.stderr
    assert len(requests) == 3, "the plan stands"
    assert "From run 1 on: at most 100,000 tokens of the model." in checkout.notes


def assert_supported(checkout: Checkout) -> None:
    findings = audit.findings(audit.read(checkout.study.notes / "notes.txt"))
    assert [str(finding) for finding in findings if finding.status != "supported"] == []
