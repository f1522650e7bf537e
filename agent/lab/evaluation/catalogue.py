"""The evaluation families: what each needs, and how it scores an SAE.

Each is a module of this package that is a `Family`. What it needs is asked before any time is spent, by `agent doctor`
and by every study, so `unmet_requirements` must know all of it from an `EvalTarget`, in a second, without loading a model.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from agent.lab.errors import UserError, nearest
from agent.lab.evaluation.requests import QUICK
from agent.lab.metrics import METRICS, family_of

if TYPE_CHECKING:
    pass

# Core comes first: the others are not asked of an SAE whose outputs are not finite.
NAMES = (
    "core",
    "sparse_probing_sae_probes",
    "sparse_probing",
    "tpp",
    "absorption",
    "scr",
    "forgetting",
    "meta_structure",
    "autointerp",
    "unlearning",
    "ravel",
    "synthetic",
)
TIERS = {
    "quick": QUICK,
    "standard": ("core", "sparse_probing_sae_probes", "sparse_probing", "tpp", "absorption"),
    "full": NAMES,
}


@dataclass(frozen=True)
class UnmetRequirement:
    """A precondition that is not met."""

    reason: str  # "the model cannot spell: 3 of 26 letters ..."
    remedy: str  # "use a larger model"


@dataclass(frozen=True)
class EvalTarget:
    """Where an evaluation would run, as far as that is known without loading a model."""

    model: str  # its name, as the user gave it
    hook_name: str
    world: bool  # a synthetic world: no text, no tokenizer, the truth is known
    config: Mapping[str, Any]  # the model's config.json; empty for a world, and for a hub model that is not stored
    tokenizer: Callable[[], Any]  # loads it (a transformers tokenizer); None for a world
    folder: Path  # where evaluation artefacts of this model and hook are cached
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


class CheckedFamily(BaseModel):
    """A family, and what it lacks somewhere."""

    name: str
    summary: str
    unmet_requirements: list[UnmetRequirement]


class Report(BaseModel):
    """What can be evaluated at a place. Written by agent.lab.evaluation.doctor."""

    model: str
    hook_name: str
    machine: dict[str, str]  # what there is of it -> how it stands
    families: list[CheckedFamily]
    unsuited: list[str]  # of the tier, what cannot be asked of this kind of model
    why_unsuited: str


def suits(name: str, world: bool) -> bool:
    """Whether a family can be asked of this kind of model at all: a world has no text, a language model no truth."""
    return name in ("core", "meta_structure", "synthetic") if world else name != "synthetic"


def unsuited_requirement(world: bool) -> UnmetRequirement:
    """What this kind of model lacks for the families that do not suit it."""
    if world:
        return UnmetRequirement("a synthetic world has no text and no language model", "use --evals synthetic")
    return UnmetRequirement("the true features of a language model are not known", "use --model synth2k")


def parse_evals(text: str, *more: str) -> tuple[str, ...]:
    """The families that `--evals` names: a tier, or names with commas between them; core always, and `more`.

    Raises UserError.
    """
    asked = set(TIERS[text]) if text in TIERS else named_families(text)
    return tuple(name for name in NAMES if name in {"core", *asked, *more})


def named_families(text: str) -> set[str]:
    """The families that `--evals` names one by one: none where it names a tier. Raises UserError."""
    asked = set() if text in TIERS else {name.strip() for name in text.split(",")}
    for name in asked:
        if name not in NAMES:
            raise UserError(f"unknown evaluation {name!r}: {nearest(name, [*TIERS, *NAMES])}")
    return asked


def measurable(name: str, world: bool) -> bool:
    """Whether a metric can have a value on a synthetic world, or on a language model."""
    lost = world and METRICS[name].group == "model preservation"  # there is no loss
    return suits(family_of(name), world) and not lost
