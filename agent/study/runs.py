"""A run as its readers see it: the ledger's view and the results together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.lab import results
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow
from agent.study.state import RunState


@dataclass(frozen=True)
class Run:
    """A run as its readers see it: what the ledger says of it, and what was measured."""

    state: RunState
    directory: Path
    info: FinalInfo | None  # None until the run is done

    @property
    def number(self) -> int:
        return self.state.number

    @property
    def counts(self) -> bool:
        """Whether this run has a result."""
        return self.info is not None and self.info.verdict.ok

    def metrics(self) -> list[MetricsRow]:
        """The training history; empty where its file is damaged, which the run's verdict says."""
        try:
            return results.read_metrics(self.directory)
        except results.BadResults:
            return []

    def kept(self, name: str) -> dict[str, Any]:
        """What the idea's `measure` left for its `draw` in the file `name`, as JSON; empty where there is none."""
        return results.read_kept(self.directory / "eval/analysis" / name)
