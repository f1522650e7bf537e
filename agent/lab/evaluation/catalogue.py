"""The catalogue of evaluation families: their names, tiers, and the kinds of model that they suit. No torch here.

The families themselves are the modules of `families`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent.lab.errors import UserError, did_you_mean
from agent.lab.evaluation.requests import QUICK
from agent.lab.metrics import METRICS, family_of

# Core comes first: an SAE whose outputs are not finite is scored by no other.
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
    "synthetic",
)
TIERS = {
    "quick": QUICK,
    "standard": ("core", "sparse_probing_sae_probes", "sparse_probing", "tpp", "absorption"),
    "full": NAMES,
}


@dataclass(frozen=True)
class UnmetRequirement:
    """A requirement of a family that is not met, and what to do about it."""

    reason: str  # "the model cannot spell: 3 of 26 letters ..."
    remedy: str  # "use a larger model"


@dataclass(frozen=True)
class EvalTarget:
    """A model and hook to evaluate on, as far as they are known without loading the model."""

    model: str  # its name, as the user gave it
    hook_name: str
    world: bool  # a synthetic world: no text, no tokenizer, known features
    config: Mapping[str, Any]  # the model's config.json; empty for a world, and for a hub model that is not stored
    tokenizer: Callable[[], Any]  # loads the transformers tokenizer; returns None for a world
    folder: Path  # the cache folder of this model and hook
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    text: str = ""  # pinned; "" for the installation's own


class CheckedFamily(BaseModel):
    """A family, and its unmet requirements on a target."""

    name: str
    summary: str
    unmet_requirements: list[UnmetRequirement]


class Report(BaseModel):
    """The families that can run on a model and hook, and the machine. Written by agent.lab.evaluation.doctor."""

    model: str
    hook_name: str
    machine: dict[str, str]  # device, cache, text -> their state
    needs: list[str] = []  # what a study needs beside what there is, in lines
    families: list[CheckedFamily]
    unsuited: list[str]  # families of the tier that do not suit this kind of model
    why_unsuited: str


def suits(name: str, world: bool) -> bool:
    """Return whether a family suits a synthetic world (it has no text) or a language model (no known features)."""
    return name in ("core", "meta_structure", "synthetic") if world else name != "synthetic"


def unsuited_requirement(world: bool) -> UnmetRequirement:
    """Return the requirement that this kind of model fails for every family that does not suit it."""
    if world:
        return UnmetRequirement("a synthetic world has no text and no language model", "use --evals synthetic")
    return UnmetRequirement("the true features of a language model are not known", "use --model synth2k")


def parse_evals(text: str, *more: str) -> tuple[str, ...]:
    """Return the families of `--evals` in catalogue order: a tier or comma-separated names, plus core and `more`.

    Raises UserError for an unknown name.

    >>> parse_evals("tpp, forgetting")
    ('core', 'tpp', 'forgetting')
    """
    families = set(TIERS[text]) if text in TIERS else named_families(text)
    return tuple(name for name in NAMES if name in {"core", *families, *more})


def named_families(text: str) -> set[str]:
    """Return the families that `--evals` names one by one; a tier names none. Raises UserError for an unknown name."""
    names = set() if text in TIERS else {name.strip() for name in text.split(",")}
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown evaluation {name!r}: {did_you_mean(name, [*TIERS, *NAMES])}")
    return names


def measurable(metric: str, world: bool) -> bool:
    """Return whether a metric can have a value on a synthetic world, or on a language model."""
    needs_loss = METRICS[metric].group == "model preservation"
    return suits(family_of(metric), world) and not (world and needs_loss)
