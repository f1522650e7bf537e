"""The state of one run, derived from its events."""

from dataclasses import dataclass, field
from typing import Literal

from agent.lab.results import Comparison, Work
from agent.lab.verdicts import Verdict
from agent.study.attempts import repeats_after_kill
from agent.study.event_kinds import RunEvent
from agent.study.events import (
    AttemptCutShort,
    AttemptEnded,
    AttemptStarted,
    EvaluationEnded,
    PreflightFailed,
    ProposalMade,
    RunCommitted,
    RunReserved,
)
from agent.study.records import Proposal

Stage = Literal["proposed", "reserved", "training", "evaluating", "judged", "done"]


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt at a run that another one followed."""

    proposal: Proposal
    verdict: Verdict


@dataclass
class RunState:
    """One run and the stage it has reached. Run 0 is the baseline."""

    number: int
    proposal: Proposal  # that of the newest attempt
    by_hand: bool = False  # made by a researcher, outside the budget
    stage: Stage = "proposed"
    reserved: bool = False
    attempt: int = 0  # number of the newest
    failed_attempts: dict[int, FailedAttempt] = field(default_factory=dict)  # by number, before the newest
    verdict: Verdict | None = None
    described: str | None = None  # by a language model, with placeholders for figures
    comparison: Comparison | None = None  # None too in ledgers whose runs' results hold it
    provisional: bool = False  # another comparison follows
    seconds: float = 0.0  # of its jobs, all attempts together
    training_seconds: float = 0.0  # of the newest attempt
    evaluation_seconds: float = 0.0
    work: Work | None = None  # of the newest attempt's training
    smoke: str = ""  # hash of the checkpoint that its first steps left; empty if it is not known
    resumes: bool = False  # it goes on from a saved state as if nothing had happened

    @property
    def counts(self) -> bool:
        """True if the run is done and its verdict is ok."""
        return self.stage == "done" and self.verdict is not None and self.verdict.ok

    @property
    def awaits_comparison(self) -> bool:
        """True if the run counts and has no final comparison."""
        return self.number > 0 and self.counts and (not self.comparison or self.provisional)


def advance(run: RunState, event: RunEvent) -> None:
    """Bring a run to the stage that an event of its own says."""
    match event:
        case ProposalMade(proposal=proposal):
            assert run.verdict
            run.failed_attempts[run.attempt] = FailedAttempt(run.proposal, run.verdict)
            run.proposal, run.stage, run.verdict = proposal, "proposed", None
        case PreflightFailed(attempt=attempt, verdict=verdict):
            run.stage, run.attempt, run.verdict = "judged", attempt, verdict
        case RunReserved():
            run.stage, run.reserved = "reserved", True
        case AttemptStarted(attempt=attempt):
            run.stage, run.attempt = "training", attempt
        case AttemptEnded(verdict=verdict):
            run.stage, run.verdict = "judged" if verdict else "evaluating", verdict
            run.training_seconds, run.work = event.seconds, event.work
            run.smoke, run.resumes = event.smoke, event.resumes
        case AttemptCutShort(attempt=attempt, verdict=verdict) if repeats_after_kill(attempt):
            run.stage, run.failed_attempts[attempt] = "reserved", FailedAttempt(run.proposal, verdict)
        case AttemptCutShort(verdict=verdict):
            run.stage, run.verdict = "judged", verdict
        case EvaluationEnded(verdict=verdict, seconds=seconds):
            run.stage, run.verdict, run.evaluation_seconds = "judged", verdict, seconds
        case RunCommitted(verdict=verdict):
            run.stage, run.verdict = "done", verdict
            run.reserved |= not run.by_hand  # also where no attempt came past preflight
