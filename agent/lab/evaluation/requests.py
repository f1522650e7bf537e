"""Requests to the evaluator, one JSON object a line. No torch here: the driver builds them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.lab import features
from agent.lab.errors import UserError

Split = Literal["dev", "test"]
QUICK = ("core", "sparse_probing_sae_probes", "synthetic")  # a model is scored by those that suit its kind
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # bare, so that no other folder is written


class RunRequest(BaseModel):
    """A run directory, and the file in it that the result is written to, whole or not at all.

    A checkpoint whose header names another model, hook or text than the request is refused before any model is loaded.
    By hand they are None, and the header is believed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: Path
    out: FileName = "final_info.json"
    model: str | None = None
    hook_name: str | None = None
    text: str | None = None


class Score(RunRequest):
    """Score the run's checkpoint; the result is a FinalInfo."""

    task: Literal["score"] = "score"
    split: Split = "dev"  # the held-out text of core
    evals: tuple[str, ...] = QUICK  # families, core first
    slice: bool = False  # the smoke test: one batch of core and nothing else
    analysis: Path | None = None  # an idea's analysis.py, whose figures are computed too
    strangers: tuple[Path, ...] = ()  # runs with other seeds, whose weights this one must not have gone on from


class TrySentinels(RunRequest):
    """Score SAEs whose scores are known, beside the trained baseline in `run_dir`; the result is a Sentinels."""

    task: Literal["sentinels"] = "sentinels"


class KeepFeatures(RunRequest):
    """Keep what a person looks at of the run's latents; the result is a Features."""

    task: Literal["features"] = "features"
    out: FileName = features.FILE
    baseline: Path | None = None  # run 0, for a further run
    reseeded: Path | None = None  # the baseline with another seed, for run 0
    tokens: int = Field(default=1_000_000, ge=1)  # at least, where there are as many
    seconds: float = Field(default=120.0, gt=0)  # of looking at text, after which what was seen has to do


AnyRequest = Score | TrySentinels | KeepFeatures
Request = Annotated[AnyRequest, Field(discriminator="task")]
_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Request)


def parse_request(line: str) -> AnyRequest:
    """Parse a line. Raises UserError if it is not a request."""
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"not a request: {line.strip()[:200]} ({field}: {first['msg']})") from None
