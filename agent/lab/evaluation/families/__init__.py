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
    """A module of this package.

    `core` and `sparse_probing_sae_probes` have no `score`: scoring.py scores them into records of their own.
    """

    SUMMARY: str  # what it measures, in one line

    def unmet_requirements(self, target: EvalTarget) -> list[UnmetRequirement]:
        """Return what is missing to run on a model of a kind that suits the family, within a second and without
        loading the model; an empty list if it can run.
        """
        ...

    def score(self, evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> "FamilyScores":
        """Score one SAE.

        `out` is an empty folder of the run's for SAE-Bench's own JSON. `name` is the SAE's, by its content, so that no
        two SAEs share a cached result. What depends on the model alone is cached in `evaluator.folder`. Raises
        EvaluationError, or whatever SAE-Bench raises; the run's results keep the reason.
        """
        ...


def load(name: str) -> Family:
    """Import a family by name."""
    return importlib.import_module(f"agent.lab.evaluation.families.{name}")  # type: ignore[return-value]
