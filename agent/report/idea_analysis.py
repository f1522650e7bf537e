"""An idea's own measures and figures: its analysis.py and its figures.py, as the driver uses them."""

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.ideas import BadIdea, Idea
from agent.lab.results import Measure
from agent.report.plots import Draw


@dataclass(frozen=True)
class Analysis:
    """What an idea measures of a run beside the headline metrics, and how it draws it. `path` is for the evaluator."""

    path: Path | None = None
    measures: dict[str, Measure] | None = None
    draw: Draw | None = None


def load(idea: Idea) -> Analysis:
    """The MEASURES of an idea's analysis.py and the `draw` of its figures.py, where it has them.

    Neither imports torch, which analysis.py does only where it measures, in the evaluator. Raises BadIdea.
    """
    measures = _read(idea.analysis, "MEASURES", "measure")["MEASURES"] if idea.analysis else None
    draw = _read(idea.figures, "draw")["draw"] if idea.figures else None
    return Analysis(idea.analysis, measures, draw)


def _read(path: Path, *names: str) -> dict[str, Any]:
    """What a file defines, which must be these names among others."""
    try:
        defined = runpy.run_path(str(path), run_name=path.stem)  # from its source: no bytecode is left beside it
    except Exception as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if missing := [name for name in names if name not in defined]:
        raise BadIdea(f"{path} defines no {' and no '.join(missing)}")
    return defined
