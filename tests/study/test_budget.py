"""Budgets follow from the ledger: what is spent, and how long the next process may take."""

from itertools import chain
from typing import Any

import pytest
from builders import OK, PROPOSAL, STARTED

from agent.lab.results import Work
from agent.study.budget import Budget
from agent.study.events import (
    AttemptEnded,
    AttemptStarted,
    EvaluationEnded,
    Event,
    ProposalMade,
    RunCommitted,
    RunReserved,
)
from agent.study.outcomes import StudyDone
from agent.study.state import State, derive

WORK = Work(rows=1000, cpu_seconds=1, machine="one")


def run(number: int, training: float, evaluation: float) -> list[Event]:
    return [
        ProposalMade(run=number, proposal=PROPOSAL),
        RunReserved(run=number),
        AttemptStarted(run=number, attempt=1),
        AttemptEnded(run=number, attempt=1, verdict=None, seconds=training),
        EvaluationEnded(run=number, attempt=1, verdict=OK, seconds=evaluation),
        RunCommitted(run=number, verdict=OK),
    ]


def study(*runs: list[Event], **limits: object) -> State:
    return derive([STARTED.model_copy(update={"run_timeout": None, **limits}), *chain(*runs)])


def test_the_baseline_costs_no_run_and_a_reserved_run_does():
    Budget(study(run(0, 1, 1)), 10).require_run()
    reserved = [ProposalMade(run=1, proposal=PROPOSAL), RunReserved(run=1)]
    with pytest.raises(StudyDone, match="the budget of 1 run is spent"):
        Budget(study(run(0, 1, 1), reserved), 10).require_run()


def test_no_run_starts_that_would_exceed_the_hours():
    state = study(run(0, 900, 100), max_runs=9, max_hours=1)
    Budget(state, 2600).require_run()
    with pytest.raises(StudyDone) as done:
        Budget(state, 2610).require_run()
    assert done.value.reason == (
        "the budget of 1 hours does not allow another run: 0.725 are spent, and the longest run took 0.278"
    )


@pytest.mark.parametrize(
    ("state", "evaluating", "seconds"),
    [
        (study(run(0, 100, 20)[:3]), False, 3600),
        (study(run(0, 100, 20)), False, 500),
        (study(run(0, 100, 20)), True, 300),
        (study(run(0, 100, 20)[:4], evals=("core", "tpp")), True, 2 * 3600),
        (study(run(0, 100, 20), run_timeout=7), False, 7),
        (study(run(0, 100, 20), max_hours=0.5), False, 500),
        (study(run(0, 100, 20), max_hours=0.1), False, 160),
        (study(run(0, 100, 20), max_hours=0.01), False, 1),
    ],
)
def test_the_time_a_process_may_take(state: State, evaluating: bool, seconds: float):
    budget = Budget(state, 200)
    assert (budget.evaluation_timeout if evaluating else budget.training_timeout) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("smoke", "limits", "seconds"),
    [(0.0, {}, 3600), (12.0, {}, 300), (90.0, {}, 450), (90.0, {"run_timeout": 7}, 7)],
)
def test_the_first_steps_may_take_as_long_as_the_baselines_say(smoke: float, limits: dict[str, Any], seconds: float):
    ended = AttemptEnded(
        run=0, attempt=1, verdict=None, seconds=100, work=WORK.model_copy(update={"smoke_seconds": smoke})
    )
    budget = Budget(study([*run(0, 100, 20)[:3], ended], **limits), 200)
    assert budget.smoke_timeout == seconds
    assert budget.start_timeout == (max(300, 5 * smoke) if smoke else 900)  # imports take what they take
