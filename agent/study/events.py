"""The events of a study's ledger. Names of events and fields are a file format: they do not change."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field

from agent.hypothesis import Rules
from agent.ideas import MOST_VARIANCE_LOST, Fixed
from agent.lab.architectures import Architecture
from agent.lab.results import Comparison, Expectation, Measure, Work
from agent.lab.verdicts import Verdict
from agent.lab.visible import Line, Prose
from agent.study.event_base import Digests, EventBase
from agent.study.records import Baseline, Confinement, LanguageModel, PlannedRun, Proposal, RateTry, TrackerName
from agent.study.reference_events import ReferenceImported, ReferenceScored


class _Event(EventBase, BaseModel):  # BaseModel once more, for ruff to know a model by
    pass


class StudyStarted(_Event):
    event: Literal["study_started"] = "study_started"
    idea: Line
    title: Line
    description: Prose
    hypothesis: Prose
    answer: Rules | None = None  # when it is supported or refuted; None: the idea has no rules
    measures: dict[Line, Measure] = {}  # the idea's own, by name; empty in older ledgers
    needs: dict[Line, Line] = {}  # what these need from a checkpoint -> what it is for; empty in older ledgers
    primary_metric: str
    smallest_effect: float
    most_variance_lost: float = MOST_VARIANCE_LOST  # explained variance that a run may lose and still be better
    fixed: Fixed
    evals: tuple[str, ...]  # evaluation families of every run
    left_out: dict[Line, Line] = {}  # families of the requested tier that cannot run here -> reason
    # Hash of what figures depend on apart from the experiment: lab code, model, package versions, device.
    fingerprint: str = Field(validation_alias=AliasChoices("ground", "fingerprint"), serialization_alias="ground")
    device: str | None = None  # None: the GPU if there is one
    max_runs: int
    max_hours: float | None = None
    run_timeout: float | None = None  # seconds for a training, its first steps, an evaluation; None: 5 times run 0's
    language_model: LanguageModel | None = None  # None: the idea's own plan
    jobs: int | None = None  # at once; None: one, as before they were kept
    slurm: dict[Line, Line] | None = None  # options of sbatch; None: jobs run on this machine
    approve: bool = False  # ask a person before each run
    trained_on: Line = ""  # the text, its documents and how often a training sees them; empty in older ledgers
    evaluated_on: dict[Line, Line] = {}  # family -> SAE-Bench's data, or why not; empty where all is local
    judging: str = ""  # hash of the code that compares and reports; empty in ledgers from before it was kept
    confinement: Confinement | None = None  # None: begun by a version that confined nothing
    tune: bool = False  # the baseline's learning rate, before the first run
    ks: tuple[float, ...] = ()  # at which a confirmed winner and the baseline are trained at the end
    references: tuple[Line, ...] = ()  # names of the SAEs from elsewhere that stand beside the baseline
    idea_folder: Line = ""  # where the user's own idea lay, of which the study keeps a copy; "": in templates/ideas
    digests: Digests = {}  # of that copy
    track: TrackerName | None = None  # what runs are logged with once they have ended


class StudyResumed(_Event):
    event: Literal["study_resumed"] = "study_resumed"
    pid: int
    host: str
    judging: str = ""  # as in study_started
    confinement: Confinement | None = None  # from here on


class SettingsChanged(_Event):
    """A person had the study go on with another language model or other limits. What is None stays as it was."""

    event: Literal["settings_changed"] = "settings_changed"
    max_runs: int | None = None
    max_hours: float | None = None
    model: Line | None = None  # its window is looked up by its name, and it has no prices but those given here
    max_tokens: int | None = None
    max_cost: float | None = None  # dollars
    prices: tuple[float, float] | None = None  # dollars per million tokens of input and of output
    track: TrackerName | None = None

    def applied(self, started: StudyStarted) -> StudyStarted:
        """Return the settings with which a study goes on that had those of `started`."""
        limits = self.model_dump(include={"max_runs", "max_hours", "track"}, exclude_none=True)
        own = self.model_dump(include={"model", "max_tokens", "max_cost", "prices"}, exclude_none=True)
        if self.model:
            own = {"window": None, "prices": None} | own
        if own and started.language_model:
            limits["language_model"] = started.language_model.model_copy(update=own)
        return started.model_copy(update=limits)


class RateTuned(_Event):
    """The learning rate of the baseline, and those that it was chosen from; found now or by an earlier study."""

    event: Literal["rate_tuned"] = "rate_tuned"
    rate: float
    tokens: int  # of each training that tried one
    tries: list[RateTry]
    judged_by: Literal["mean squared error", "loss"] = "mean squared error"
    seconds: float


class SentinelsScored(_Event):
    """The evaluator was tried on SAEs whose scores are known beforehand."""

    event: Literal["sentinels_scored"] = "sentinels_scored"
    expectations: list[Expectation]
    errors: dict[Line, Line] = {}  # evaluation family -> why it gave no result


class BaselineMeasured(_Event):
    """A baseline with another knob or seed, trained now or copied from the cache."""

    event: Literal["baseline_measured"] = "baseline_measured"
    baseline: Baseline  # without figures unless the verdict is ok
    verdict: Verdict
    errors: dict[Line, Line] = {}  # evaluation family -> why it gave no result
    seconds: float
    digests: Digests = {}  # empty too for a baseline that was not trained in this study


class ProposalMade(_Event):
    """A proposal for the next run, or for another attempt at a run that failed."""

    event: Literal["proposal_made"] = "proposal_made"
    run: int
    proposal: Proposal


class HandRunAdded(_Event):
    """A run that a researcher trained by hand and added to the study."""

    event: Literal["hand_run_added"] = "hand_run_added"
    run: int
    proposal: Proposal
    pid: int
    host: str
    judging: str = ""  # as in study_started


class PlanMade(_Event):
    """A language model's plan, made before the first run and revised after each."""

    event: Literal["plan_made"] = "plan_made"
    after_run: int
    runs: list[PlannedRun]  # empty: the model ended its plan
    reasoning: Prose = ""


class AnswerSentBack(_Event):
    """A refused answer of a language model, with the reason it is given."""

    event: Literal["answer_sent_back"] = "answer_sent_back"
    purpose: Literal["plan", "proposal", "description", "conclusion"]
    answer: Prose
    why: Prose
    prose: bool = False  # refused for placeholders that stand for nothing; in 0.1.0 for claims in words


class ArtefactsRecorded(_Event):
    """Files of the cache that runs are judged by, as they were when the study came to rely on them."""

    event: Literal["artefacts_recorded"] = "artefacts_recorded"
    digests: dict[str, str]  # path in the cache -> SHA-256


class JobSubmitted(_Event):
    """A job is about to be handed to the executor: a training with its evaluation, or an evaluation alone."""

    event: Literal["job_submitted"] = "job_submitted"
    job: Line  # see job_names.py


class JobQueued(_Event):
    """The executor took a job that goes on if the driver ends."""

    event: Literal["job_queued"] = "job_queued"
    job: Line
    id: Line


class JobLost(_Event):
    """A job ended and left no outcome, and is submitted again when its turn comes."""

    event: Literal["job_lost"] = "job_lost"
    job: Line
    why: Line
    rows: int = 0  # of activations that its training had read at its saved state, from which it goes on; 0: anew


class RunDescribed(_Event):
    """A language model's description of a run whose result is known, with placeholders for figures."""

    event: Literal["run_described"] = "run_described"
    run: int
    text: Prose


class ConclusionDrawn(_Event):
    """What a language model concludes when a study is through, with placeholders for figures."""

    event: Literal["conclusion_drawn"] = "conclusion_drawn"
    after_run: int
    text: Prose  # empty: it said nothing that could be used
    next: Prose = ""  # what it would try next


class PreflightFailed(_Event):
    event: Literal["preflight_failed"] = "preflight_failed"
    run: int
    attempt: int
    verdict: Verdict
    seconds: float
    digests: Digests = {}


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
    verdict: Verdict | None  # None: trained to its end, to be evaluated next
    seconds: float
    work: Work | None = None
    smoke: Line = ""  # hash of the checkpoint that its first steps left; empty in older ledgers
    resumes: bool = False  # cut short, its first steps went on from a saved state as if nothing had happened
    digests: Digests = {}


class AttemptCutShort(_Event):
    """The driver ended before the attempt did; see attempts.repeats_after_kill."""

    event: Literal["attempt_cut_short"] = "attempt_cut_short"
    run: int
    attempt: int
    verdict: Verdict
    digests: Digests = {}


class EvaluationEnded(_Event):
    event: Literal["evaluation_ended"] = "evaluation_ended"
    run: int
    attempt: int
    verdict: Verdict
    seconds: float
    digests: Digests = {}  # final_info.json is without the comparison, which follows


class ReplicateEnded(_Event):
    """A fresh seed of a run that looked better than the baseline."""

    event: Literal["replicate_ended"] = "replicate_ended"
    run: int
    seed: int
    comparison: Comparison
    seconds: float
    digests: Digests = {}


class ScoredOnTest(_Event):
    """The figures on the test split of a run, of one of its fresh seeds, or a baseline (run 0 with knob and seed)."""

    event: Literal["test_scored"] = "test_scored"
    run: int
    k: float | None = None
    seed: int | None = None
    figures: dict[str, float | None]
    why_not: Line = ""  # the reason if there are no figures

    def named(self, baseline: Architecture) -> str:
        """Say what was scored, given the kind of the study's baseline."""
        if self.k is not None and self.seed is not None:
            return f"the {baseline.baseline_with(self.k, self.seed)}"
        return f"run {self.run}" + (f" with fresh seed {self.seed}" if self.seed is not None else "")


class FeaturesKept(_Event):
    """A run's latents were looked at, or could not be; no verdict depends on it."""

    event: Literal["features_kept"] = "features_kept"
    run: int
    error: Line = ""  # the reason if there are none
    seconds: float = 0.0
    digests: Digests = {}


class FrontScored(_Event):
    """A confirmed winner trained again at another K, beside the baseline there. No verdict depends on it."""

    event: Literal["front_scored"] = "front_scored"
    run: int
    k: float
    figures: dict[str, float | None] = {}  # on the development split
    why_not: Line = ""  # the reason if there are none
    seconds: float = 0.0
    digests: Digests = {}


class RunCompared(_Event):
    """A run that counts, beside the baseline at its own L0."""

    event: Literal["run_compared"] = "run_compared"
    run: int
    comparison: Comparison
    provisional: bool = False  # made before the noise was measured; another one follows


class RunCommitted(_Event):
    event: Literal["run_committed"] = "run_committed"
    run: int
    verdict: Verdict
    digests: Digests = {}


class RecordsLost(_Event):
    """Recorded files were changed and could not be put back; nothing is judged by them any more."""

    event: Literal["records_lost"] = "records_lost"
    paths: list[str]  # in the study's directory


class RunTracked(_Event):
    """A run was logged with the study's tracker."""

    event: Literal["run_tracked"] = "run_tracked"
    run: int
    outcome: Line  # as it stood then


class NotesWritten(_Event):
    event: Literal["notes_written"] = "notes_written"
    after_run: int


class StudyInterrupted(_Event):
    event: Literal["study_interrupted"] = "study_interrupted"
    why: Line = ""  # empty: a person did it


class StudyEnded(_Event):
    event: Literal["study_ended"] = "study_ended"
    why: Line


Remark = PlanMade | AnswerSentBack | RunDescribed | ConclusionDrawn  # what a proposer may record apart from proposals

Event = Annotated[
    StudyStarted
    | StudyResumed
    | SettingsChanged
    | RateTuned
    | SentinelsScored
    | BaselineMeasured
    | PlanMade
    | AnswerSentBack
    | ProposalMade
    | HandRunAdded
    | PreflightFailed
    | RunReserved
    | AttemptStarted
    | AttemptEnded
    | AttemptCutShort
    | EvaluationEnded
    | RunCommitted
    | RecordsLost
    | ArtefactsRecorded
    | JobSubmitted
    | JobQueued
    | JobLost
    | RunDescribed
    | ConclusionDrawn
    | RunCompared
    | ReplicateEnded
    | ScoredOnTest
    | FeaturesKept
    | FrontScored
    | ReferenceImported
    | ReferenceScored
    | RunTracked
    | NotesWritten
    | StudyInterrupted
    | StudyEnded,
    Field(discriminator="event"),
]
