"""Where proposals come from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from agent.ideas import Direction
from agent.study.records import Proposal

if TYPE_CHECKING:
    from agent.study.events import Remark
    from agent.study.state import State

# A step's name and a headline metric -> how its run came out against the baseline; None while it has no result.
ObservedDirection = Callable[[str, str], Direction | None]


class Proposer(Protocol):
    """Decides from the state and the results alone, so that a study that was killed goes on as if it had not been.

    What a proposer has to remember is an event: it returns one, the ledger records it, and it is asked again.
    """

    def propose(self, state: "State", came_out: ObservedDirection) -> "Proposal | Remark | str":
        """The next proposal, given all that happened so far; or something to record before it is asked again; or why
        there is nothing left to try."""
        ...

    def describe(self, state: "State", run: int) -> "Remark | None":
        """What is to be recorded as the description of a run whose result is known; None when nothing is missing."""
        ...

    def skipped(self, state: "State", came_out: ObservedDirection) -> list[tuple[str, str]]:
        """The titles of what is passed over as things stand, and why."""
        ...
