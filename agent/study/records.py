"""The records that events carry: proposals, planned runs, baselines."""

import math
import re

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction
from agent.lab.verdicts import Verdict


class Proposal(BaseModel):
    """What to try next, with the reasons and the predictions recorded before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    description: str
    why: str
    predictions: dict[str, Direction]  # headline metric -> where it should move from the baseline
    source: str  # the whole experiment.py
    start: int = 0  # the run whose experiment.py was changed
    answer: str = ""  # a language model's, where no experiment could be made of it
    unusable: str = ""  # why not, as the model is told; the source is the unchanged one

    @property
    def refused(self) -> Verdict | None:
        """The verdict on an answer that no experiment could be made of."""
        why = re.split(r"\.\s|\n", self.unusable, maxsplit=1)[0]  # what else it says is for the model
        return Verdict(name="preflight", evidence=f"the answer could not be used: {why}") if why else None


class PlannedRun(BaseModel):
    """A run that a language model means to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    what: str  # to change, and why
    start: int  # the run whose experiment.py is changed


class Baseline(BaseModel):
    """A baseline's K, seed and figures (metric name -> value)."""

    model_config = ConfigDict(frozen=True)

    k: float
    seed: int
    figures: dict[str, float | None]

    @property
    def l0(self) -> float:
        return self.figures["l0"] or math.nan
