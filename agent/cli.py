"""The command line: parses, calls, prints."""

import errno
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.lab.errors import UserError

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
    from agent import ideas
    from agent.commands import run as command
    from agent.lab.evaluation import catalogue
    from agent.proposers import select

    if max_hours is not None and not 0 < max_hours < math.inf:
        raise UserError(f"--max-hours {max_hours:g}: give a number of hours above 0")
    plan = ideas.load(idea)
    if evals:
        catalogue.parse_evals(evals)  # refused at once where it names none
    given = {"model": _absolute(model), "hook_name": hook, "evals": evals}
    fixed = plan.fixed.with_changes(**{name: value for name, value in given.items() if value})
    prices = select.prices(price_in, price_out)
    spend = {"max_tokens": max_llm_tokens, "max_cost": max_cost, "prices": prices, "window": llm_window}
    language_model = select.language_model(proposer, llm, replay=replay, **spend)
    limits = {"max_runs": max_runs, "max_hours": max_hours, "run_timeout": run_timeout}
    command.start(plan, fixed, language_model, device, limits, approve, proposer)


@app.command()
def resume(
    path: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="A study under runs/; the newest that has not ended.")
    ] = None,
) -> None:
    """Continue a study that was interrupted or killed, within what is left of its budgets."""
    from agent.commands import run as command

    command.resume(path)


@app.command()
def note(
    path: Annotated[Path, typer.Argument(metavar="STUDY", help="A study under runs/.")],
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run that was made by hand in it, as run_6.")],
    message: Annotated[str, typer.Option("-m", "--message", help="What was tried, for the notes.")],
) -> None:
    """Take a run that was made by hand in a study's directory into its notes and plots."""
    from agent.commands import run as command

    command.note(path, run_name, message)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A run's directory, or a study's under runs/ or notes/.")]) -> None:
    """Show a run or a study as a table."""
    from agent.commands import show

    show.show(path)


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A notes.txt, of this or an earlier system.")],
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The runs' directories; without, the notes' own results decide.")
    ] = None,
) -> None:
    """Hold every claim of a notes.txt against its figures: supported, contradicted or unsupported."""
    from agent.audit import audit

    if not audit.audit(path, results):
        sys.exit(1)


@ideas_app.callback()
def ideas(context: typer.Context) -> None:
    """List the ideas there are, or show one with its plan."""
    from agent.commands.ideas import print_ideas

    if context.invoked_subcommand is None:
        print_ideas()


@ideas_app.command("show")
def show_idea(name: Annotated[str, typer.Argument(help="An idea: a directory of templates/ideas.")]) -> None:
    """Show an idea with its plan."""
    from agent.commands.ideas import print_idea
    from agent.ideas import load

    print_idea(load(name))


@ideas_app.command("new")
def new_idea(
    sentence: Annotated[str, typer.Argument(help="What to find out, in one sentence.")],
    llm: Annotated[str, typer.Option(metavar="MODEL", help="A model of the server at OPENAI_BASE_URL.")],
) -> None:
    """Have a language model work out an idea with a plan, and take it in if you like it."""
    from agent.commands import new_idea

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
    from agent.commands import doctor
    from agent.ideas import Fixed
    from agent.lab.evaluation import catalogue

    catalogue.parse_evals(evals)  # refused at once where it names none
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
    from agent.commands import cache

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


def _absolute(model: str | None) -> str | None:
    """A directory given by its path, made good for child processes that run elsewhere; a bare name is a model's."""
    if model and (os.sep in model or model.startswith((".", "~"))) and Path(model).expanduser().is_dir():
        return str(Path(model).expanduser().resolve())
    return model


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
