"""A claim of notes and the result of checking it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["supported", "contradicted", "unsupported"]
CheckResult = tuple[Status, str]  # and the evidence


def result(true: bool, evidence: str) -> CheckResult:
    """Return the result of a check that the figures decide."""
    return ("supported" if true else "contradicted", evidence)


@dataclass(frozen=True)
class Finding:
    """A claim, where it stands, its status and the evidence."""

    line: int
    run: int | None
    quote: str
    status: Status
    evidence: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", run {self.run}" if self.run is not None else "")
        return f'{self.status}: {where}: "{self.quote}": {self.evidence}'
