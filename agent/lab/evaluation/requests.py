"""What the evaluator is asked, one JSON object a line. No torch here: the driver builds them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.lab.errors import UserError

Split = Literal["dev", "test"]
QUICK = ("core", "sparse_probing_sae_probes", "synthetic")  # of which a model has those that suit it
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # bare: nothing is written elsewhere


class RunRequest(BaseModel):
    """The run that a request is about, and the file in it that the answer appears as, whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: Path
    out: FileName = "final_info.json"


class Score(RunRequest):
    """Score the run's checkpoint; the answer is a FinalInfo."""

    task: Literal["score"] = "score"
    split: Split = "dev"  # the held-out text of core
    evals: tuple[str, ...] = QUICK  # families, core first
    slice: bool = False  # one batch of core and nothing else, to see that it works
    analysis: Path | None = None  # an idea's analysis.py, whose measures are taken too


class TrySentinels(RunRequest):
    """Try the evaluator on SAEs whose scores are known; the run is a trained baseline, the answer a Sentinels."""

    task: Literal["sentinels"] = "sentinels"


Request = Annotated[Score | TrySentinels, Field(discriminator="task")]
_REQUEST: TypeAdapter[Score | TrySentinels] = TypeAdapter(Request)


def parse_request(line: str) -> Score | TrySentinels:
    """A request from its line. Raises UserError."""
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"no request: {line.strip()[:200]} ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from None
