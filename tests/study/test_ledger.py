"""The ledger survives a crash in mid-line, and says where any other damage is."""

import os
from pathlib import Path

import pytest
from builders import PROPOSAL, STARTED

from agent.lab.files import BadFile
from agent.lab.verdicts import Verdict
from agent.study.attempts import ATTEMPTS
from agent.study.events import (
    AttemptCutShort,
    AttemptEnded,
    AttemptStarted,
    EvaluationEnded,
    Event,
    HandRunAdded,
    LanguageModel,
    PlanMade,
    PreflightFailed,
    ProposalMade,
    RunCommitted,
    RunReserved,
    SettingsChanged,
    StudyEnded,
    StudyInterrupted,
    StudyResumed,
)
from agent.study.ledger import BadLedger, Ledger, read
from agent.study.state import derive
from agent.study.workspace import find_study

OK = Verdict(name="ok", evidence="sound")
NAN = Verdict(name="nan", evidence="loss was not finite at step 3")
KILLED = Verdict(name="killed", evidence="the driver ended while training")

OTHER = ProposalMade(run=1, proposal=PROPOSAL.model_copy(update={"name": "q"}))


def cut_short(attempt: int) -> Event:
    return AttemptCutShort(run=1, attempt=attempt, verdict=KILLED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "events.jsonl")
    ledger.append(ProposalMade(run=0, proposal=PROPOSAL))
    ledger.append(RunReserved(run=0))
    ledger.append(AttemptStarted(run=0, attempt=1))
    return ledger.path


def test_events_come_back_as_they_were_recorded(path: Path):
    proposed, reserved, started = read(path)
    assert isinstance(proposed, ProposalMade)
    assert proposed.proposal == PROPOSAL
    assert [event.seq for event in (proposed, reserved, started)] == [0, 1, 2]
    assert proposed.time <= reserved.time <= started.time


@pytest.mark.parametrize("torn", [b'{"seq":3,"time":"2026-', b'{"seq":3}', b"\xff\xfe"])
def test_a_torn_last_line_is_dropped_and_the_next_event_stands_alone(path: Path, torn: bytes):
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read(path)) == 3
    ledger = Ledger(path)
    assert path.read_bytes() == whole
    ledger.append(StudyEnded(why="done"))
    assert [event.event for event in read(path)][-1] == "study_ended"


@pytest.mark.parametrize("damaged", ["", "{}", "not json", '{"event": "unheard_of", "seq": 1}'])
def test_any_other_damage_names_the_line(path: Path, damaged: str):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damaged, lines[2], ""]))
    with pytest.raises(BadLedger, match=r"events\.jsonl line 2 is not as it was recorded"):
        read(path)


def test_an_edited_line_is_noticed(path: Path):
    path.write_text(path.read_text().replace('"attempt":1', '"attempt":2'))
    with pytest.raises(BadLedger, match="line 3 is not as it was recorded"):
        read(path)


def test_a_line_taken_out_is_noticed(path: Path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2], ""]))
    with pytest.raises(BadLedger, match="line 2 is not as it was recorded, or a line before it is missing"):
        read(path)


@pytest.mark.parametrize("damage", ["edited", "removed", "linked"])
def test_what_was_changed_behind_the_drivers_back_is_put_back(path: Path, damage: str, tmp_path: Path):
    ledger, whole = Ledger(path), path.read_bytes()
    assert not ledger.restore()
    path.unlink()
    if damage == "edited":
        path.write_bytes(whole.replace(b'"attempt":1', b'"attempt":2'))
    elif damage == "linked":
        (tmp_path / "elsewhere").write_bytes(whole + b"more")
        path.symlink_to(tmp_path / "elsewhere")
    assert ledger.restore()
    assert not path.is_symlink()
    assert path.read_bytes() == whole
    ledger.append(StudyEnded(why="done"))
    assert [event.event for event in read(path)][-1] == "study_ended"
    assert path.with_suffix(".tampered").exists() == (damage != "removed")


@pytest.mark.parametrize(
    ("events", "stage", "verdict", "used"),
    [
        ([], "proposed", None, 0),
        ([RunReserved(run=1)], "reserved", None, 1),
        ([RunReserved(run=1), AttemptStarted(run=1, attempt=1)], "training", None, 1),
        ([RunReserved(run=1), AttemptEnded(run=1, attempt=1, verdict=None, seconds=1)], "evaluating", None, 1),
        ([RunReserved(run=1), AttemptEnded(run=1, attempt=1, verdict=NAN, seconds=1)], "judged", NAN, 1),
        ([RunReserved(run=1), EvaluationEnded(run=1, attempt=1, verdict=OK, seconds=1)], "judged", OK, 1),
        ([RunReserved(run=1), cut_short(1)], "reserved", None, 1),
        ([RunReserved(run=1), *map(cut_short, range(1, ATTEMPTS + 1))], "judged", KILLED, 1),
        ([RunReserved(run=1), RunCommitted(run=1, verdict=OK)], "done", OK, 1),
        ([PreflightFailed(run=1, attempt=1, verdict=NAN, seconds=1)], "judged", NAN, 0),
        ([PreflightFailed(run=1, attempt=1, verdict=NAN, seconds=1), OTHER], "proposed", None, 0),
        ([PreflightFailed(run=1, attempt=4, verdict=NAN, seconds=1), RunCommitted(run=1, verdict=NAN)], "done", NAN, 1),
        ([RunReserved(run=1), AttemptEnded(run=1, attempt=1, verdict=NAN, seconds=1), OTHER], "proposed", None, 1),
    ],
)
def test_the_state_follows_from_the_events(events: list[Event], stage: str, verdict: Verdict | None, used: int):
    baseline = [ProposalMade(run=0, proposal=PROPOSAL), RunReserved(run=0), RunCommitted(run=0, verdict=OK)]
    state = derive([STARTED, *baseline, ProposalMade(run=1, proposal=PROPOSAL), *events])
    assert (state.runs[1].stage, state.runs[1].verdict, state.runs_used) == (stage, verdict, used)
    assert state.ended is None


def test_a_failed_attempt_is_remembered_with_its_proposal():
    state = derive(
        [
            STARTED,
            ProposalMade(run=0, proposal=PROPOSAL),
            RunCommitted(run=0, verdict=OK),
            ProposalMade(run=1, proposal=PROPOSAL),
            PreflightFailed(run=1, attempt=1, verdict=NAN, seconds=1),
            OTHER,
        ]
    )
    assert state.runs[1].proposal.name == "q"
    assert (state.runs[1].failed_attempts[1].proposal, state.runs[1].failed_attempts[1].verdict) == (PROPOSAL, NAN)


def test_a_run_by_hand_costs_nothing_of_the_budget():
    baseline = [ProposalMade(run=0, proposal=PROPOSAL), RunReserved(run=0), RunCommitted(run=0, verdict=OK)]
    by_hand = HandRunAdded(run=1, proposal=PROPOSAL, pid=1, host="here", elapsed=0.0)
    assert derive([STARTED, *baseline, by_hand]).runs[1].stage == "evaluating"
    assert derive([STARTED, *baseline, by_hand, RunCommitted(run=1, verdict=OK)]).runs_used == 0


def test_a_study_that_is_resumed_has_not_ended_and_spends_from_where_it_was():
    events = [
        StudyEnded(why="done", elapsed=50.0),
        StudyResumed(pid=1, host="here", elapsed=0.5),
        StudyInterrupted(elapsed=7.0),
    ]
    states = [derive([STARTED, *events[:count]]) for count in (1, 2, 3)]
    assert [state.ended for state in states] == ["done", None, None]
    assert [state.interrupted is not None for state in states] == [False, False, True]
    assert [state.seconds for state in states] == [50.0, 50.5, 57.0]


def test_changed_settings_hold_from_there_on_and_an_ended_plan_is_asked_for_again():
    model = LanguageModel(model="first", max_tokens=9, prices=(1, 2), window=100)
    started = STARTED.model_copy(update={"language_model": model, "max_runs": 1})
    before = [started, ProposalMade(run=0, proposal=PROPOSAL), PlanMade(after_run=0, runs=[])]
    hours = derive([*before, SettingsChanged(max_hours=2.0)])
    assert (hours.started.max_hours, hours.started.max_runs, hours.started.language_model) == (2.0, 1, model)
    assert hours.plan, "hours are not why the model ended it"
    state = derive([*before, SettingsChanged(max_runs=3), SettingsChanged(model="second", max_cost=0.5)])
    assert (state.began, state.started.max_runs, state.plan) == (started, 3, None)
    assert state.started.language_model == LanguageModel(model="second", max_tokens=9, max_cost=0.5)
    assert [run for run, _ in state.changes] == [1, 1]


def test_a_recorded_change_of_settings_is_read_as_it_was_written(tmp_path: Path):
    ledger = Ledger(tmp_path / "events.jsonl")
    ledger.append(SettingsChanged(max_runs=8, model="other", prices=(1, 2)))
    line = ledger.path.read_text()
    assert '"event":"settings_changed","max_runs":8,"max_hours":null,"model":"other","max_tokens":null' in line
    assert read(ledger.path) == ledger.events


def test_an_interruption_between_writing_an_event_and_noting_it_costs_no_event(path: Path):
    ledger = Ledger(path)
    other = Ledger(path)
    other.append(RunReserved(run=0))
    ledger.reload()
    ledger.append(StudyEnded(why="done"))
    assert [event.seq for event in read(path)] == [0, 1, 2, 3, 4]


def test_events_of_no_study_add_up_to_nothing():
    with pytest.raises(ValueError, match="first event is study_started"):
        derive([RunReserved(run=0)])


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_whatever_an_experiment_puts_in_the_place_of_the_ledger_is_kept_aside(path: Path, tmp_path: Path, kind: str):
    ledger, recorded, outside = Ledger(path), path.read_bytes(), tmp_path / "outside"
    outside.write_text("untouched")
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(outside), "directory": path.mkdir}[kind]()
    path.with_suffix(".tampered").mkdir()
    with pytest.raises(BadFile, match="not a regular file"):
        ledger.append(StudyEnded(why="done"))
    assert ledger.restore()
    assert path.read_bytes() == recorded
    assert outside.read_text() == "untouched"


def test_a_ledger_that_was_deleted_is_put_back_before_anything_is_added(path: Path):
    ledger = Ledger(path)
    path.unlink()
    ledger.reload()
    ledger.append(StudyEnded(why="interrupted"))
    assert [event.event for event in read(path)] == ["proposal_made", "run_reserved", "attempt_started", "study_ended"]


@pytest.mark.parametrize(
    "event",
    [
        RunCommitted(run=1, verdict=OK),
        RunCommitted(run=-1, verdict=OK),
        RunCommitted(run=10**30, verdict=OK),
        ProposalMade(run=2, proposal=PROPOSAL),
        ProposalMade(run=0, proposal=PROPOSAL),
        ProposalMade(run=1, proposal=PROPOSAL.model_copy(update={"start": 7})),
        HandRunAdded(run=0, proposal=PROPOSAL, pid=1, host="here"),
    ],
    ids=lambda event: f"{event.event} {event.run}",
)
def test_an_event_that_does_not_fit_those_before_it_is_damage(tmp_path: Path, event: Event):
    study = tmp_path / "runs/study"
    study.mkdir(parents=True)
    ledger = Ledger(study / "events.jsonl")
    ledger.append(STARTED)
    ledger.append(ProposalMade(run=0, proposal=PROPOSAL))
    assert find_study(study)
    ledger.append(event)
    with pytest.raises(BadLedger, match=r"events.jsonl is damaged: event 2 "):
        find_study(study)
