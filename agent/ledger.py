"""The ledger: events.jsonl, a study's append-only event log, and the state derived from it."""

import errno
import os
import time
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
    elapsed: float = 0.0  # seconds since this driver opened the ledger, of a clock that stops while the machine sleeps


class StudyStarted(_Event):
    event: Literal["study_started"] = "study_started"
    idea: str
    title: str
    description: str
    hypothesis: str
    primary_metric: str
    smallest_effect: float
    fixed: Fixed
    device: str | None = None  # None: the GPU when there is one
    max_runs: int
    max_hours: float | None = None
    run_timeout: float | None = None  # seconds for a training, and for an evaluation; None: from the baseline's


class StudyResumed(_Event):
    event: Literal["study_resumed"] = "study_resumed"
    pid: int
    host: str


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


class AttemptCutShort(_Event):
    """The driver ended before the attempt did: the run is tried again while it has attempts left."""

    event: Literal["attempt_cut_short"] = "attempt_cut_short"
    run: int
    attempt: int
    verdict: Verdict


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


class StudyInterrupted(_Event):
    event: Literal["study_interrupted"] = "study_interrupted"


class StudyEnded(_Event):
    event: Literal["study_ended"] = "study_ended"
    why: str


Event = Annotated[
    StudyStarted
    | StudyResumed
    | ProposalMade
    | RunReserved
    | AttemptStarted
    | AttemptEnded
    | AttemptCutShort
    | EvaluationEnded
    | RunCommitted
    | NotesWritten
    | StudyInterrupted
    | StudyEnded,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)

ATTEMPTS = 4  # tries at a run before it counts as one that failed

Stage = Literal["proposed", "reserved", "training", "evaluating", "judged", "done"]


@dataclass
class RunState:
    """How far a run has come. Run 0 is the baseline."""

    number: int
    proposal: Proposal
    stage: Stage = "proposed"
    attempt: int = 0  # the newest one
    failed_attempts: dict[int, Verdict] = field(default_factory=dict)  # those before it that were tried again
    verdict: Verdict | None = None
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass
class State:
    """What a study's events add up to."""

    started: StudyStarted | None = None
    runs: list[RunState] = field(default_factory=list)
    interrupted: bool = False
    ended: str | None = None  # what ended the study
    noted: bool = False  # whether the notes say all of this
    last_time: datetime | None = None
    seconds: float = 0.0  # of work on the study, up to its last event
    seconds_before: float = 0.0  # what of them was spent by earlier drivers

    @property
    def finished(self) -> bool:
        """Whether the study ended by itself, and its notes say so."""
        return self.ended is not None and self.noted

    @property
    def runs_used(self) -> int:
        """Runs reserved out of the budget; the baseline is not counted."""
        return sum(run.number > 0 and run.stage != "proposed" for run in self.runs)


def derive(events: Sequence[Event]) -> State:
    """The state of a study."""
    state = State()
    for event in events:
        _account(state, event)
        _apply(state, event)
    return state


def _account(state: State, event: Event) -> None:
    if isinstance(event, StudyResumed):
        state.seconds_before = state.seconds
    state.seconds = state.seconds_before + event.elapsed
    state.last_time = event.time
    state.noted = isinstance(event, NotesWritten)


def _apply(state: State, event: Event) -> None:
    match event:
        case StudyStarted():
            state.started = event
        case StudyInterrupted():
            state.interrupted = True
        case StudyResumed():
            state.interrupted, state.ended = False, None
        case StudyEnded(why=why):
            state.ended = why
        case ProposalMade(run=number, proposal=proposal):
            state.runs.append(RunState(number, proposal))
        case NotesWritten():
            pass
        case _:
            _advance(state.runs[event.run], event)


def _advance(
    run: RunState, event: RunReserved | AttemptStarted | AttemptEnded | AttemptCutShort | EvaluationEnded | RunCommitted
) -> None:
    match event:
        case RunReserved():
            run.stage = "reserved"
        case AttemptStarted(attempt=attempt):
            run.stage, run.attempt = "training", attempt
        case AttemptEnded(verdict=verdict, seconds=seconds):
            run.stage = "judged" if verdict else "evaluating"
            run.verdict, run.training_seconds = verdict, seconds
        case AttemptCutShort(attempt=attempt, verdict=verdict) if attempt < ATTEMPTS:
            run.stage, run.failed_attempts[attempt] = "reserved", verdict
        case AttemptCutShort(verdict=verdict):
            run.stage, run.verdict = "judged", verdict
        case EvaluationEnded(verdict=verdict, seconds=seconds):
            run.stage, run.verdict, run.evaluation_seconds = "judged", verdict, seconds
        case RunCommitted(verdict=verdict):
            run.stage, run.verdict = "done", verdict


class Ledger:
    """Appends events to a file, each one on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the ledger; a torn last line is cut off. Raises BadLedger."""
        self.path = path
        self._opened = time.monotonic()
        self._file = path.open("ab", buffering=0)
        self.reload()

    def reload(self) -> None:
        """Take over what is on the disk: an interruption may have come between writing an event and noting it here."""
        self.events: list[Event] = read(self.path)
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)

    def append(self, event: Event) -> None:
        """Record what is about to be acted on, or what has just come out."""
        stamp = {"seq": len(self.events), "time": datetime.now(UTC), "elapsed": round(self._elapsed, 3)}
        event = event.model_copy(update=stamp)
        line = event.model_dump_json().encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file.fileno())
        self.events.append(event)

    @property
    def state(self) -> State:
        return derive(self.events)

    @property
    def seconds(self) -> float:
        """Work on the study until now, that of earlier drivers included as far as they recorded it."""
        return self.state.seconds_before + self._elapsed

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._opened

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
