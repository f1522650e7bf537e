"""How a run or a study ends early: exceptions that carry the verdict, or the reason."""

from dataclasses import dataclass

from agent.lab.verdicts import Verdict


@dataclass(frozen=True)
class StudyResult:
    """How a study ended, and the exit code that says so."""

    reason: str
    exit_code: int


class RunFailed(Exception):
    """A run that does not count; `verdict` names the failure and its evidence."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{verdict.name}: {verdict.evidence}")
        self.verdict = verdict


class EvaluationStopped(RunFailed):
    """An evaluation that was ended from outside, or by what a user can mend: another try may succeed."""


class StudyPaused(Exception):
    """The study stops where it is, for `reason`, and `agent resume` continues it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StudyDone(Exception):
    """Nothing more is tried in this study, for `reason`. What runs is taken in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HoursSpent(StudyDone):
    """The hours of the study allow no further job."""


class StudyOver(StudyDone):
    """The study ends at once, as no run can count: what runs is ended."""
