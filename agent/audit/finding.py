"""A claim of notes and what it comes to."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "contradicted", "unsupported"]
Judged = tuple[Verdict, str]  # and the evidence


@dataclass(frozen=True)
class Finding:
    """A claim, where it stands, and what it comes to."""

    line: int
    run: int | None
    quote: str
    verdict: Verdict
    evidence: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", run {self.run}" if self.run is not None else "")
        return f'{self.verdict}: {where}: "{self.quote}": {self.evidence}'
