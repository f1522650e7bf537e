"""Kinds of events: what they are about, and what they carry."""

from agent.study.events import (
    AttemptCutShort,
    AttemptEnded,
    AttemptStarted,
    BaselineMeasured,
    EvaluationEnded,
    FeaturesKept,
    FrontScored,
    HandRunAdded,
    PreflightFailed,
    ProposalMade,
    RateTuned,
    ReplicateEnded,
    RunCommitted,
    RunCompared,
    RunDescribed,
    RunReserved,
    RunTracked,
    ScoredOnTest,
    StudyStarted,
)
from agent.study.reference_events import ReferenceImported, ReferenceScored

RunEvent = (
    ProposalMade
    | PreflightFailed
    | RunReserved
    | AttemptStarted
    | AttemptEnded
    | AttemptCutShort
    | EvaluationEnded
    | RunCommitted
)

DigestEvent = (
    StudyStarted
    | BaselineMeasured
    | PreflightFailed
    | AttemptEnded
    | AttemptCutShort
    | EvaluationEnded
    | ReplicateEnded
    | RunCommitted
    | FeaturesKept
    | FrontScored
    | ReferenceImported
    | ReferenceScored
)

TimedEvent = (
    PreflightFailed
    | AttemptEnded
    | EvaluationEnded
    | BaselineMeasured
    | ReplicateEnded
    | FeaturesKept
    | RateTuned
    | FrontScored
    | ReferenceScored
)
AboutRun = (
    RunEvent
    | HandRunAdded
    | RunDescribed
    | ReplicateEnded
    | ScoredOnTest
    | RunCompared
    | RunTracked
    | FeaturesKept
    | FrontScored
)
