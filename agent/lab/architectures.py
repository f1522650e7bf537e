"""The kinds of SAE that a study's baseline may be, each a template in templates/baselines. No torch here."""

from dataclasses import dataclass
from typing import Literal

BaselineName = Literal["batchtopk", "topk", "jumprelu", "gated", "relu", "matryoshka"]


@dataclass(frozen=True)
class Architecture:
    """A kind of SAE, and the constant of its template that moves its L0."""

    title: str
    knob: str  # K, near which L0 lies, or L1_COEFFICIENT, with which it falls
    whole: bool = False  # the knob can only be a whole number


BASELINES: dict[BaselineName, Architecture] = {
    "batchtopk": Architecture("BatchTopK", "K"),
    "topk": Architecture("TopK", "K", whole=True),
    "jumprelu": Architecture("JumpReLU", "K"),
    "gated": Architecture("Gated", "L1_COEFFICIENT"),
    "relu": Architecture("ReLU + L1", "L1_COEFFICIENT"),
    "matryoshka": Architecture("Matryoshka BatchTopK", "K"),
}
