"""The verbs of `agent ideas`. Each imports what it needs, so that --help answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from agent import options
from agent.lab.errors import UserError

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

IdeaName = Annotated[str, typer.Argument(help="An idea: a name of `agent ideas`, or a folder of yours (./my_idea).")]


@app.callback()
def ideas(context: typer.Context) -> None:
    """List the ideas, show one, or draft one."""
    from agent.commands.ideas import print_ideas

    if context.invoked_subcommand is None:
        print_ideas()


@app.command("show")
def show_idea(name: IdeaName) -> None:
    """Show an idea with its plan."""
    from agent.commands.ideas import print_idea
    from agent.ideas import load

    print_idea(load(name))


@app.command("check")
def check_idea(
    name: IdeaName, model: options.Model = None, device: options.Device = None, sandbox: options.Sandbox = "auto"
) -> None:
    """Check an idea: each step on each of its baselines is rendered, checked and trained for a few steps.

    Its own measures are computed on what that leaves. Exit code 1 if something fails.
    """
    from agent.commands import check_idea

    if not check_idea.check(name, model, device, sandbox):
        raise typer.Exit(1)


@app.command("new")
def new_idea(
    sentence: Annotated[str, typer.Argument(help="What to find out, in one sentence.")],
    llm: Annotated[str | None, typer.Option(metavar="MODEL", help="Language model at OPENAI_BASE_URL.")] = None,
    llm_command: options.LLMCommand = None,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write it there, not to templates/ideas.")] = None,
) -> None:
    """Draft an idea and its plan with a language model, and save it if you approve."""
    from agent.commands import new_idea

    if bool(llm) == bool(llm_command):
        raise UserError("--llm MODEL asks a server, and --llm-command COMMAND a program: give one of them")
    new_idea.new(sentence, llm, command=llm_command, to=to)
