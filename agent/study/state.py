"""The state of a study, derived from its events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agent.lab.results import Comparison, Expectation
from agent.lab.verdicts import Verdict
from agent.study import job_names
from agent.study.attempts import repeats_after_kill
from agent.study.event_kinds import AboutRun, DigestEvent, TimedEvent
from agent.study.events import (
    AnswerSentBack,
    ArtefactsRecorded,
    AttemptCutShort,
    AttemptEnded,
    BaselineMeasured,
    ConclusionDrawn,
    EvaluationEnded,
    Event,
    FeaturesKept,
    FrontScored,
    HandRunAdded,
    JobLost,
    JobQueued,
    JobSubmitted,
    NotesWritten,
    PlanMade,
    PreflightFailed,
    ProposalMade,
    RateTuned,
    RecordsLost,
    ReplicateEnded,
    RunCompared,
    RunDescribed,
    RunTracked,
    ScoredOnTest,
    SentinelsScored,
    SettingsChanged,
    StudyEnded,
    StudyInterrupted,
    StudyResumed,
    StudyStarted,
)
from agent.study.records import Baseline, Confinement, Reference
from agent.study.reference_events import ReferenceImported, ReferenceScored
from agent.study.run_state import RunState, advance


@dataclass
class State:
    """Everything that follows from a study's events."""

    started: StudyStarted  # with the settings that were changed since
    began: StudyStarted = field(init=False)
    changes: list[tuple[int, SettingsChanged]] = field(default_factory=list)  # each with the first run it holds for
    confinements: list[Confinement] = field(default_factory=list)  # each until the next
    rate: RateTuned | None = None  # None: not tuned, or not yet
    sentinels: list[Expectation] | None = None
    sentinel_errors: dict[str, str] = field(default_factory=dict)  # evaluation family -> why it gave no result
    baselines: list[Baseline] = field(default_factory=list)
    baselines_tried: dict[tuple[float, int], Verdict] = field(default_factory=dict)  # by knob and seed
    baseline_errors: dict[tuple[float, int], dict[str, str]] = field(default_factory=dict)  # likewise: family -> reason
    plan: PlanMade | None = None  # the language model's newest
    plans: list[PlanMade] = field(default_factory=list)  # all of them
    conclusion: ConclusionDrawn | None = None  # the language model's newest
    sent_back: list[AnswerSentBack] = field(default_factory=list)  # since the last accepted answer
    runs: list[RunState] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)  # name of each that was submitted and not taken in -> its id
    losses: dict[str, int] = field(default_factory=dict)  # name of a job -> how often it was lost, and starts anew
    saved_rows: dict[str, int] = field(default_factory=dict)  # name of a job that was lost -> where it goes on from
    replicates: dict[int, dict[int, Comparison]] = field(default_factory=dict)  # run -> seed -> its comparison
    tested: dict[int, ScoredOnTest] = field(default_factory=dict)  # by run
    front: dict[tuple[int, float], FrontScored] = field(default_factory=dict)  # by run and K
    references: dict[str, Reference] = field(default_factory=dict)  # by name, in the order in which they were given
    references_scored: dict[str, ReferenceScored] = field(default_factory=dict)  # by name
    features: dict[int, FeaturesKept] = field(default_factory=dict)  # by run
    tracked: dict[int, str] = field(default_factory=dict)  # outcome with which a run was logged, by run
    digests: dict[str, str] = field(default_factory=dict)  # path in the study's directory -> SHA-256
    lost: set[str] = field(default_factory=set)  # recorded files that were changed and could not be put back
    artefacts: dict[str, str] | None = None  # path in the cache -> SHA-256; None until they are recorded
    judging: set[str] = field(default_factory=set)  # hashes of the code that compared and reported, each driver's
    tested_seeds: dict[int, dict[int, ScoredOnTest]] = field(default_factory=dict)  # run -> fresh seed
    tested_baselines: dict[tuple[float, int], ScoredOnTest] = field(default_factory=dict)  # by knob and seed
    interrupted: datetime | None = None  # None once it was resumed
    interrupted_by: str = ""  # the reason; empty: a person
    ended: str | None = None  # the reason
    noted: bool = False  # the notes are up to date
    last_time: datetime | None = None
    seconds: float = 0.0  # of work on the study, up to its last event
    seconds_before: float = 0.0  # those spent by earlier drivers
    job_seconds: float = 0.0  # of trainings and evaluations, which overlap
    jobs_timed: int = 0  # jobs that these are of

    def __post_init__(self) -> None:
        self.began = self.started

    @property
    def learning_rate(self) -> float | None:
        """The baseline's learning rate if the study has tuned it, else None: the model's own."""
        return self.rate.rate if self.rate else None

    @property
    def open_runs(self) -> list[RunState]:
        """Runs that are not done."""
        return [run for run in self.runs if run.stage != "done"]

    @property
    def finished(self) -> bool:
        """True if the study ended by itself and its notes are up to date."""
        return self.ended is not None and self.noted

    @property
    def runs_used(self) -> int:
        """Number of runs reserved from the budget, without the baseline and runs made by hand."""
        return sum(run.number > 0 and run.reserved for run in self.runs)

    @property
    def runs_begun(self) -> int:
        """Number of runs that were proposed, each of which is or will be reserved from the budget."""
        return sum(run.number > 0 and not run.by_hand for run in self.runs)

    @property
    def test_uses(self) -> int:
        """Number of SAEs that were scored on the test split."""
        return len(self.tested) + sum(map(len, self.tested_seeds.values())) + len(self.tested_baselines)

    @property
    def broken(self) -> list[Expectation]:
        """Expectations about the sentinels that the evaluation did not meet."""
        return [expectation for expectation in self.sentinels or [] if not expectation.held]


def derive(events: Sequence[Event]) -> State:
    """Return the state of a study from its events, the first of which is study_started. Raise ValueError otherwise,
    or if an event does not fit those before it.
    """
    if not events or not isinstance(events[0], StudyStarted):
        raise ValueError("a study's first event is study_started")
    state = State(events[0])
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: Event) -> None:
    """Take the next event into a state. Raise ValueError if it does not fit those before it."""
    _require_known_run(state, event)
    _account(state, event)
    _record_digests(state, event)
    _apply(state, event)
    state.jobs.pop(_job_of(event), None)
    if not isinstance(event, JobLost):
        state.saved_rows.pop(_job_of(event), None)


def _require_known_run(state: State, event: Event) -> None:
    """Raise ValueError if an event is about a run that there is not, or proposes one anew that has not failed."""
    if not isinstance(event, AboutRun):
        return
    count = len(state.runs)
    if not (0 <= event.run < count or (event.run == count and isinstance(event, ProposalMade | HandRunAdded))):
        raise ValueError(f"event {event.seq} is about run {event.run}, and there are {count} runs")
    if not isinstance(event, ProposalMade | HandRunAdded):
        return
    if event.run < count and (isinstance(event, HandRunAdded) or state.runs[event.run].verdict is None):
        raise ValueError(f"event {event.seq} proposes run {event.run} again, which has not failed")
    if not 0 <= event.proposal.start <= max(0, event.run - 1):
        raise ValueError(f"event {event.seq} starts run {event.run} from run {event.proposal.start}")


def _account(state: State, event: Event) -> None:
    if isinstance(event, ArtefactsRecorded | RecordsLost):
        return  # the time until it belongs to what follows
    if isinstance(event, StudyResumed | HandRunAdded):
        state.seconds_before = state.seconds
    if isinstance(event, StudyStarted | StudyResumed | HandRunAdded) and event.judging:
        state.judging.add(event.judging)
    state.seconds = state.seconds_before + event.elapsed
    if isinstance(event, PreflightFailed | AttemptEnded | EvaluationEnded):
        state.runs[event.run].seconds += event.seconds
    if isinstance(event, TimedEvent):
        state.job_seconds += event.seconds
        alone = EvaluationEnded | FeaturesKept | RateTuned | ReferenceScored  # without a training and its evaluation
        state.jobs_timed += bool(event.seconds) and not isinstance(event, alone)
    state.last_time = event.time
    state.noted = isinstance(event, NotesWritten)
    if isinstance(event, PlanMade | ProposalMade | RunDescribed | ConclusionDrawn):
        state.sent_back = []
    if isinstance(event, StudyStarted | StudyResumed) and event.confinement not in (None, *state.confinements[-1:]):
        state.confinements.append(event.confinement)


def _record_digests(state: State, event: Event) -> None:
    """Note what files were recorded as; those of an attempt that another one follows under the name it is kept by."""
    if isinstance(event, DigestEvent):
        state.digests |= event.digests
        state.lost -= event.digests.keys()
    if isinstance(event, RecordsLost):
        state.lost.update(event.paths)
        state.digests = {path: digest for path, digest in state.digests.items() if path not in state.lost}
    match event:
        case ArtefactsRecorded(digests=digests):
            state.artefacts = (state.artefacts or {}) | digests
        case ProposalMade(run=number) if number < len(state.runs):
            _move_digests(state, number, state.runs[number].attempt)
        case AttemptCutShort(run=number, attempt=attempt) if repeats_after_kill(attempt):
            _move_digests(state, number, attempt)


def _move_digests(state: State, run: int, attempt: int) -> None:
    old, new = f"run_{run}/", f"run_{run}_attempt_{attempt}/"
    moved = {path: new + path.removeprefix(old) for path in state.digests if path.startswith(old)}
    state.digests = {moved.get(path, path): digest for path, digest in state.digests.items()}


def _apply(state: State, event: Event) -> None:
    match event:
        case StudyInterrupted(why=why):
            state.interrupted, state.interrupted_by = event.time, why
        case StudyResumed():
            state.interrupted, state.ended = None, None
        case SettingsChanged():
            _change_settings(state, event)
        case StudyEnded(why=why):
            state.ended, state.saved_rows = why, {}
        case RateTuned(tries=tries):
            state.rate = event
            for tried in tries:
                state.jobs.pop(job_names.rate(tried.rate), None)
        case SentinelsScored(expectations=expectations, errors=errors):
            state.sentinels, state.sentinel_errors = expectations, errors
        case BaselineMeasured(baseline=baseline, verdict=verdict, errors=errors):
            state.baselines_tried[baseline.k, baseline.seed] = verdict
            state.baseline_errors[baseline.k, baseline.seed] = errors
            if verdict.ok:
                state.baselines = sorted([*state.baselines, baseline], key=lambda each: (each.k, each.seed))
        case PlanMade():
            state.plan = event
            state.plans.append(event)
        case ConclusionDrawn():
            state.conclusion = event
        case AnswerSentBack():
            state.sent_back.append(event)
        case RunDescribed(run=number, text=text):
            state.runs[number].described = text
        case ProposalMade(run=number, proposal=proposal) if number == len(state.runs):
            state.runs.append(RunState(number, proposal))
        case HandRunAdded(run=number, proposal=proposal):
            state.ended = None  # until the run is through
            state.runs.append(RunState(number, proposal, by_hand=True, stage="evaluating", attempt=1))
        case ReplicateEnded(run=number, seed=seed, comparison=comparison):
            by_seed = state.replicates.get(number, {}) | {seed: comparison}
            state.replicates[number] = dict(sorted(by_seed.items()))  # not as they came, so that sums are the same
        case ScoredOnTest(k=float(k), seed=int(seed)):
            state.tested_baselines[k, seed] = event
        case ScoredOnTest(run=number, seed=int(seed)):
            state.tested_seeds.setdefault(number, {})[seed] = event
        case ScoredOnTest(run=number):
            state.tested[number] = event
        case RunCompared(run=number, comparison=comparison, provisional=provisional):
            state.runs[number].comparison, state.runs[number].provisional = comparison, provisional
        case RunTracked(run=number, outcome=outcome):
            state.tracked[number] = outcome
        case FeaturesKept(run=number):
            state.features[number] = event
        case FrontScored(run=number, k=k):
            state.front[number, k] = event
        case ReferenceImported(reference=reference):
            state.references[reference.name] = reference
        case ReferenceScored(name=name):
            state.references_scored[name] = event
        case JobSubmitted(job=name):
            state.jobs[name] = ""
        case JobQueued(job=name, id=number):
            state.jobs[name] = number
        case JobLost(job=name, rows=rows):
            if rows:
                state.saved_rows[name] = rows
            else:
                state.losses[name] = state.losses.get(name, 0) + 1
                state.saved_rows.pop(name, None)
            _withdraw(state, name)
        case StudyStarted() | NotesWritten() | RecordsLost() | ArtefactsRecorded():
            pass
        case _:
            advance(state.runs[event.run], event)


def _change_settings(state: State, event: SettingsChanged) -> None:
    """Go on with other settings. A plan that its language model had ended is asked for again, and another model has
    had no answer sent back."""
    state.started = event.applied(state.started)
    state.changes.append((len(state.runs), event))
    if state.plan and not state.plan.runs and (event.max_runs or event.model):
        state.plan = None
    if event.model:
        state.sent_back = []


def _withdraw(state: State, name: str) -> None:
    """Take back the start of an attempt whose job never was one."""
    for run in state.runs:
        if run.stage == "training" and name == job_names.attempt(run.number, run.attempt):
            run.stage, run.attempt = "reserved", run.attempt - 1


def _job_of(event: Event) -> str:
    """Return the name of the job whose outcome an event takes in, or an empty string."""
    match event:
        case PreflightFailed() | AttemptEnded() | AttemptCutShort():
            return job_names.attempt(event.run, event.attempt)
        case EvaluationEnded():
            return job_names.evaluation(event.run)
        case BaselineMeasured(baseline=baseline):
            return job_names.baseline(baseline.k, baseline.seed)
        case ReplicateEnded():
            return job_names.fresh_seed(event.run, event.seed)
        case ScoredOnTest():
            return job_names.on_test_split(event.run, event.k, event.seed)
        case FeaturesKept():
            return job_names.features(event.run)
        case FrontScored():
            return job_names.at_k(event.run, event.k)
        case ReferenceScored():
            return job_names.reference(event.name)
        case SentinelsScored():
            return job_names.SENTINELS
        case JobLost():
            return event.job
    return ""
