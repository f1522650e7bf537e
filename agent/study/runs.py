"""A run as notes, figures and tables use it: what the ledger says of it, and its results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.lab import results
from agent.lab.files import BadFile
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow
from agent.study.run_state import RunState


@dataclass(frozen=True)
class Run:
    """A run with what the ledger says of it and what was measured."""

    state: RunState
    directory: Path
    info: FinalInfo | None  # None until the run is done

    @property
    def number(self) -> int:
        return self.state.number

    @property
    def counts(self) -> bool:
        """True if the run is done and its verdict is ok."""
        return self.info is not None and self.info.verdict.ok

    def metrics(self) -> list[MetricsRow]:
        """Return the training history; empty if its file is damaged, which the verdict of the run then says."""
        try:
            return results.read_metrics(self.directory)
        except BadFile:
            return []

    def kept(self, name: str) -> dict[str, Any]:
        """Return the JSON file `name` that the `measure` of the idea has saved for its `draw`; {} if there is none."""
        return results.read_kept(self.directory / "eval/analysis" / name)
