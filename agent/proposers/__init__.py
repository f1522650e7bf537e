"""Where proposals come from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction

if TYPE_CHECKING:
    from agent.ledger import State


class Proposal(BaseModel):
    """What to try next, with the reasons and the predictions recorded before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    description: str
    why: str
    predictions: dict[str, Direction]  # headline metric -> where it should move from the baseline
    source: str  # the whole experiment.py


# A step's name and a headline metric -> how its run came out against the baseline; None while it has no result.
CameOut = Callable[[str, str], Direction | None]


class Proposer(Protocol):
    def propose(self, state: "State", came_out: CameOut) -> Proposal | None:
        """The next proposal, given all that happened so far; None when there is nothing left to try."""
        ...
