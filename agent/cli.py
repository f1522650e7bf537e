"""The command line: parses, calls, prints."""

import errno
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.lab.errors import UserError

if TYPE_CHECKING:
    from agent.ideas import Fixed, Idea
    from agent.ledger import Event, StudyStarted
    from agent.proposers import Proposal, Proposer
    from agent.study import Study

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
ideas_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(ideas_app, name="ideas")

# What a machine refuses, with a message that says it all.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


@app.callback()
def agent() -> None:
    """Runs experiments on sparse autoencoders, and writes notes that are true in the morning."""


@app.command()
def run(
    idea: Annotated[str, typer.Option(help="An idea: a directory of templates/ideas.")],
    max_runs: Annotated[int, typer.Option(min=1, help="How many runs to try; the baseline is not counted.")],
    model: Annotated[str | None, typer.Option(help="tiny-lm, a directory (./...), or a model of the hub.")] = None,
    hook: Annotated[str | None, typer.Option(help="Where the SAE sits, as blocks.1.hook_resid_post.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; the GPU when there is one.")] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Hours of work; no run starts that would exceed them.")
    ] = None,
    run_timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds for one training, and one evaluation; 5 times the baseline's, at least 300."),
    ] = None,
) -> None:
    """Investigate an idea: the baseline, then a run for each proposal, then notes and plots.

    Whatever interrupts it, `agent resume` continues.
    """
    from agent import cache, ideas, loop, study

    if max_hours is not None and max_hours <= 0:
        raise UserError(f"--max-hours {max_hours:g}: a study needs more than 0 hours")
    plan = ideas.load(idea)
    given = {"model": _absolute(model), "hook_name": hook}
    fixed = plan.fixed.model_copy(update={name: value for name, value in given.items() if value})
    limits = {"max_runs": max_runs, "max_hours": max_hours, "run_timeout": run_timeout}
    started = loop.started(plan, fixed, device, limits)
    baseline, proposer = _proposals(plan, fixed)
    with cache.in_use():
        _prepare(started)
        new = study.create(ideas.ROOT, plan.name)
        with new.lock():
            _carry_on(new, started, baseline, proposer)


@app.command()
def resume(
    path: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="A study under runs/; the newest that has not ended.")
    ] = None,
) -> None:
    """Continue a study that was interrupted or killed, within what is left of its budgets."""
    from agent import cache, ideas, process_tree
    from agent import study as studies
    from agent.ledger import StudyResumed

    study, state = studies.to_resume(ideas.ROOT, path)
    if state.finished:
        print(f"{study.name} has ended: {state.ended}; notes: {study.notes / 'notes.txt'}")
        return
    assert state.started
    plan = ideas.load(state.started.idea)
    baseline, proposer = _proposals(plan, state.started.fixed)
    with study.lock(), cache.in_use():
        if ended := process_tree.end_orphans(study.directory):
            print(f"ended {ended} process{'es' * (ended > 1)} that the last driver had left running", flush=True)
        study.unlock_git()
        _prepare(state.started)
        _carry_on(study, StudyResumed(pid=os.getpid(), host=socket.gethostname()), baseline, proposer)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A run's directory, or a study's under runs/ or notes/.")]) -> None:
    """Show a run or a study as a table."""
    from agent import show

    show.show(path)


@ideas_app.callback()
def ideas(context: typer.Context) -> None:
    """List the ideas there are, or show one with its plan."""
    from agent import show_ideas

    if context.invoked_subcommand is None:
        show_ideas.show_all()


@ideas_app.command("show")
def show_idea(name: Annotated[str, typer.Argument(help="An idea: a directory of templates/ideas.")]) -> None:
    """Show an idea with its plan."""
    from agent import show_ideas

    show_ideas.show_one(name)


@app.command()
def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Delete activations, baselines, evaluation or all; may be given repeatedly."),
    ] = None,
) -> None:
    """Show what is stored for reuse under SAE_AGENT_CACHE, or clear it by kind."""
    from agent import cache

    if clear:
        cache.clear(clear)
    else:
        cache.show()


def main() -> None:
    """The console script. Exit codes: 0 done, 1 our fault or a failed study, 2 the user's mistake, 130 interrupted."""
    if sys.platform == "win32":
        _fail("sae-agent runs on Linux and macOS; on Windows use WSL", 2)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set inside a git hook; a study has its own
        os.environ.pop(name, None)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a study ends in order when its terminal closes, too
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        _fail(error.format_message(), 2)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        _fail(f"{error.filename or 'while writing'}: {error.strerror}", 1)
    else:
        if code == 130:  # what typer makes of a Ctrl-C that no command has answered itself
            _fail("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def _proposals(plan: "Idea", fixed: "Fixed") -> "tuple[Proposal, Proposer]":
    """The baseline, and what follows it. Rendered before any time is spent, so that a broken template is known."""
    from agent.proposers.template import TemplateProposer, baseline

    return baseline(fixed), TemplateProposer(plan, fixed)


def _prepare(started: "StudyStarted") -> None:
    from agent import ideas, loop

    fixed = started.fixed
    print(f"{started.title}: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens", flush=True)
    if code := loop.prepare(ideas.ROOT, fixed, loop.environment_settings(started.device)):
        raise typer.Exit(2 if code == 2 else 1)


def _carry_on(study: "Study", first: "Event", baseline: "Proposal", proposer: "Proposer") -> None:
    """Record the driver's first event, then explore to the end. The study must be locked."""
    from agent.display import display
    from agent.ledger import Ledger
    from agent.loop import Loop

    ledger = Ledger(study.ledger)
    ledger.append(first)
    print(f"study: {study.directory}", flush=True)
    with display() as shown:
        ending = Loop(study, ledger, baseline, proposer, shown).run()
    print(f"{ending.why}; notes: {study.notes / 'notes.txt'}")
    sys.exit(ending.code)


def _absolute(model: str | None) -> str | None:
    """A directory given by its path, made good for child processes that run elsewhere; a bare name is a model's."""
    if model and (os.sep in model or model.startswith((".", "~"))) and Path(model).expanduser().is_dir():
        return str(Path(model).expanduser().resolve())
    return model


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
