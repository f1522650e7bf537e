"""Where proposals come from: the protocol of a proposer. `template` is an idea's plan, `language_model` a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from agent.ideas import Direction
from agent.study.records import Proposal

if TYPE_CHECKING:
    from agent.study.events import Remark
    from agent.study.state import State

# (a step's name, a headline metric) -> which way it went in the step's run; None while that run has no comparison.
ObservedDirection = Callable[[str, str], Direction | None]


class Proposer(Protocol):
    """Decides from the state and the results alone, so that a killed study goes on as if it had not been.

    What a proposer has to remember is an event: it returns one, the ledger records it, and it is asked again.
    """

    def propose(self, state: "State", observed: ObservedDirection, run: int) -> "Proposal | Remark | None":
        """Return a proposal for a run, the next one or one that failed; an event to record before it is asked again;
        or None if it waits for results.

        Raise StudyDone if there is nothing left to try.
        """
        ...

    def describe(self, state: "State", run: int) -> "Remark | None":
        """Return what to record about a run whose result is known, or None if nothing is missing."""
        ...

    def conclude(self, state: "State") -> "Remark | None":
        """Return what to record once no more runs are tried and all comparisons are final, or None if nothing is."""
        ...

    def skipped(self, state: "State", observed: ObservedDirection) -> list[tuple[str, str]]:
        """Return title and reason of each step that is passed over as things stand."""
        ...
