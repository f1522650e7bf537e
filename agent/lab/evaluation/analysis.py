"""An idea's own measures: templates/ideas/NAME/analysis.py, run on a checkpoint that the evaluator has checked."""

import runpy
from pathlib import Path

from agent.lab.evaluation.examination import Examination


def measure(path: Path, exam: Examination) -> dict[str, float]:
    """What the file's `measure(exam)` gives.

    Raises LookupError for a figure that the file's MEASURES does not name, and whatever the file raises.
    """
    defined = runpy.run_path(str(path), run_name="analysis")  # from its source: no bytecode is left beside it
    figures = defined["measure"](exam)
    if unknown := sorted(set(figures) - set(defined["MEASURES"])):
        raise LookupError(f"{path}: measure gives {unknown[0]!r}, which is not in MEASURES")
    return {name: float(figure) for name, figure in figures.items()}
