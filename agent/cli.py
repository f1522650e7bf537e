"""The command line: parses, calls, prints."""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.lab.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

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
    run_timeout: Annotated[float, typer.Option(min=1, help="Seconds for one training, and one evaluation.")] = 3600,
) -> None:
    """Investigate an idea: the baseline, then a run for each proposal, then notes and plots."""
    from agent import ideas, loop
    from agent.display import display
    from agent.proposers.template import TemplateProposer, baseline

    plan = ideas.load(idea)
    given = {"model": _absolute(model), "hook_name": hook}
    fixed = plan.fixed.model_copy(update={name: value for name, value in given.items() if value})
    settings = {"SAE_AGENT_DEVICE": device} if device else {}
    first, proposer = baseline(fixed), TemplateProposer(plan, fixed)
    print(f"{plan.title}: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens", flush=True)
    if code := loop.prepare(ideas.ROOT, fixed, settings):
        raise typer.Exit(2 if code == 2 else 1)
    study, ledger = loop.start(ideas.ROOT, plan, fixed, max_runs, run_timeout)
    print(f"study: {study.directory}", flush=True)
    with display() as shown:
        ending = loop.Loop(study, ledger, fixed, first, proposer, settings, max_runs, run_timeout, shown).run()
    print(f"{ending.why}; notes: {study.notes / 'notes.txt'}")
    sys.exit(ending.code)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A run's directory, or a study's under runs/ or notes/.")]) -> None:
    """Show a run or a study as a table."""
    from agent import show

    show.show(path)


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
        code = app(standalone_mode=False)
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
