"""The ledger: events.jsonl, a study's append-only event log, and the state derived from it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.ideas import Fixed
from agent.lab.errors import UserError
from agent.lab.verdicts import Verdict
from agent.proposers import Proposal


class BadLedger(UserError):
    """The ledger is damaged elsewhere than in a last line cut short by a crash."""


class _Event(BaseModel):
    """What happened. The ledger fills in the number and the time (UTC) when it records the event."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int = 0
    time: datetime = datetime.min.replace(tzinfo=UTC)


class StudyStarted(_Event):
    event: Literal["study_started"] = "study_started"
    idea: str
    title: str
    description: str
    hypothesis: str
    primary_metric: str
    smallest_effect: float
    fixed: Fixed
    max_runs: int
    run_timeout: float  # seconds


class ProposalMade(_Event):
    event: Literal["proposal_made"] = "proposal_made"
    run: int
    proposal: Proposal


class RunReserved(_Event):
    event: Literal["run_reserved"] = "run_reserved"
    run: int


class AttemptStarted(_Event):
    event: Literal["attempt_started"] = "attempt_started"
    run: int
    attempt: int


class AttemptEnded(_Event):
    event: Literal["attempt_ended"] = "attempt_ended"
    run: int
    attempt: int
    verdict: Verdict | None  # None: trained to its end, and awaits the evaluation
    seconds: float


class EvaluationEnded(_Event):
    event: Literal["evaluation_ended"] = "evaluation_ended"
    run: int
    attempt: int
    verdict: Verdict
    seconds: float


class RunCommitted(_Event):
    event: Literal["run_committed"] = "run_committed"
    run: int
    verdict: Verdict


class NotesWritten(_Event):
    event: Literal["notes_written"] = "notes_written"
    after_run: int


class StudyEnded(_Event):
    event: Literal["study_ended"] = "study_ended"
    why: str


Event = Annotated[
    StudyStarted
    | ProposalMade
    | RunReserved
    | AttemptStarted
    | AttemptEnded
    | EvaluationEnded
    | RunCommitted
    | NotesWritten
    | StudyEnded,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)

Stage = Literal["proposed", "reserved", "training", "evaluating", "done"]


@dataclass
class RunState:
    """How far a run has come. Run 0 is the baseline."""

    number: int
    proposal: Proposal
    stage: Stage = "proposed"
    attempt: int = 0
    verdict: Verdict | None = None


@dataclass
class State:
    """What a study's events add up to."""

    started: StudyStarted | None = None
    runs: list[RunState] = field(default_factory=list)
    ended: str | None = None  # what ended the study
    last_time: datetime | None = None

    @property
    def runs_used(self) -> int:
        """Runs reserved out of the budget; the baseline is not counted."""
        return sum(run.number > 0 and run.stage != "proposed" for run in self.runs)


def derive(events: Sequence[Event]) -> State:
    """The state of a study."""
    state = State()
    for event in events:
        _apply(state, event)
    return state


def _apply(state: State, event: Event) -> None:
    state.last_time = event.time
    match event:
        case StudyStarted():
            state.started = event
        case ProposalMade(run=number, proposal=proposal):
            state.runs.append(RunState(number, proposal))
        case RunReserved(run=number):
            state.runs[number].stage = "reserved"
        case AttemptStarted(run=number, attempt=attempt):
            state.runs[number].stage, state.runs[number].attempt = "training", attempt
        case AttemptEnded(run=number, verdict=None):
            state.runs[number].stage = "evaluating"
        case AttemptEnded(run=number, verdict=verdict) | EvaluationEnded(run=number, verdict=verdict):
            state.runs[number].verdict = verdict
        case RunCommitted(run=number, verdict=verdict):
            state.runs[number].stage, state.runs[number].verdict = "done", verdict
        case StudyEnded(why=why):
            state.ended = why


class Ledger:
    """Appends events to a file, each one on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the ledger; a torn last line is cut off. Raises BadLedger."""
        self.path = path
        self.events: list[Event] = read(path) if path.exists() else []
        self._file = path.open("ab")
        if path.stat().st_size:
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def append(self, event: Event) -> None:
        """Record what is about to be acted on, or what has just come out."""
        event = event.model_copy(update={"seq": len(self.events), "time": datetime.now(UTC)})
        self._file.write(event.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.events.append(event)

    @property
    def state(self) -> State:
        return derive(self.events)

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """The events of a ledger without its torn last line. Raises BadLedger, naming the line."""
    events: list[Event] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # after the last newline: torn, or nothing
        try:
            event = _EVENT.validate_json(line)
        except ValidationError as error:
            raise BadLedger(f"{path} line {number} is damaged: {error.errors()[0]['msg']}") from None
        if event.seq != number - 1:
            raise BadLedger(f"{path} line {number} is damaged: event {event.seq} stands where {number - 1} belongs")
        events.append(event)
    return events
