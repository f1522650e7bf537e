"""`agent run`, `agent resume`, `agent note`: start a study, continue one, add a run made by hand."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import typer

from agent import ROOT, idea_folder, ideas
from agent.commands import references, settings
from agent.comparison.curves import required_baselines
from agent.display.approve import require_terminal
from agent.display.formatting import hours_line
from agent.display.live import make_display
from agent.ideas import Fixed, Idea
from agent.lab import cache
from agent.lab.defaults import SETUP_FILE
from agent.lab.errors import UserError
from agent.lab.metrics import family_of
from agent.lab.visible import one_line
from agent.loop import Loop
from agent.proposers import Proposer, select
from agent.report import idea_analysis, track
from agent.report.idea_analysis import Analysis
from agent.report.story import spent
from agent.running import process_tree
from agent.running.job_queue import JobQueue
from agent.running.jobs import Setup
from agent.running.places import Place, Unprepared
from agent.running.sandbox import Sandbox, settle
from agent.study import digests, hand_run, workspace
from agent.study.custody import driver_custody, require_records
from agent.study.events import Event, LanguageModel, SettingsChanged, StudyResumed, StudyStarted
from agent.study.judging_code import judging_hash
from agent.study.ledger import Ledger
from agent.study.outcomes import StudyResult
from agent.study.records import Confinement, SandboxWish, TrackerName
from agent.study.state import State
from agent.study.workspace import Study

AS_BEFORE = SettingsChanged()


class Outside(TypedDict, total=False):
    """What a study's first event has of an idea from outside templates/ideas."""

    idea_folder: str
    digests: dict[str, str]


@dataclass(frozen=True)
class StudyRequest:
    """What `agent run` was asked for."""

    idea: Idea
    fixed: Fixed
    smallest_effect: float | None  # None: the idea's
    max_runs: int
    max_hours: float | None
    run_timeout: float | None  # seconds
    device: str | None  # None: the GPU if there is one
    tune: bool  # the baseline's learning rate, where the model has none that was tuned
    ks: tuple[float, ...]  # at which a confirmed winner is trained at the end
    references: tuple[str, ...]  # SAEs from elsewhere, as the user names them
    language_model: LanguageModel | None  # None: the idea's own plan
    approve: bool
    sandbox: SandboxWish
    jobs: int | None  # at once; None: as many as suit the machine
    place: Place
    cancel_jobs: bool  # those of a cluster, when a person interrupts
    track: TrackerName | None  # what runs are logged with

    @property
    def goal(self) -> tuple[str, float]:
        """The primary metric and the smallest effect worth having."""
        primary_metric, smallest_effect = ideas.primary_metric_and_effect(self.idea, self.fixed.model)
        return primary_metric, self.smallest_effect or smallest_effect

    def first_event(
        self,
        lab: dict[str, Any],
        confinement: Confinement,
        jobs: int,
        analysis: Analysis,
        references: Sequence[str],
        outside: Outside,
    ) -> StudyStarted:
        """Return the study's first event; `lab` is what the lab wrote of its fingerprint and the evaluations, and
        `references` are the names of those that were imported."""
        primary_metric, smallest_effect = self.goal
        return StudyStarted(
            idea=self.idea.name,
            title=self.idea.title,
            description=self.idea.description.strip(),
            hypothesis=self.idea.hypothesis.strip(),
            answer=self.idea.answer,
            measures=analysis.measures or {},
            needs=dict(analysis.needs),
            primary_metric=primary_metric,
            smallest_effect=smallest_effect,
            most_variance_lost=self.idea.most_variance_lost,
            fixed=pinned(self.fixed, lab),
            trained_on=lab["trained_on"],
            evaluated_on=lab["evaluated_on"],
            evals=lab["evals"],
            left_out=lab["left_out"],
            fingerprint=lab["fingerprint"],
            device=self.device,
            max_runs=self.max_runs,
            max_hours=self.max_hours,
            run_timeout=self.run_timeout,
            language_model=self.language_model,
            approve=self.approve,
            jobs=jobs,
            slurm=None if self.place.slurm is None else dict(self.place.slurm),
            judging=judging_hash(self.idea.folder),
            confinement=confinement,
            tune=self.tune,
            ks=self.ks,
            references=tuple(references),
            track=self.track,
            **outside,
        )


def pinned(fixed: Fixed, lab: Mapping[str, Any]) -> Fixed:
    """Return settings with what the lab has settled of them."""
    parts = lab["parts"]
    return fixed.with_changes(
        dtype=parts["dtype"],
        threads=int(parts["threads"]),
        text=lab["text"],
        context=int(parts["context"]) if parts["context"] else None,
        evaluation_data=parts["evaluation_data"],
    )


def check(request: StudyRequest) -> None:
    """Raise UserError for what is known to be wrong of a study without a start: its plan, a tracker, a reference."""
    track.require(request.track)
    references.names(request.references)
    if request.language_model is None:
        select.proposer_for(request.idea, request.fixed, None)


def start(request: StudyRequest) -> None:
    """Start a study and carry it to its end. Raise UserError for whatever is known to be wrong beforehand."""
    if request.approve:
        require_terminal()
    track.require(request.track)
    make_proposer = select.proposer_for(request.idea, request.fixed, request.language_model)
    _announce(request.idea.title, request.fixed)
    where = (request.place, request.fixed, request.device)
    with cache.in_use():
        with references.imported(request.references, *where) as found:
            sandbox = settle(request.sandbox)
            print(f"runs are {sandbox.description}", flush=True)
            print(one_line(select.where_from(request.language_model)), flush=True)
            analysis = idea_analysis.load(request.idea, sandbox)
            _import_what_is_used_late(request.language_model)
            trainings = len(required_baselines(request.fixed)) + request.max_runs + 2 * len(request.ks)
            lab = prepare_lab(request.place, request.fixed, request.goal[0], request.device, trainings, request.jobs)
            jobs = request.place.count(request.jobs, lab, sandbox)
            study, outside = workspace.create_study(ROOT, request.idea.name), Outside()
            references.move_in(found, study)
        if request.idea.is_outside():
            outside = _keep_idea(study, request.idea)
            request = replace(request, idea=ideas.load_folder(study.directory / idea_folder.KEPT / request.idea.name))
            analysis = analysis.of_copy(request.idea, sandbox)
        started = request.first_event(lab, sandbox.record(request.sandbox), jobs, analysis, list(found), outside)
        proposer = make_proposer(study, started.fixed, request.idea)
        how = {"jobs": jobs, "cancel_jobs": request.cancel_jobs}
        with study.lock(), _loop(study, [started], lab, analysis, proposer, sandbox, **how) as loop:
            _finish(study, loop, loop.run())


def _keep_idea(study: Study, idea: Idea) -> Outside:
    """Copy an idea from outside into the study, which commits it; return what the ledger has of it."""
    names = idea_folder.keep(idea.folder, study.directory)
    study.commit(f"the idea {idea.name}, from {idea.folder}", names)
    return Outside(idea_folder=str(idea.folder), digests=digests.of_files(study.directory, names))


def resume(
    path: Path | None,
    wish: SandboxWish | None,
    jobs: int | None = None,
    cancel_jobs: bool = False,
    wished: SettingsChanged = AS_BEFORE,
) -> None:
    """Continue the study at `path`, or the newest that has not ended. `wish` and `jobs` are None: as it began.

    With other settings than it had, a study that had ended is continued too: it goes on if they allow it.
    """
    study, state = workspace.find_study_to_resume(ROOT, path)
    track.require(wished.track or state.started.track)
    require_records(study, state)
    change = settings.changes(study.name, state, wished)
    if state.finished and not change:
        print(f"{study.name} has ended: {state.ended}; notes: {study.notes / 'notes.txt'}")
        return
    if state.started.approve:
        require_terminal()
    with study.lock(), cache.in_use():
        sandbox = _settle_again(study, state, wish)
        started = change.applied(state.started) if change else state.started
        _import_what_is_used_late(started.language_model)
        idea, lab = _reopen(study, state, sandbox)
        proposer = select.proposer_of(study, started, idea)
        resumed = StudyResumed(
            pid=os.getpid(),
            host=socket.gethostname(),
            judging=_judging(study, state),
            confinement=sandbox.record(wish or _wish(state)),
        )
        first, analysis = [resumed, *([change] if change else [])], idea_analysis.load(idea, sandbox)
        with _loop(study, first, lab, analysis, proposer, sandbox, jobs, cancel_jobs) as loop:
            _finish(study, loop, loop.run())


def note(path: Path, run_name: str, message: str) -> None:
    """Add a run that was made by hand in a study's directory to its notes and plots."""
    with workspace.find_study_to_resume(ROOT, path)[0].lock(), cache.in_use():
        study, state = workspace.find_study_to_resume(ROOT, path)  # as the driver left it that had the lock before
        require_records(study, state)
        event = hand_run.hand_run_event(study, state, Path(run_name).name, message)
        sandbox = settle(_wish(state))
        idea, lab = _reopen(study, state, sandbox)
        proposer = select.silent_proposer_of(state.started, idea)
        with _loop(study, [], lab, idea_analysis.load(idea, sandbox), proposer, sandbox) as loop:
            _finish(study, loop, loop.add_hand_run(event.model_copy(update={"judging": _judging(study, state)})))


def _import_what_is_used_late(language_model: LanguageModel | None) -> None:
    """Import before the first run what is otherwise imported after it, so that no run can put another in its place."""
    names = ("git", "matplotlib.backends.backend_agg", "matplotlib.figure", "scipy.special")
    for name in (*names, "openai", "agent.audit.words") if language_model else names:
        with suppress(ImportError):  # said where it is used
            import_module(name)


def _announce(title: str, fixed: Fixed) -> None:
    text = f" of {fixed.text}" if fixed.text else ""
    sizes = f"{fixed.tokens:,} tokens{text}, d_sae {fixed.d_sae:,}, {fixed.baseline_in_words}{fixed.held_in_words}"
    print(one_line(f"{title}: {fixed.model_in_words}, {fixed.hook_name}, {sizes}"), flush=True)


def _wish(state: State) -> SandboxWish:
    """Return the confinement that the study was last asked for."""
    return state.confinements[-1].wish if state.confinements else "auto"


def _settle_again(study: Study, state: State, wish: SandboxWish | None) -> Sandbox:
    """Return the confinement of a study that goes on. Raise UserError if it is weaker and nobody asked for that."""
    sandbox = settle(wish or _wish(state))
    earlier = state.confinements[-1].kind if state.confinements else "none"
    if wish != "off" and sandbox.is_weaker(earlier):
        raise UserError(
            f"{study.name} was confined by {earlier}, and here runs are {sandbox.description}: "
            "mend that, or continue with --sandbox off"
        )
    return sandbox


def prepare_lab(
    place: Place, fixed: Fixed, primary_metric: str, device: str | None, trainings: int = 0, jobs: int | None = None
) -> dict[str, Any]:
    """Harvest the activations; return the fingerprint, the evaluations that can run, and the cache's folders.

    Raise typer.Exit if it cannot.
    """
    try:
        return place.prepare(ROOT, fixed, family_of(primary_metric), device, trainings, jobs)
    except Unprepared as failed:
        raise typer.Exit(2 if failed.exit_code == 2 else 1) from None


def _reopen(study: Study, state: State, sandbox: Sandbox) -> tuple[Idea, dict[str, Any]]:
    """Make a locked study ready to go on, and return its idea and what the lab wrote.

    Raise UserError if its fingerprint has changed.
    """
    started = state.started
    if ended := process_tree.end_orphans(study.directory):
        print(f"ended {ended} process{'es' * (ended > 1)} that the last driver had left running", flush=True)
    _announce(started.title, started.fixed)
    print(f"runs are {sandbox.description}", flush=True)
    settled = started.fixed.model_copy(update={"evals": ",".join(started.evals)})
    lab = prepare_lab(Place(started.slurm), settled, started.primary_metric, started.device)
    if lab["fingerprint"] != started.fingerprint:
        raise UserError(
            f"{study.name} began with another agent/lab, package, model, text or device, so further runs would not "
            "compare with those it has: go back to what it began with, or start a new study"
        )
    idea = ideas.load_folder(study.idea_folder(started))
    if started.idea_folder and idea_folder.has_changed(Path(started.idea_folder), idea.folder):
        print(
            f"the idea in {started.idea_folder} has changed: the study goes on with its copy, {idea.folder}", flush=True
        )
    return idea, lab


def _judging(study: Study, state: State) -> str:
    """Return the hash of the code that compares and reports, and say so if it has changed."""
    judging = judging_hash(study.idea_folder(state.started))
    if state.judging and judging not in state.judging:
        print("the code that compares and reports has changed since this study began: its notes say so", flush=True)
    return judging


@contextmanager
def _loop(
    study: Study,
    first: Sequence[Event],
    lab: dict[str, Any],
    analysis: Analysis,
    proposer: Proposer,
    sandbox: Sandbox,
    jobs: int | None = None,
    cancel_jobs: bool = False,
) -> Iterator[Loop]:
    """Open the loop of a locked study, with this driver's first events recorded."""
    ledger = Ledger(study.ledger)
    for event in first:
        ledger.append(event)
    print(f"study: {study.directory}", flush=True)
    started, custody = ledger.state.started, driver_custody(study, ledger, lab)
    setup = study.directory / SETUP_FILE
    Setup(
        study=study.directory,
        fixed=started.fixed,
        evals=started.evals,
        device=started.device,
        kind=sandbox.kind,
        artefacts=Path(lab["artefacts"]),
        exact=not lab["gpus"],
        sealed=lab["sealed"],
    ).write(setup)
    place = Place(started.slurm)
    count = place.count(jobs or started.jobs, lab, sandbox)
    executor = place.executor(setup, count, lab["gpus"])
    print(f"up to {count} job{'s' * (count > 1)} at once {place.description}", flush=True)
    with make_display() as shown, closing(JobQueue(study, ledger, shown, executor, count)) as queue:
        yield Loop(study, ledger, analysis, proposer, queue, custody, cancel_jobs)


def _finish(study: Study, loop: Loop, result: StudyResult) -> None:
    print(hours_line(loop.state))
    if cost := spent(study):
        print(cost)
    print(f"{one_line(result.reason)}; notes: {study.notes / 'notes.txt'}")
    if result.exit_code:
        sys.exit(result.exit_code)
