"""What a comparison needs is made within the study's budgets."""

from pathlib import Path

import pytest
from builders import OK, SECOND, STARTED

from agent.comparison.baselines import Baselines
from agent.comparison.referee import Referee
from agent.display.live import PlainDisplay
from agent.running.job_queue import JobQueue
from agent.running.jobs import Setup
from agent.running.local import LocalSlots
from agent.study.custody import driver_custody
from agent.study.events import AttemptEnded, AttemptStarted, EvaluationEnded, Event, RunCommitted
from agent.study.ledger import Ledger
from agent.study.outcomes import HoursSpent
from agent.study.workspace import Study


def test_sentinels_that_the_hours_do_not_allow_are_not_tried(tmp_path: Path, cache_dir: Path):
    study, started = Study(tmp_path / "study", tmp_path / "notes"), STARTED.model_copy(update={"max_hours": 0.001})
    study.directory.mkdir()
    baseline: list[Event] = [
        *(started, *SECOND[1:3]),
        AttemptStarted(run=0, attempt=1),
        AttemptEnded(run=0, attempt=1, verdict=None, seconds=3),
        EvaluationEnded(run=0, attempt=1, verdict=OK, seconds=1),
        RunCommitted(run=0, verdict=OK),
    ]
    ledger = Ledger(study.ledger)
    for event in baseline:
        ledger.append(event)
    folders = {"artefacts": cache_dir / "evaluation/small", "activations": cache_dir / "activations/small"}
    custody, display = driver_custody(study, ledger, folders), PlainDisplay()
    setup = study.directory / "setup.json"
    about = {"fixed": started.fixed, "evals": started.evals, "device": None, "kind": "none"}
    Setup(study=study.directory, artefacts=folders["artefacts"], **about).write(setup)
    queue = JobQueue(study, ledger, display, LocalSlots(setup, 1, []), 1)
    referee = Referee(study, ledger, queue, custody, display, Baselines(study, started, custody, display))
    with pytest.raises(HoursSpent, match=r"the budget of 0\.001 hours does not allow another run: "):
        referee.start_next()
    assert ledger.state.sentinels is None
    assert not queue.names
