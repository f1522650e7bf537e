"""A study as the page shows it: what the ledger says, and the results of files that are as they were recorded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import ROOT
from agent.comparison.judgement import Judgement, judgements
from agent.lab import results
from agent.lab.files import BadFile, open_plain
from agent.lab.results import Measure
from agent.lab.verdicts import MetricsRow
from agent.llm import transcript
from agent.llm.transcript import Exchange
from agent.report import model_words, own_measures
from agent.report.model_words import Check
from agent.report.prose import Facts
from agent.study import ledger
from agent.study.custody import changed_records
from agent.study.events import Event
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study


class RunWithoutHistory(Run):
    """A run whose metrics.jsonl was changed after it was recorded."""

    def metrics(self) -> list[MetricsRow]:
        return []


@dataclass(frozen=True)
class Opened:
    """A study, read once. `hidden` are the recorded files that are not shown, as they are not what was recorded."""

    study: Study
    state: State
    events: Sequence[Event]
    runs: list[Run]
    judged: Mapping[int, Judgement]
    measures: Mapping[str, Measure]
    hidden: Sequence[str]
    exchanges: Sequence[Exchange]
    troubles: Sequence[str]  # why something is missing from the page, in words
    check: Check = model_words.unchecked  # for what results contradict in a language model's words

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def facts(self) -> Facts:
        """Return what is known of the runs."""
        return Facts.of(self.runs, self.judged, self.state.started)

    @property
    def counted(self) -> list[Run]:
        """Return the runs that count."""
        return [run for run in self.runs if run.counts]


def open_study(study: Study, state: State, check: Check = model_words.unchecked) -> Opened:
    """Read a study. What is damaged, changed or gone is left out and named, and the rest is shown."""
    hidden = changed_records(study, state)
    unreadable = _unreadable(study, state, hidden)
    runs = study.load_runs(state, hidden={*hidden, *unreadable})
    runs = [_without_history(run) if f"run_{run.number}/metrics.jsonl" in hidden else run for run in runs]
    measures = own_measures.measures_of(state.started, runs)
    exchanges, damaged = _exchanges(study)
    troubles = [
        *(f"{name} was changed after it was recorded, or is gone: its figures are not shown" for name in hidden),
        *(f"{name} is missing or cannot be read" for name in unreadable),
        *(f"{name} was changed and could not be put back" for name in sorted(state.lost)),
        *filter(None, [damaged]),
    ]
    events = ledger.read(study.ledger)
    return Opened(study, state, events, runs, judgements(runs, state), measures, hidden, exchanges, troubles, check)


def _unreadable(study: Study, state: State, hidden: Sequence[str]) -> list[str]:
    """Return the results of runs that are done and of which no digest was recorded, if they cannot be read."""
    names = [f"run_{run.number}/final_info.json" for run in state.runs if run.stage == "done"]
    return [
        name
        for name in names
        if name not in hidden and name not in state.lost and not _readable((study.directory / name).parent)
    ]


def _readable(run_dir: Path) -> bool:
    try:
        results.read(run_dir)
    except BadFile:
        return False
    return True


def _without_history(run: Run) -> Run:
    return RunWithoutHistory(run.state, run.directory, run.info)


def _exchanges(study: Study) -> tuple[Sequence[Exchange], str]:
    if not study.transcript.exists():
        return [], ""
    try:
        return transcript.read(study.transcript), ""
    except BadFile as error:
        return [], f"the conversation is not shown: {error}"


def log_tail(path: Path, most: int) -> str:
    """Return the last lines of a log within `most` bytes, or "" if there is none; links are not followed.

    Paths of the installation are written as seen from it.
    """
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            tail = file.read(most).decode(errors="replace").replace(f"{ROOT}{os.sep}", "")
    except (BadFile, OSError):
        return ""
    if size <= most:
        return tail.strip("\n")
    return f"… {size - most:,} bytes before this are not shown\n{tail.partition(chr(10))[2] or tail}".rstrip("\n")
