"""An idea's own measures and figures, as the driver uses them: the table in measures.py and `draw` of figures.py."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.ideas import BadIdea, Idea
from agent.lab.evaluation import idea_files
from agent.lab.files import MIB, read_plain
from agent.lab.results import Measure
from agent.report.plots import Draw


@dataclass(frozen=True)
class Analysis:
    """An idea's own measures and figures. `path` is its analysis.py, which only the evaluator runs."""

    path: Path | None = None
    measures: dict[str, Measure] | None = None
    draw: Draw | None = None


def load(idea: Idea) -> Analysis:
    """Return the MEASURES and the `draw` of an idea, as far as it has them. Raise BadIdea if a file is broken.

    An analysis.py beside a measures.py is parsed and not run, as it may import torch. In an older idea MEASURES are in
    analysis.py, which then imports no torch at its top.
    """
    measures = draw = None
    if idea.measures:
        required = ["MEASURES", "measure"] if idea.measures == idea.analysis else ["MEASURES"]
        measures = _run(idea.measures, *required)["MEASURES"]
        _check_analysis(idea.folder / "analysis.py")
    if idea.figures:
        draw = _run(idea.figures, "draw")["draw"]
    return Analysis(idea.analysis, measures, draw)


def _run(path: Path, *required: str) -> dict[str, Any]:
    """Run an idea's file and return its globals. Raise BadIdea if it fails or a required name is missing."""
    try:
        variables = idea_files.run_file(path)
    except Exception as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if missing := [name for name in required if name not in variables]:
        raise BadIdea(f"{path} defines no {' and no '.join(missing)}")
    return variables


def _check_analysis(path: Path) -> None:
    """Raise BadIdea if this analysis.py is missing, cannot be parsed or defines no function `measure`."""
    try:
        body = ast.parse(read_plain(path, MIB)).body
    except FileNotFoundError:
        raise BadIdea(f"{path} is missing: it computes the figures that measures.py names") from None
    except (SyntaxError, ValueError) as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in body):
        raise BadIdea(f"{path} defines no measure")
