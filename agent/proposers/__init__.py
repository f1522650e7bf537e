"""Where proposals come from."""

from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction

if TYPE_CHECKING:
    from agent.state import State


class Proposal(BaseModel):
    """What to try next, with the reasons and the predictions recorded before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    description: str
    why: str
    predictions: dict[str, Direction]  # headline metric -> where it should move from the baseline
    source: str  # the whole experiment.py


class Proposer(Protocol):
    def propose(self, state: "State") -> Proposal | None:
        """The next proposal, given all that happened so far; None when there is nothing left to try."""
        ...
