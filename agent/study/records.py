"""The records that events carry: proposals, planned runs, baselines, references, confinement, the language model."""

import math
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction
from agent.lab.results import Imported
from agent.lab.verdicts import Verdict
from agent.lab.visible import Line, Prose

SandboxWish = Literal["required", "auto", "off"]
TrackerName = Literal["wandb"]
SandboxKind = Literal["none", "landlock", "bubblewrap"]  # the weaker first


class Confinement(BaseModel):
    """Whether and how the processes of a study are kept from everything that is not theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wish: SandboxWish
    kind: SandboxKind
    sentence: str  # as it stands in the notes


class Proposal(BaseModel):
    """An edited experiment.py to run next, with the reasons and predictions recorded before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Line
    title: Line
    description: Prose
    why: Prose
    predictions: dict[str, Direction]  # headline metric -> direction from the baseline
    source: str  # the whole experiment.py
    planned: Prose = ""  # what a language model's plan had said of it
    start: int = 0  # the run whose experiment.py was changed
    mended: Prose = ""  # the reason of this attempt, where an earlier one had failed; `why` is the run's
    answer: Prose = ""  # of a language model, if it could not be used
    unusable: Prose = ""  # the reason, written for the model; `source` is then unchanged

    @property
    def refused(self) -> Verdict | None:
        """The verdict on an answer that could not be used, or None."""
        why = re.split(r"\.\s|\n", self.unusable, maxsplit=1)[0]  # the rest is for the model
        return Verdict(name="preflight", evidence=f"the answer could not be used: {why}") if why else None


class PlannedRun(BaseModel):
    """A run in a language model's plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Line
    what: Prose  # what to change, and why
    start: int  # the run whose experiment.py is changed


class RateTry(BaseModel):
    """A training of the baseline with a learning rate that a study tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float
    error: (
        float | None
    )  # mean squared error at its end, or the loss, on scaled activations; None: it did not come there
    why_not: Line = ""  # its verdict, if there is no error


class Baseline(BaseModel):
    """A baseline's knob (its K or L1 coefficient), seed and figures (metric name -> value)."""

    model_config = ConfigDict(frozen=True)

    k: float
    seed: int
    figures: dict[str, float | None]

    @property
    def l0(self) -> float:
        """L0, or NaN if it was not measured or is none."""
        l0 = self.figures.get("l0")
        return l0 if l0 and l0 > 0 else math.nan


class Reference(BaseModel):
    """An SAE that was trained elsewhere, as it was imported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Line  # by which it is known in the study, and its directory is called
    d_sae: int
    imported: Imported


class LanguageModel(BaseModel):
    """The language model that proposes runs, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Line
    max_tokens: int | None = None
    max_cost: float | None = None  # dollars
    prices: tuple[float, float] | None = None  # dollars per million tokens of input and of output
    window: int | None = None  # context window, tokens; None: looked up by the model's name
    answer: int | None = None  # tokens of the longest answer; None: the client's own
    stream: bool = False  # ask for answers piece by piece
    command: Line | None = None  # a program that is asked in place of a server
    replay: Path | None = None  # a transcript whose answers are replayed
