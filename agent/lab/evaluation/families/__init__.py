"""The evaluation families, one file each; `catalogue` lists them."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE
    from agent.lab.results import FamilyScores


class Family(Protocol):
    """A module of this package. `core` and `sparse_probing_sae_probes`, whose figures have records of their own, are
    scored by the evaluator itself and have no `score`."""

    SUMMARY: str  # what it measures, in one line

    def unmet_requirements(self, place: EvalTarget) -> list[UnmetRequirement]:
        """What is missing for it to run on a kind of model that suits it; empty where it is runnable."""
        ...

    def score(self, evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> "FamilyScores":
        """Score one SAE. `out` is a new folder of the run's, where SAE-Bench's own JSON is kept; `name` is the SAE's,
        by its content, so that no two SAEs share a cached result. What depends on the model alone is made once and
        kept under `evaluator.folder`. Raises EvaluationError, or whatever SAE-Bench raises: the row says why.
        """
        ...


def load(name: str) -> Family:
    """A family by name."""
    return importlib.import_module(f"agent.lab.evaluation.families.{name}")  # type: ignore[return-value]
