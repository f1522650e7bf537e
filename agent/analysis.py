"""An idea's own measures and figures: its analysis.py, as the driver uses it."""

import importlib.util
import sys
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
    spec = importlib.util.spec_from_file_location(f"analysis_of_{idea.name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadIdea(f"{path} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.dont_write_bytecode = before
    if missing := [name for name in ("MEASURES", "measure") if not hasattr(module, name)]:
        raise BadIdea(f"{path} defines no {' and no '.join(missing)}")
    return Analysis(path, module.MEASURES, getattr(module, "draw", None))
