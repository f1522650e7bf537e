"""What a study may spend: runs, hours, and seconds a process. All of it follows from the ledger.

A run is reserved before it starts, so that a kill never gives one away. Hours are those of the drivers' own clocks, as
far as they were recorded: what a killed driver spent after its last event is not known.
"""

from agent.study.state import RunState, State

SECONDS_UNKNOWN = 3600.0  # for a training, or for one family of an evaluation, before the baseline has shown it
SECONDS_LEAST = 300.0
TIMES_BASELINE = 5.0  # an edit may make training slower, but not by any factor


def spent(state: State, seconds: float) -> str | None:
    """Which budget does not allow another run, after `seconds` of work on the study; None while all do."""
    assert state.started
    runs = state.started.max_runs
    if state.runs_used >= runs:
        return f"the budget of {runs} run{'s' * (runs > 1)} is spent"
    return hours_spent(state, seconds)


def hours_spent(state: State, seconds: float) -> str | None:
    """Why the hours do not allow another training and its evaluation; None while they do."""
    assert state.started
    hours = state.started.max_hours
    if hours is None or seconds + _longest(state.runs) <= hours * 3600:
        return None
    return (
        f"the budget of {hours:g} hours does not allow another run: {seconds / 3600:.3g} are spent, "
        f"and the longest run took {_longest(state.runs) / 3600:.3g}"
    )


def timeout(state: State, seconds: float, evaluating: bool) -> float:
    """Seconds the next process may take, a training or an evaluation, after `seconds` of work on the study."""
    assert state.started
    limit = state.started.run_timeout or _fitted(state.runs[0], evaluating, len(state.started.evals))
    if state.started.max_hours is None:
        return limit
    return min(limit, max(1.0, state.started.max_hours * 3600 - seconds))


def _fitted(baseline: RunState, evaluating: bool, families: int) -> float:
    took = baseline.evaluation_seconds if evaluating else baseline.training_seconds
    unknown = SECONDS_UNKNOWN * (families if evaluating else 1)
    return max(SECONDS_LEAST, TIMES_BASELINE * took) if took else unknown


def _longest(runs: list[RunState]) -> float:
    """Seconds of the longest run so far; a baseline from the cache counts as if it had been trained."""
    return max((max(run.seconds, run.training_seconds + run.evaluation_seconds) for run in runs), default=0.0)
