"""`agent run`, `agent resume`, `agent note`: start a study, continue one, add a run made by hand."""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from agent import ROOT, ideas, loop
from agent.display.approve import require_terminal
from agent.display.live import display
from agent.ideas import Fixed, Idea
from agent.lab import cache
from agent.lab.errors import UserError
from agent.lab.metrics import family_of
from agent.loop import Loop, StudyResult
from agent.proposers import Proposer, select
from agent.report import idea_analysis
from agent.report.idea_analysis import Analysis
from agent.running import process_tree, workers
from agent.running.workers import Workers
from agent.study import hand_run, workspace
from agent.study.events import Event, LanguageModel, StudyResumed, StudyStarted
from agent.study.ledger import Ledger
from agent.study.state import State
from agent.study.workspace import Study


def start(
    idea: Idea,
    fixed: Fixed,
    language_model: LanguageModel | None,
    device: str | None,
    limits: dict[str, Any],
    approve: bool,
    proposer: str | None,
) -> None:
    """Start a study and carry it to its end. Raise UserError for whatever can be known to be wrong beforehand."""
    select.check(idea, fixed, language_model)
    own = idea_analysis.load(idea)
    if approve:
        require_terminal()
    print(f"{idea.title}: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens", flush=True)
    if language_model is None and proposer is None:
        print(select.OWN_PLAN, flush=True)
    with cache.in_use():
        settings = limits | {"language_model": language_model, "approve": approve}
        primary_metric, _ = ideas.goal(idea, fixed.model)
        started = loop.started(idea, fixed, _prepare(fixed, primary_metric, device), device, settings)
        study = workspace.create_study(ROOT, idea.name)
        chosen = select.of_new_study(study, started, idea)
        with study.lock(), _loop(study, started, own, chosen) as work:
            _end(study, work.run())


def resume(path: Path | None) -> None:
    """Continue the study at `path`, or the newest that has not ended."""
    study, state = workspace.find_study_to_resume(ROOT, path)
    if state.finished:
        print(f"{study.name} has ended: {state.ended}; notes: {study.notes / 'notes.txt'}")
        return
    if state.started and state.started.approve:
        require_terminal()
    with study.lock(), cache.in_use():
        started, plan = _pick_up(study, state)
        proposer, own = select.of_study(study, started, plan), idea_analysis.load(plan)
        resumed = StudyResumed(pid=os.getpid(), host=socket.gethostname())
        with _loop(study, resumed, own, proposer) as work:
            _end(study, work.run())


def note(path: Path, run_name: str, message: str) -> None:
    """Take a run that was made by hand in a study's directory into its notes and plots."""
    with workspace.find_study_to_resume(ROOT, path)[0].lock(), cache.in_use():
        study, state = workspace.find_study_to_resume(ROOT, path)  # as the driver left it that had the lock before
        event = hand_run.added(study, state, Path(run_name).name, message)
        started, plan = _pick_up(study, state)
        proposer, own = select.of_study(study, started, plan, asking=False), idea_analysis.load(plan)
        with _loop(study, None, own, proposer) as work:
            _end(study, work.take_in(event))


def _prepare(fixed: Fixed, primary_metric: str, device: str | None) -> dict[str, Any]:
    """Have the activations ready; what figures depend on beside the experiment, and what can be evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder) / "ground.json"
        if code := workers.prepare(ROOT, fixed, family_of(primary_metric), device, ground):
            raise typer.Exit(2 if code == 2 else 1)
        return json.loads(ground.read_text())


def _pick_up(study: Study, state: State) -> tuple[StudyStarted, Idea]:
    """Make a locked study ready to go on. Raises UserError where its ground has changed."""
    assert state.started
    if ended := process_tree.end_orphans(study.directory):
        print(f"ended {ended} process{'es' * (ended > 1)} that the last driver had left running", flush=True)
    study.remove_git_locks()
    fixed = state.started.fixed
    print(f"{state.started.title}: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens", flush=True)
    as_it_began = fixed.model_copy(update={"evals": ",".join(state.started.evals)})
    if _prepare(as_it_began, state.started.primary_metric, state.started.device)["ground"] != state.started.ground:
        raise UserError(
            f"{study.name} began with another agent/lab, package, model or device, so further runs would not compare "
            "with those it has: go back to what it began with, or start a new study"
        )
    return state.started, ideas.load(state.started.idea)


@contextmanager
def _loop(study: Study, first: Event | None, own: Analysis, proposer: Proposer) -> Iterator[Loop]:
    """The study's loop, with its first event of this driver recorded. The study must be locked."""
    ledger = Ledger(study.ledger)
    if first:
        ledger.append(first)
    print(f"study: {study.directory}", flush=True)
    assert ledger.state.started
    with display() as shown, Workers(study, ledger.state.started, shown) as workers:
        yield Loop(study, ledger, own, proposer, workers)


def _end(study: Study, ending: StudyResult) -> None:
    if spent := select.spent(study):
        print(spent)
    print(f"{ending.why}; notes: {study.notes / 'notes.txt'}")
    if ending.code:
        sys.exit(ending.code)
