"""start.py agent.report.idea_program FOLDER: run the files of an idea for the driver, which runs none itself.

FOLDER holds request.json, a Request, and receives answer.json, an Answer, and the figures.
"""

import re
import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent.ideas import BadIdea
from agent.lab.evaluation import idea_files
from agent.lab.files import write_atomically
from agent.lab.results import Measure
from agent.report import figure_style
from agent.study.runs import Run

REQUEST, ANSWER = "request.json", "answer.json"
NO_FIGURES = "the idea's own figures"
NEED = re.compile(r"(groups|extra) \w+(, \w+)*")  # groups of latents or extra tensors that finish() must be given


class Request(BaseModel):
    """The files to read: one with MEASURES, one with `draw`. With `runs` the figures of these are drawn."""

    measures: Path | None = None
    required: list[str] = []  # names that the first must define
    figures: Path | None = None
    runs: list[Run] | None = None


class Answer(BaseModel):
    """What was found and drawn, or the error of a file that cannot be read."""

    measures: dict[str, Measure] | None = None
    needs: dict[str, str] = {}
    figures: list[tuple[str, str]] = []  # the file's name and the description, for each
    error: str = ""


def main(folder: Path) -> None:
    request = Request.model_validate_json((folder / REQUEST).read_bytes())
    try:
        answer = _answer(request, folder)
    except BadIdea as error:
        answer = Answer(error=str(error))
    write_atomically(folder / ANSWER, answer.model_dump_json())


def _answer(request: Request, folder: Path) -> Answer:
    answer = Answer()
    if request.measures:
        table = _run(request.measures, *request.required)
        answer.measures, answer.needs = table["MEASURES"], table.get("NEEDS", {})
        if unlike := [need for need in answer.needs if not NEED.fullmatch(need)]:
            raise BadIdea(
                f"{request.measures} NEEDS {unlike[0]!r}: write it as 'groups NAME, NAME' or 'extra NAME, NAME'"
            )
    if request.figures:
        draw = _run(request.figures, "draw")["draw"]
        if request.runs is not None:
            answer.figures = _drawn(draw, folder, request.runs)
    return answer


def _run(path: Path, *required: str) -> dict[str, Any]:
    """Run an idea's file and return its globals. Raise BadIdea if it fails or a required name is missing."""
    try:
        variables = idea_files.run_file(path)
    except Exception as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if missing := [name for name in required if name not in variables]:
        raise BadIdea(f"{path} defines no {' and no '.join(missing)}")
    return variables


def _drawn(draw: Any, folder: Path, runs: list[Run]) -> list[tuple[str, str]]:
    import matplotlib

    try:
        with matplotlib.rc_context(figure_style.STYLE):
            return [(figure.name, figure.description) for figure in draw(folder, runs)]
    except Exception as error:  # whatever the code of an idea raises, the notes must be written
        place = traceback.extract_tb(error.__traceback__)[:2][-1]
        reason = f"{type(error).__name__}: {error} ({place.filename} line {place.lineno})"
        return [(NO_FIGURES, f"they could not be drawn: {reason}.")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
