"""Where proposals come from."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from agent.ideas import Direction
from agent.lab.verdicts import Verdict

if TYPE_CHECKING:
    from agent.events import Remark
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
    start: int = 0  # the run whose experiment.py was changed
    answer: str = ""  # a language model's, where no experiment could be made of it
    unusable: str = ""  # why not, as the model is told; the source is the unchanged one

    @property
    def refused(self) -> Verdict | None:
        """The verdict on an answer that no experiment could be made of."""
        why = re.split(r"\.\s|\n", self.unusable, maxsplit=1)[0]  # what else it says is for the model
        return Verdict(name="preflight", evidence=f"the answer could not be used: {why}") if why else None


# A step's name and a headline metric -> how its run came out against the baseline; None while it has no result.
CameOut = Callable[[str, str], Direction | None]


class Proposer(Protocol):
    """Decides from the state and the results alone, so that a study that was killed goes on as if it had not been.

    What a proposer has to remember is an event: it returns one, the ledger records it, and it is asked again.
    """

    def propose(self, state: "State", came_out: CameOut) -> "Proposal | Remark | str":
        """The next proposal, given all that happened so far; or something to record before it is asked again; or why
        there is nothing left to try."""
        ...

    def describe(self, state: "State", run: int) -> "Remark | None":
        """What is to be recorded as the description of a run whose result is known; None when nothing is missing."""
        ...

    def skipped(self, state: "State", came_out: CameOut) -> list[tuple[str, str]]:
        """The titles of what is passed over as things stand, and why."""
        ...
