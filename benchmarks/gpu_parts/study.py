"""The main job: a study of one run on tiny-lm, with nothing cached."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gpu_parts.table import Row

from agent.study import ledger
from agent.study.events import AttemptEnded, BaselineMeasured, Event, RunCommitted, RunCompared, StudyEnded

ROOT = Path(__file__).resolve().parents[2]
IDEA = "hierarchical_sae"
REHEARSAL_SECONDS = 20
LOOK_EVERY = 1.0


def measure(rehearse: bool) -> Iterator[Row]:
    """Run the study, or its first seconds, and yield what its ledger says, also if it is stopped before its end."""
    started = datetime.now(UTC)
    command = [sys.executable, "-m", "agent", "run", "--idea", IDEA, "--max-runs", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    until = time.monotonic() + (REHEARSAL_SECONDS if rehearse else 1e6)
    told: list[Row] = []
    while True:
        running = process.poll() is None
        if running and time.monotonic() > until:
            process.terminate()
        rows = rows_of(events_since(started), started)
        yield from rows[len(told) :]
        told = rows
        if not running:
            break
        time.sleep(LOOK_EVERY)
    seconds = (datetime.now(UTC) - started).total_seconds()
    yield Row("agent run, from its start to its exit", f"{seconds:.0f} s", f"exit code {process.returncode}")


def events_since(started: datetime) -> list[Event]:
    """Return the events of the study that began after a time, none if it has not begun."""
    for path in sorted(ROOT.glob(f"runs/*_{IDEA}*/events.jsonl"), reverse=True):
        events = ledger.read(path)
        if events and events[0].time >= started:
            return events
    return []


def rows_of(events: Sequence[Event], started: datetime) -> list[Row]:
    """Return a row for each event that tells how far the study is, with the seconds since a time."""
    return [
        Row(what, f"after {(event.time - started).total_seconds():.0f} s", note)
        for event in events
        for what, note in [_told(event)]
        if what
    ]


def _told(event: Event) -> tuple[str, str]:
    match event:
        case BaselineMeasured():
            baseline = event.baseline
            return f"baseline, K {baseline.k}, seed {baseline.seed}", f"{event.verdict.name}, {event.seconds:.0f} s"
        case AttemptEnded():
            verdict = event.verdict.name if event.verdict else "trained"
            return f"run {event.run}, attempt {event.attempt}", f"{verdict}, {event.seconds:.0f} s"
        case RunCompared(provisional=False):
            return f"run {event.run} compared", "beside the baseline at its own L0"
        case RunCommitted():
            return f"run {event.run} done", f"{event.verdict.name}: {event.verdict.evidence}"
        case StudyEnded():
            return "the study ended", event.why
    return "", ""
