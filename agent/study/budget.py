"""What a study may spend: runs, hours, and seconds for each process. All of it follows from the ledger.

A run is reserved before it starts, so a kill never gives one away. Hours are those the drivers recorded: what a killed
driver spent after its last event is unknown.
"""

from dataclasses import dataclass

from agent.study.outcomes import HoursSpent, StudyDone
from agent.study.state import State

UNKNOWN_SECONDS = 3600.0  # for a training, or for one family of an evaluation, until the baseline has been timed
START_SECONDS = 900.0  # until a training takes its first step, likewise
LEAST_SECONDS = 300.0
TIMES_BASELINE = 5.0  # an edit may make training slower, but not by any factor


@dataclass(frozen=True)
class Budget:
    """The limits of a study in `state`, after `seconds` of work on it."""

    state: State
    seconds: float

    def require_run(self) -> None:
        """Raise StudyDone unless another run is allowed beside those that were proposed."""
        runs = self.state.started.max_runs
        if self.state.runs_begun >= runs:
            raise StudyDone(f"the budget of {runs} run{'s' * (runs > 1)} is spent")
        self.require_hours()

    def require_hours(self) -> None:
        """Raise StudyDone unless the hours allow a training and its evaluation as long as the longest so far."""
        hours, longest = self.state.started.max_hours, self._longest_run
        if not self.allows_hours:
            raise HoursSpent(
                f"the budget of {hours:g} hours does not allow another run: {self.seconds / 3600:.3g} are spent, "
                f"and the longest run took {longest / 3600:.3g}"
            )

    @property
    def allows_hours(self) -> bool:
        """True if the hours allow a training and its evaluation as long as the longest so far."""
        hours = self.state.started.max_hours
        return hours is None or self.seconds + self._longest_run <= hours * 3600

    def require_evaluation(self) -> None:
        """Raise StudyDone unless the hours allow an evaluation as long as the baseline's."""
        if not self.allows_evaluation:
            hours = self.state.started.max_hours
            raise HoursSpent(f"the budget of {hours:g} hours does not allow another evaluation")

    @property
    def allows_evaluation(self) -> bool:
        """True if the hours allow an evaluation as long as the baseline's."""
        hours, seconds = self.state.started.max_hours, self.state.runs[0].evaluation_seconds
        return hours is None or self.seconds + seconds <= hours * 3600

    @property
    def training_timeout(self) -> float:
        """Seconds that the next training may take."""
        seconds = self.state.runs[0].training_seconds if self.state.runs else 0.0  # none: a learning rate is tried
        return self._timeout(seconds, UNKNOWN_SECONDS)

    @property
    def smoke_timeout(self) -> float:
        """Seconds that the next smoke test may take from its first step: run 0's says what this machine needs."""
        work = self.state.runs[0].work
        return self._timeout(work.smoke_seconds if work else 0.0, UNKNOWN_SECONDS)

    @property
    def start_timeout(self) -> float:
        """Seconds until the next smoke test must have taken its first step: run 0's says what this machine needs."""
        work = self.state.runs[0].work
        seconds = work.smoke_seconds if work else 0.0
        return max(LEAST_SECONDS, TIMES_BASELINE * seconds) if seconds else START_SECONDS

    @property
    def evaluation_timeout(self) -> float:
        """Seconds that the next evaluation may take."""
        unknown = UNKNOWN_SECONDS * len(self.state.started.evals)
        return self._timeout(self.state.runs[0].evaluation_seconds, unknown)

    def _timeout(self, baseline_seconds: float, unknown: float) -> float:
        fitted = max(LEAST_SECONDS, TIMES_BASELINE * baseline_seconds) if baseline_seconds else unknown
        limit = self.state.started.run_timeout or fitted
        if self.state.started.max_hours is None:
            return limit
        return min(limit, max(1.0, self.state.started.max_hours * 3600 - self.seconds))

    @property
    def _longest_run(self) -> float:
        """Seconds of the longest run so far; a baseline from the cache counts as if it had been trained."""
        return max(
            (max(run.seconds, run.training_seconds + run.evaluation_seconds) for run in self.state.runs), default=0.0
        )
