"""start.py agent.report.track_program FOLDER: log runs of a study with wandb, which nothing else of ours imports.

FOLDER holds request.json, a Request, and receives answer.json, an Answer. Nothing that an experiment wrote runs here.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent.lab.errors import describe
from agent.lab.files import write_atomically

REQUEST, ANSWER = "request.json", "answer.json"
PROJECT = "sae-agent"  # unless WANDB_PROJECT names another


class Tracked(BaseModel):
    """A run of a study, as it is logged; `again` if it was, and only its outcome has changed."""

    number: int
    outcome: str
    again: bool
    config: dict[str, Any]
    rows: list[dict[str, float]]  # of its metrics.jsonl
    results: dict[str, float]


class Request(BaseModel):
    """The runs to log, and the directory of the study, in which wandb keeps its files."""

    directory: Path
    group: str
    runs: list[Tracked]


class Answer(BaseModel):
    """The runs that were logged, and why others were not."""

    logged: list[int] = []
    error: str = ""


def main(folder: Path) -> None:
    request, answer = Request.model_validate_json((folder / REQUEST).read_bytes()), Answer()
    try:
        mode = _mode()
        for run in request.runs:
            _log(request, run, mode)
            answer.logged.append(run.number)
            write_atomically(folder / ANSWER, answer.model_dump_json())
    except Exception as error:  # whatever wandb raises, the study goes on
        answer.error = describe(error)
        write_atomically(folder / ANSWER, answer.model_dump_json())


def _mode() -> Any:
    """Return the mode that the user has set, by WANDB_MODE or `wandb offline`; offline where there is no key."""
    import wandb

    mode = wandb.setup().settings.mode
    return mode if mode != "online" or wandb.login(prompt=False) else "offline"


def _log(request: Request, run: Tracked, mode: Any) -> None:
    """Log a run under an id that follows from the study, so that wandb takes a second time for the same run."""
    import wandb

    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    logged = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=request.group,
        id=f"{request.group}-run_{run.number}",
        name=f"run {run.number}: {run.config['title']}",
        config=run.config,
        dir=request.directory,
        mode=mode,
        resume="allow" if run.again else None,
        allow_val_change=True,
        settings=quiet,
    )
    for row in () if run.again else run.rows:
        logged.log(row, step=int(row["step"]))
    logged.summary.update({f"final/{name}": value for name, value in run.results.items()})
    logged.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
