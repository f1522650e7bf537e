"""`agent studies`: a line for each study."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.comparison.judgement import judgements
from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.hypothesis import Outcome
from agent.lab.files import BadFile
from agent.lab.locks import Busy, lock_now
from agent.lab.visible import one_line
from agent.study.custody import changed_records
from agent.study.state import State
from agent.study.workspace import Study, find_study

COLUMNS = ("study", "idea", "model", "runs", "best outcome", "state", "age")
BEST_FIRST: tuple[Outcome, ...] = (
    *("better", "untested", "unconfirmed", "not upheld", "not confirmed", "not better", "within noise", "negligible"),
    *("worse", "not comparable"),
)


def print_studies(root: Path) -> None:
    """Print all studies under `root`/runs, the newest first, and below them those that cannot be read."""
    console, rows, broken = make_console(LONGEST_LINE), [], []
    for directory in sorted((root / "runs").glob("*/"), reverse=True):
        try:
            if found := find_study(directory):
                rows.append(_row(*found))
        except BadFile as error:
            broken.append(f"{directory.name} cannot be read: {one_line(str(error))}")
    if rows:
        print_table(console, COLUMNS, rows)
    elif not broken:
        console.print(f"no study in {root / 'runs'}: start one with `agent run`", soft_wrap=True)
    for line in broken:
        console.print(line, style="red", soft_wrap=True)


def _row(study: Study, state: State) -> tuple[str, ...]:
    started = state.started
    runs = f"{state.runs_used} of {started.max_runs}"
    age = _age(datetime.now(UTC) - started.time)
    model = Path(started.fixed.model).name
    return study.name, started.idea, model, runs, _best_outcome(study, state), _state(study, state), age


def _best_outcome(study: Study, state: State) -> str:
    """Return the best outcome of a run on the primary metric, and which run has it."""
    try:
        runs = study.load_runs(state, hidden=changed_records(study, state))
    except BadFile:
        return "results cannot be read"
    outcomes = {number: judged.outcome for number, judged in judgements(runs, state).items()}
    if not outcomes:
        return "-"
    best = min(outcomes, key=lambda number: BEST_FIRST.index(outcomes[number]))
    return f"{outcomes[best]} (run {best})"


def _state(study: Study, state: State) -> str:
    if state.ended:
        return "ended"
    try:
        with lock_now(study.directory / "lock"):
            return "interrupted" if state.interrupted else "not ended"
    except (Busy, OSError):
        return "running"


def _age(age: timedelta) -> str:
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= seconds:
            return f"{age.total_seconds() // seconds:.0f} {unit}"
    return "now"
