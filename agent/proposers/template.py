"""The template proposer: the baseline, and the steps of the idea's plan in their order, each tried once."""

from pathlib import Path

from agent.ideas import TEMPLATES, Fixed, Idea, render_baseline, render_step
from agent.proposers import Proposal
from agent.state import State


def baseline(fixed: Fixed, templates: Path = TEMPLATES) -> Proposal:
    """Run 0. Raises BadIdea."""
    return Proposal(
        name="baseline",
        title="Baseline",
        description="The baseline experiment, without any change.",
        why="Every other run is read beside it.",
        predictions={},
        source=render_baseline(fixed, templates=templates),
    )


class TemplateProposer:
    """Renders the whole plan at once, so that a broken template is known before any time is spent."""

    def __init__(self, idea: Idea, fixed: Fixed, templates: Path = TEMPLATES) -> None:
        """Raises BadIdea."""
        self.plan = [
            Proposal(
                name=step.name,
                title=step.title,
                description=step.description.strip(),
                why=step.why.strip(),
                predictions=step.predictions,
                source=render_step(idea, step, fixed, templates),
            )
            for step in idea.plan
        ]

    def propose(self, state: State) -> Proposal | None:
        tried = {run.proposal.name for run in state.runs}
        return next((proposal for proposal in self.plan if proposal.name not in tried), None)
