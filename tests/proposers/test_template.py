"""The template proposer: which step of a plan comes next, given the results of the earlier ones."""

from pathlib import Path
from typing import Any

import pytest
from builders import STARTED

from agent.ideas import Fixed, Idea
from agent.proposers.template import TemplateProposer
from agent.study.outcomes import StudyDone
from agent.study.run_state import RunState
from agent.study.state import State

FREE = {"title": "t", "description": "d", "why": "w", "predictions": {"l0": "same"}}


def step(name: str, needs: str | None = None, came_out: str = "down", metric: str = "ce_loss_score") -> dict[str, Any]:
    when = {"when": {"step": needs, "metric": metric, "came_out": came_out}} if needs else {}
    return FREE | {"name": name, "title": name.title(), **when}


@pytest.fixture
def proposer(tmp_path: Path) -> TemplateProposer:
    """Return a proposer of `weaker` only if `first` went down, `weakest` only if `weaker` did, `other` always."""
    (tmp_path / "ideas/mine").mkdir(parents=True)
    (tmp_path / "ideas/mine/experiment.py.j2").touch()
    plan = [step("first"), step("weaker", "first"), step("weakest", "weaker"), step("other")]
    fields = {"title": "t", "description": "d", "hypothesis": "h", "smallest_effect": 0.1, "plan": plan}
    idea = Idea.model_validate(fields | {"folder": tmp_path / "ideas/mine"})
    return TemplateProposer(idea, Fixed(), tmp_path)


def after(proposer: TemplateProposer, results: dict[str, Any], running: str | None = None, max_runs: int = 9):
    """Return what is proposed and skipped once the named steps have these results; None: no comparison."""
    proposals = {proposal.name: proposal for proposal in proposer.plan}
    state = State(STARTED, runs=[RunState(i, proposals[name], stage="done") for i, name in enumerate(results, 1)])
    if running:
        state.runs.append(RunState(len(state.runs) + 1, proposals[running], stage="training"))
    state.started = STARTED.model_copy(update={"max_runs": max_runs})

    def observed(name: str, metric: str):
        return results.get(name) if metric == "ce_loss_score" else None

    try:
        proposed = proposer.propose(state, observed, len(state.runs))
        name = proposed.name if proposed else "(waits)"
    except StudyDone:
        name = None
    return name, proposer.skipped(state, observed)


def test_a_step_is_not_skipped_before_its_condition_is_known(proposer: TemplateProposer):
    assert after(proposer, {}) == ("first", [])
    assert after(proposer, {}, running="first") == ("other", [])


def test_a_step_whose_condition_is_not_known_keeps_its_place_in_the_budget(proposer: TemplateProposer):
    assert after(proposer, {}, running="first", max_runs=4)[0] == "other"  # a run for each of the four
    assert after(proposer, {}, running="first", max_runs=3)[0] == "(waits)"
    assert after(proposer, {"first": "same"}, max_runs=2)[0] == "other"


def test_a_step_whose_condition_holds_is_proposed(proposer: TemplateProposer):
    assert after(proposer, {"first": "down"}) == ("weaker", [])
    assert after(proposer, {"first": "down", "weaker": "down"}) == ("weakest", [])
    assert after(proposer, {"first": "down", "weaker": "down", "weakest": "up", "other": None}) == (None, [])


def test_a_step_whose_condition_fails_is_skipped_with_all_that_depend_on_it(proposer: TemplateProposer):
    proposed, skipped = after(proposer, {"first": "same"})
    assert proposed == "other"
    assert skipped == [
        (
            "Weaker",
            "it is tried only if the CE-loss score of 'First' went down; it stayed within the noise of the baseline's",
        ),
        ("Weakest", "it needs a comparison of 'Weaker' with the baseline, and that was not tried"),
    ]


def test_a_failed_step_counts_as_tried_but_has_no_comparison(proposer: TemplateProposer):
    proposed, skipped = after(proposer, {"first": "down", "weaker": None})
    assert proposed == "other"
    assert skipped == [("Weakest", "it needs a comparison of 'Weaker' with the baseline, and there is none")]
