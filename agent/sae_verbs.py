"""The verbs that are about one SAE. Each imports what it needs, so that --help answers at once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(rich_markup_mode=None)

Format = Literal["saelens", "neuronpedia", "dictionary_learning"]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, as runs/STUDY/run_2.")],
    to: Annotated[Format, typer.Option(help="The library that is to read it.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory for it.")],
) -> None:
    """Write a run's SAE for another library.

    With a card, README.md, that says what it is, what it scores and how it is loaded. Exit code 1 if the run was
    changed after its study had recorded it.
    """
    from agent.commands import export as command

    raise typer.Exit(command.export(run, to, out))
