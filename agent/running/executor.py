"""Where jobs run. A job is a directory with its specification, job.json; once it has run it holds outcome.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agent.lab.verdicts import Verdict


@dataclass(frozen=True)
class Status:
    """How a job stands."""

    state: Literal["waiting", "running", "ended"]
    words: str = ""  # for the researcher: "pending: Resources", "running on n1"
    verdict: Verdict | None = None  # of a job that ended and left no outcome: why; None: it left one


class NotSubmitted(Exception):
    """The scheduler refused a job, in its own words. If the queue is `full`, another try may succeed later."""

    def __init__(self, reason: str, full: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.full = reason, full


class Executor(Protocol):
    """The contract that local slots and SLURM keep; docs/clusters.md says how another one would."""

    jobs_outlive_driver: bool

    def submit(self, job: Path) -> str:
        """Start the job of a directory and return its id. Raise NotSubmitted."""
        ...

    def reattach(self, job: Path, id: str) -> None:
        """Take up a job that an earlier driver submitted; `id` is "" if it died before it had noted one."""
        ...

    def poll(self) -> dict[Path, Status]:
        """Return how each job that was submitted or reattached stands; an ended one is forgotten once returned."""
        ...

    def cancel(self, job: Path) -> None:
        """End a job."""
        ...

    def close(self) -> None:
        """Let go: end what must not outlive the driver."""
        ...
