"""An idea's own measures: templates/ideas/NAME/analysis.py, run on a checkpoint that the evaluator has checked."""

import runpy
from pathlib import Path

from torch import Tensor

from agent.lab.checkpoint import Checkpoint


def measure(path: Path, checkpoint: Checkpoint, activations: Tensor) -> dict[str, float]:
    """What the file's `measure(checkpoint, activations)` gives; `activations [tokens, d_in]` are the model's own.

    Raises LookupError for a figure that the file's MEASURES does not name, and whatever the file raises.
    """
    defined = runpy.run_path(str(path), run_name="analysis")  # from its source: no bytecode is left beside it
    figures = defined["measure"](checkpoint, activations)
    if unknown := sorted(set(figures) - set(defined["MEASURES"])):
        raise LookupError(f"{path}: measure gives {unknown[0]!r}, which is not in MEASURES")
    return {name: float(figure) for name, figure in figures.items()}
