"""The verbs that are about one SAE. Each imports what it needs, so that --help answers at once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agent import options

app = typer.Typer(rich_markup_mode=None)

Format = Literal["saelens", "neuronpedia", "dictionary_learning"]


@app.command()
def score(
    sae: Annotated[
        str,
        typer.Argument(metavar="SAE", help="A directory, RELEASE/ID of SAELens, or OWNER/NAME/FOLDER of the hub."),
    ],
    model: Annotated[
        str | None, typer.Option(help="The model whose activations it reads; by default as its files name it.")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="TransformerLens hook of these activations, likewise.")] = None,
    evals: Annotated[str, typer.Option(help="quick, standard, full, or names with commas between.")] = "quick",
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text to score it on, as agent run takes it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new directory for the run; by default under runs/scored.")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Score an SAE that was trained elsewhere.

    It is converted, compared with the library that it is of on the model's activations, and scored as a run is, on
    windows of text as it was trained on. Exit code 1 if it could not be scored.
    """
    from agent.commands import score as command

    raise typer.Exit(command.score(sae, out, device, dtype, model=model, hook=hook, evals=evals, text=text))


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
