"""Notes are true at any moment: what is unfinished is said to be, and nothing that failed reads as a result."""

from pathlib import Path

import pytest

from agent import notes
from agent.ideas import Fixed
from agent.lab.results import Core, FinalInfo
from agent.lab.verdicts import Verdict
from agent.ledger import (
    AttemptStarted,
    Event,
    ProposalMade,
    RunCommitted,
    RunReserved,
    StudyEnded,
    StudyStarted,
    derive,
)
from agent.proposers import Proposal
from agent.study import Run

BASELINE = Proposal(name="baseline", title="Baseline", description="d", why="w", predictions={}, source="")
CHANGE = BASELINE.model_copy(
    update={"name": "c", "title": "A change", "predictions": {"ce_loss_score": "up", "l0": "same"}}
)
STARTED = StudyStarted(
    idea="mine",
    title="My idea",
    description="What it is.",
    hypothesis="It helps.",
    primary_metric="ce_loss_score",
    smallest_effect=0.005,
    fixed=Fixed(),
    max_runs=1,
    run_timeout=60,
)
OK = Verdict(name="ok", evidence="sound")
FIRST: list[Event] = [STARTED, ProposalMade(run=0, proposal=BASELINE), RunReserved(run=0)]
SECOND: list[Event] = [
    *FIRST,
    RunCommitted(run=0, verdict=OK),
    ProposalMade(run=1, proposal=CHANGE),
    RunReserved(run=1),
]


def scored(l0: float | None, score: float | None) -> FinalInfo:
    core = dict.fromkeys(Core.model_fields, 0.8) | {"l0": l0, "ce_loss_score": score, "tokens": 10}
    return FinalInfo(verdict=OK, core=Core.model_validate(core))


def rendered(events: list[Event], *infos: FinalInfo | None) -> str:
    state = derive(events)
    runs = [Run(run, Path("nowhere"), info) for run, info in zip(state.runs, infos, strict=True)]
    return notes.render(state, runs, [])


def section(text: str, number: int) -> str:
    return text.split(f"## Run {number}: ")[1].split("\n\n")[0]


def test_before_any_run_has_ended():
    text = rendered([*FIRST, AttemptStarted(run=0, attempt=1)], None)
    assert text.startswith("# Title\nMy idea\n\n# Experiment description\nWhat it is.\n\nHypothesis: It helps.\n")
    assert "Results: none yet" in section(text, 0)
    assert "training)" in section(text, 0)
    assert "No plots: no run has anything to show yet." in text
    assert "The study had not ended at " in text


def test_an_unfinished_run_shows_its_prediction_and_no_result():
    text = section(rendered(SECOND, scored(16.0, 0.95), None), 1)
    assert "Results: none yet" in text
    assert "Predicted before the run: ce_loss_score up, l0 same." in text
    assert "difference" not in text


def test_an_outcome_stands_beside_its_prediction():
    text = section(rendered([*SECOND, RunCommitted(run=1, verdict=OK)], scored(16.0, 0.95), scored(16.2, 0.9433)), 1)
    assert "Results: {'l0': 16.2, 'explained_variance_centered': 0.8, 'ce_loss_score': 0.9433," in text
    assert "- CE-loss score: predicted up; 0.9433, baseline 0.9500, difference from baseline -0.0067 (one seed" in text
    assert "- L0 16.20, baseline 16.00 (+1.2%): within 5%." in text


@pytest.mark.parametrize(("l0", "matched"), [(15.3, True), (16.7, True), (15.1, False), (16.9, False)])
def test_runs_of_another_sparsity_are_said_to_be(l0: float, matched: bool):
    text = rendered([*SECOND, RunCommitted(run=1, verdict=OK)], scored(16.0, 0.95), scored(l0, 0.95))
    assert ("not at matched sparsity" in text) is not matched


def test_what_was_not_measured_is_said_to_be():
    text = section(rendered([*SECOND, RunCommitted(run=1, verdict=OK)], scored(16.0, 0.95), scored(None, None)), 1)
    assert "- CE-loss score: predicted up; not measured in this run" in text
    assert "L0 was not measured in both runs" in text


def test_a_run_that_does_not_count_has_no_results_even_where_it_was_measured():
    verdict = Verdict(name="not_comparable", evidence="d_sae is 512")
    info = scored(16.0, 0.99).model_copy(update={"verdict": verdict})
    text = section(rendered([*SECOND, RunCommitted(run=1, verdict=verdict)], scored(16.0, 0.95), info), 1)
    assert "Results: none\nVerdict: not_comparable (d_sae is 512). This run does not count." in text
    assert "0.99" not in text


def test_no_claim_is_made_without_noise():
    events = [*SECOND, RunCommitted(run=1, verdict=OK), StudyEnded(why="the budget of 1 run is spent")]
    text = rendered(events, scored(16.0, 0.95), scored(16.0, 0.99))
    assert "The noise between seeds was not measured" in text
    assert not {"better", "worse", "improved", "improves"} & set(text.lower().split())
    assert text.endswith("# End\nThe study ended: the budget of 1 run is spent.\n")
