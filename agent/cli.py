"""The command line: parses, calls, prints."""

import errno
import json
import math
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.lab.errors import UserError

if TYPE_CHECKING:
    from agent.analysis import Analysis
    from agent.events import Event, StudyStarted
    from agent.ideas import Fixed, Idea
    from agent.loop import Ending, Loop
    from agent.proposers import Proposer
    from agent.state import State
    from agent.study import Study

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
ideas_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(ideas_app, name="ideas")

MODEL = "tiny-lm, a world (synth2k), a directory (./...), or a hub model."
HOOK = "Where the SAE sits, as blocks.1.hook_resid_post."

# What a machine refuses, with a message that says it all.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


@app.callback()
def agent() -> None:
    """Runs experiments on sparse autoencoders, and writes notes that are true in the morning."""


@app.command()
def run(
    idea: Annotated[str, typer.Option(help="An idea: a directory of templates/ideas.")],
    max_runs: Annotated[int, typer.Option(min=1, help="How many runs to try; the baseline is not counted.")],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    hook: Annotated[str | None, typer.Option(help=HOOK)] = None,
    evals: Annotated[
        str | None, typer.Option(help="What scores a run: quick, standard, full, or evaluations with commas between.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; the GPU when there is one.")] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Hours of work; no run starts that would exceed them.")
    ] = None,
    run_timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds for one training, and one evaluation; 5 times the baseline's, at least 300."),
    ] = None,
    proposer: Annotated[str | None, typer.Option(help="template, the idea's own plan, or llm.")] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model at OPENAI_BASE_URL, with OPENAI_API_KEY.")
    ] = None,
    llm_window: Annotated[int | None, typer.Option(min=1, help="Tokens the model can read at once.")] = None,
    max_llm_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read and write in all.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Dollars for the model in all.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Dollars per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Dollars per million tokens written.")] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A transcript.jsonl, whose answers are given again.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Show each change and ask before it runs.")] = False,
) -> None:
    """Investigate an idea: the baseline, then a run for each proposal, then notes and plots.

    Whatever interrupts it, `agent resume` continues.
    """
    from agent import analysis, ideas, loop, study
    from agent.approve import require_terminal
    from agent.lab import cache
    from agent.lab.evaluation import families
    from agent.proposers import choice

    if max_hours is not None and not 0 < max_hours < math.inf:
        raise UserError(f"--max-hours {max_hours:g}: give a number of hours above 0")
    plan = ideas.load(idea)
    if evals:
        families.chosen(evals)  # refused at once where it names none
    given = {"model": _absolute(model), "hook_name": hook, "evals": evals}
    fixed = plan.fixed.but(**{name: value for name, value in given.items() if value})
    prices = choice.prices(price_in, price_out)
    spend = {"max_tokens": max_llm_tokens, "max_cost": max_cost, "prices": prices, "window": llm_window}
    model_asked = choice.language_model(proposer, llm, replay=replay, **spend)
    limits = {"max_runs": max_runs, "max_hours": max_hours, "run_timeout": run_timeout}
    # What is broken is known before any time is spent: the plan's rendering, the model's key, the idea's own files.
    choice.check(plan, fixed, model_asked)
    own = analysis.load(plan)
    if approve:
        require_terminal()
    print(f"{plan.title}: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens", flush=True)
    if model_asked is None and proposer is None:
        print(choice.OWN_PLAN, flush=True)
    with cache.in_use():
        settings = limits | {"language_model": model_asked, "approve": approve}
        primary_metric, _ = ideas.goal(plan, fixed.model)
        started = loop.started(plan, fixed, _prepare(fixed, primary_metric, device), device, settings)
        new = study.create(ideas.ROOT, plan.name)
        asked = choice.of_new_study(new, started, plan)
        with new.lock(), _loop(new, started, own, asked) as work:
            _end(new, work.run())


@app.command()
def resume(
    path: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="A study under runs/; the newest that has not ended.")
    ] = None,
) -> None:
    """Continue a study that was interrupted or killed, within what is left of its budgets."""
    from agent import analysis, ideas
    from agent import study as studies
    from agent.approve import require_terminal
    from agent.events import StudyResumed
    from agent.lab import cache
    from agent.proposers import choice

    study, state = studies.to_resume(ideas.ROOT, path)
    if state.finished:
        print(f"{study.name} has ended: {state.ended}; notes: {study.notes / 'notes.txt'}")
        return
    if state.started and state.started.approve:
        require_terminal()
    with study.lock(), cache.in_use():
        started, plan = _pick_up(study, state)
        proposer, own = choice.of_study(study, started, plan), analysis.load(plan)
        resumed = StudyResumed(pid=os.getpid(), host=socket.gethostname())
        with _loop(study, resumed, own, proposer) as work:
            _end(study, work.run())


@app.command()
def note(
    path: Annotated[Path, typer.Argument(metavar="STUDY", help="A study under runs/.")],
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run that was made by hand in it, as run_6.")],
    message: Annotated[str, typer.Option("-m", "--message", help="What was tried, for the notes.")],
) -> None:
    """Take a run that was made by hand in a study's directory into its notes and plots."""
    from agent import analysis, hand_run, ideas
    from agent import study as studies
    from agent.lab import cache
    from agent.proposers import choice

    with studies.to_resume(ideas.ROOT, path)[0].lock(), cache.in_use():
        study, state = studies.to_resume(ideas.ROOT, path)  # as the driver left it that had the lock before
        event = hand_run.added(study, state, Path(run_name).name, message)
        started, plan = _pick_up(study, state)
        proposer, own = choice.of_study(study, started, plan, asking=False), analysis.load(plan)
        with _loop(study, None, own, proposer) as work:
            _end(study, work.take_in(event))


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A run's directory, or a study's under runs/ or notes/.")]) -> None:
    """Show a run or a study as a table."""
    from agent import show

    show.show(path)


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A notes.txt, of this or an earlier system.")],
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The runs' directories; without, the notes' own results decide.")
    ] = None,
) -> None:
    """Hold every claim of a notes.txt against its figures: supported, contradicted or unsupported."""
    from agent import audit

    if not audit.audit(path, results):
        sys.exit(1)


@ideas_app.callback()
def ideas(context: typer.Context) -> None:
    """List the ideas there are, or show one with its plan."""
    from agent import show_ideas

    if context.invoked_subcommand is None:
        show_ideas.show_all()


@ideas_app.command("show")
def show_idea(name: Annotated[str, typer.Argument(help="An idea: a directory of templates/ideas.")]) -> None:
    """Show an idea with its plan."""
    from agent import ideas, show_ideas

    show_ideas.show_one(ideas.load(name))


@ideas_app.command("new")
def new_idea(
    sentence: Annotated[str, typer.Argument(help="What to find out, in one sentence.")],
    llm: Annotated[str, typer.Option(metavar="MODEL", help="A model of the server at OPENAI_BASE_URL.")],
) -> None:
    """Have a language model work out an idea with a plan, and take it in if you like it."""
    from agent import new_idea

    new_idea.new(sentence, llm)


@app.command()
def doctor(
    model: Annotated[str, typer.Option(help=MODEL)] = "tiny-lm",
    hook: Annotated[str | None, typer.Option(help=HOOK)] = None,
    evals: Annotated[
        str, typer.Option(help="quick, standard, full, or evaluations with commas between them.")
    ] = "full",
) -> None:
    """Show which evaluations can run here, and what is missing for the others. Exit code 1 where one cannot."""
    from agent import doctor
    from agent.ideas import Fixed
    from agent.lab.evaluation import families

    families.chosen(evals)  # refused at once where it names none
    given = {"model": _absolute(model), "hook_name": hook}
    raise typer.Exit(doctor.show(Fixed.model_validate({name: value for name, value in given.items() if value}), evals))


@app.command()
def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="Delete activations, baselines, evaluation, worlds or all; may be given repeatedly."
        ),
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


def _prepare(fixed: "Fixed", primary_metric: str, device: str | None) -> dict[str, Any]:
    """Have the activations ready; what figures depend on beside the experiment, and what can be evaluated."""
    from agent import ideas, workers
    from agent.lab.metrics import family_of

    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder) / "ground.json"
        if code := workers.prepare(ideas.ROOT, fixed, family_of(primary_metric), device, ground):
            raise typer.Exit(2 if code == 2 else 1)
        return json.loads(ground.read_text())


def _pick_up(study: "Study", state: "State") -> "tuple[StudyStarted, Idea]":
    """Make a locked study ready to go on. Raises UserError where its ground has changed."""
    from agent import ideas, process_tree

    assert state.started
    if ended := process_tree.end_orphans(study.directory):
        print(f"ended {ended} process{'es' * (ended > 1)} that the last driver had left running", flush=True)
    study.unlock_git()
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
def _loop(study: "Study", first: "Event | None", own: "Analysis", proposer: "Proposer") -> "Iterator[Loop]":
    """The study's loop, with its first event of this driver recorded. The study must be locked."""
    from agent.display import display
    from agent.ledger import Ledger
    from agent.loop import Loop
    from agent.workers import Workers

    ledger = Ledger(study.ledger)
    if first:
        ledger.append(first)
    print(f"study: {study.directory}", flush=True)
    assert ledger.state.started
    with display() as shown, Workers(study, ledger.state.started, shown) as workers:
        yield Loop(study, ledger, own, proposer, workers)


def _end(study: "Study", ending: "Ending") -> None:
    from agent.proposers import choice

    if spent := choice.spent(study):
        print(spent)
    print(f"{ending.why}; notes: {study.notes / 'notes.txt'}")
    if ending.code:
        sys.exit(ending.code)


def _absolute(model: str | None) -> str | None:
    """A directory given by its path, made good for child processes that run elsewhere; a bare name is a model's."""
    if model and (os.sep in model or model.startswith((".", "~"))) and Path(model).expanduser().is_dir():
        return str(Path(model).expanduser().resolve())
    return model


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
