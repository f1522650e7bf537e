"""The files of a job: its order, its outcome, and the setup that all jobs of a study share."""

from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from agent.ideas import Fixed
from agent.lab.evaluation.requests import Request
from agent.lab.files import MIB, BadFile, read_plain, read_plain_text, write_atomically
from agent.lab.results import Work
from agent.lab.verdicts import Verdict
from agent.lab.visible import one_line
from agent.study.budget import START_SECONDS
from agent.study.records import SandboxKind

JOB, TRAINED, OUTCOME = "job.json", "trained.json", "outcome.json"  # in the directory of a job
PROGRESS = "progress"  # likewise: a line on how far it has come
SUBMISSION = "submission"  # likewise, on a cluster: the token of its newest submission
MOST_NOTED = 4096  # bytes of a line that a job leaves
MOST_BYTES = 16 * MIB  # of one of these files


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raise BadFile, FileNotFoundError or ValidationError."""
        return cls.model_validate_json(read_plain(path, MOST_BYTES))


class Setup(_File):
    """The settings that all jobs of a study have in common."""

    study: Path
    fixed: Fixed
    evals: tuple[str, ...]
    device: str | None  # None: the GPU if there is one
    kind: SandboxKind  # the confinement that the driver found; a job is not confined less
    artefacts: Path  # the evaluator's folder in the cache
    exact: bool = True  # a training comes to the same figures to the last digit, as it does on a CPU
    sealed: str = ""  # what the harvest was sealed by when the driver had it hashed


class Training(_File):
    """An experiment to train."""

    source: str
    directory: str  # the run's, beside the script
    seed: int
    timeout: float  # seconds
    smoke_timeout: float | None = None  # seconds for a few steps before it, from the first; None: no test
    start_timeout: float = START_SECONDS  # seconds before that first one
    tokens: int | None = None  # None: the study's
    baseline_smoke: str = ""  # hash of the checkpoint that the baseline's few steps left, if it is known
    resumes: bool = False  # it is known to go on from a saved state as if nothing had happened


class Job(_File):
    """One training with its evaluation, or one of them alone."""

    label: str  # in words
    training: Training | None  # None: the run of `request` is trained already
    request: Request | None  # its run_dir is set to the training's directory; None: nothing is scored
    timeout: float  # seconds for the evaluation


class Outcome(_File):
    """The end of a job. Its figures are in the file that its request names."""

    run_dir: Path  # where the run's files are
    preflight: Verdict | None = None  # why the first steps failed
    training: Verdict | None = None  # why the training failed
    evaluation: Verdict | None = None  # why the evaluation gave no results
    stopped: bool = False  # the evaluation was ended from outside, or by what a user can mend
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    work: Work | None = None  # of the training
    smoke: str = ""  # hash of the checkpoint that the first steps left
    resumes: bool = False  # cut short, these went on from a saved state as if nothing had happened
    digests: dict[str, str] = {}  # of the run's files, by their names in its directory
    remarks: list[str] = []  # for the researcher

    @property
    def failure(self) -> Verdict | None:
        """The first verdict that says why there are no results."""
        return self.preflight or self.training or self.evaluation

    @property
    def seconds(self) -> float:
        """Those of the training and of the evaluation."""
        return self.training_seconds + self.evaluation_seconds


def noted(path: Path) -> str:
    """Return the line that a job left in a file, or "" if there is none."""
    with suppress(FileNotFoundError, BadFile):
        return one_line(read_plain_text(path, MOST_NOTED))
    return ""
