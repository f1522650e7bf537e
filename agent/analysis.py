"""An idea's own measures and figures: its analysis.py, as the driver uses it."""

import runpy
from dataclasses import dataclass
from pathlib import Path

from agent.ideas import BadIdea, Idea
from agent.lab.results import Measure
from agent.plots import Draw


@dataclass(frozen=True)
class Analysis:
    """What an idea measures of a run beside the headline metrics, and how it draws it. `path` is for the evaluator."""

    path: Path | None = None
    measures: dict[str, Measure] | None = None
    draw: Draw | None = None


def load(idea: Idea) -> Analysis:
    """The analysis.py of an idea, where it has one. It imports torch only where it measures, which is in the evaluator.

    Raises BadIdea.
    """
    path = idea.analysis
    if path is None:
        return Analysis()
    try:
        defined = runpy.run_path(str(path), run_name="analysis")  # from its source: no bytecode is left beside it
    except Exception as error:
        raise BadIdea(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if missing := [name for name in ("MEASURES", "measure") if name not in defined]:
        raise BadIdea(f"{path} defines no {' and no '.join(missing)}")
    return Analysis(path, defined["MEASURES"], defined.get("draw"))
