"""What the evaluator keeps of a run's latents for a person to look at: contexts, effects, neighbours. No torch here."""

import base64
import gzip
import io
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from agent.lab.files import MIB, BadFile, read_plain, write_atomically
from agent.lab.verdicts import Count

FILE = "features.json.gz"  # in a run's directory
MOST_BYTES, MOST_UNPACKED = 16 * MIB, 128 * MIB
FEW = 10  # a latent that fired on fewer tokens is known by too little, and says so
SAME = 0.7  # cosine of two decoder rows from which they count as the same latent


class Context(BaseModel):
    """A stretch of text with a latent's activation on each of its tokens; on a world, one sample without text."""

    tokens: list[str]
    activations: list[float]  # as long as tokens; 0 where the latent is silent
    peak: Count  # index of the token that the stretch was chosen for


class Neighbour(BaseModel):
    """Another latent, and how close it is."""

    latent: Count
    value: float


class TrueFeature(BaseModel):
    """The feature of a world that a latent follows."""

    feature: Count
    cosine: float  # of the decoder row and the feature's direction
    f1: float | None = None  # of the latent as a detector of the feature
    parents: list[int] = []  # from the feature's own parent up to its root


class Feature(BaseModel):
    """One latent."""

    latent: Count
    labels: list[str] = []  # what the idea calls it: "tier 2, composed of 17, 40"
    related: list[int] = []  # latents that the idea relates it to
    fired: Count  # tokens on which it is active
    density: float  # their share
    max_activation: float
    histogram: list[int] = []  # of its activations where it fires, equal bins from 0 to max_activation
    top: list[Context]
    spread: list[Context]  # weaker activations, from the stronger to the weaker
    promoted: list[tuple[str, float]] = []  # tokens whose logits its decoder row raises most, by its direct effect
    suppressed: list[tuple[str, float]] = []
    near: list[Neighbour] = []  # by the cosine of decoder rows
    fires_with: list[Neighbour] = []  # by the correlation of firing
    true_feature: TrueFeature | None = None
    in_baseline: Neighbour | None = None  # the baseline's latent with the closest decoder row, and the cosine


class Turnover(BaseModel):
    """How many latents of two SAEs have no counterpart in the other: no decoder row with a cosine of SAME or more."""

    of: str  # in words: "run 3 and the baseline", "two seeds of the baseline"
    compared: Count  # latents of the first that fired at least FEW times, or a seeded sample of them
    appeared: float  # share of the first's that the second lacks
    lost: float  # share of the second's that the first lacks


class Features(BaseModel):
    """A seeded sample of a run's latents, those that its idea names, and the counterparts of the baseline's sample."""

    format_version: Literal[1] = 1
    text: str  # in words: what they were looked at on
    tokens: Count  # how many tokens, or samples of a world, that is
    d_sae: Count
    alive: Count  # latents that fired at least once
    direct_effect: str = ""  # why promoted and suppressed are left out, or "" if they are not
    sampled: list[int]  # the latents of the sample; the other features are named ones or counterparts
    features: list[Feature]  # by latent
    W_dec: str = ""  # base64 of float16 [features, d_in]: their decoder rows, of norm 1
    turnover: list[Turnover] = []  # against the baseline first, then between two seeds of the baseline

    def rows(self) -> bytes:
        """Return the decoder rows as float16, row after row."""
        return base64.b64decode(self.W_dec)


def write(run_dir: Path, features: Features) -> None:
    """Write a run's features, whole or not at all."""
    write_atomically(run_dir / FILE, gzip.compress(features.model_dump_json().encode(), mtime=0))


def read(run_dir: Path) -> Features | None:
    """Return a run's features, or None if it has none. Raise BadFile if they cannot be read."""
    path = run_dir / FILE
    try:
        packed = read_plain(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            text = file.read(MOST_UNPACKED + 1)
        if len(text) > MOST_UNPACKED:
            raise BadFile(f"{path} unpacks to more than {MOST_UNPACKED // MIB} MiB")
        return Features.model_validate_json(text)
    except (OSError, EOFError, ValidationError) as error:
        raise BadFile(f"{path} is damaged: {str(error).splitlines()[0]}") from None
