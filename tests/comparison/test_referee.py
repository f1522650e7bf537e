"""What a comparison needs is made within the study's budgets."""

from pathlib import Path

import pytest
from builders import OK, SECOND, STARTED

from agent.comparison.baselines import Baselines
from agent.comparison.referee import Referee
from agent.display.live import PlainDisplay
from agent.running.sandbox import UNCONFINED
from agent.running.workers import Workers
from agent.study.custody import driver_custody
from agent.study.events import AttemptEnded, AttemptStarted, EvaluationEnded, Event, RunCommitted
from agent.study.ledger import Ledger
from agent.study.outcomes import StudyDone
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
    custody = driver_custody(study, ledger, folders)
    with Workers(study, started, PlainDisplay(), custody, UNCONFINED) as workers:
        referee = Referee(study, ledger, Baselines(study, started, workers), workers)
        with pytest.raises(StudyDone, match=r"the budget of 0\.001 hours does not allow another run: "):
            referee.prepare()
    assert ledger.state.sentinels is None
