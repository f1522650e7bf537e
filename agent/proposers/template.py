"""The template proposer: the baseline, and the steps of the idea's plan in their order, each tried once."""

from collections.abc import Container
from pathlib import Path

from agent import TEMPLATES
from agent.ideas import BadIdea, Fixed, Idea, When, render_baseline, render_step
from agent.lab.metrics import METRICS
from agent.proposers import ObservedDirection
from agent.study.records import Proposal
from agent.study.state import State

WENT = {"up": "went up", "down": "went down", "same": "stayed within the noise of the baseline's"}


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
        if idea.template is None:
            raise BadIdea(
                f"{idea.name} has a plan in words and no experiment.py.j2: it needs --proposer llm --llm MODEL"
            )
        self.steps = {step.name: step for step in idea.plan}
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

    def propose(self, state: State, came_out: ObservedDirection) -> Proposal | str:
        done = tried(state)
        passed_over = self._passed_over(done, came_out)
        left = (proposal for proposal in self.plan if proposal.name not in done | passed_over.keys())
        return next(left, "the plan ended")

    def describe(self, state: State, run: int) -> None:
        """Nothing: the plan's own descriptions say it all."""

    def skipped(self, state: State, came_out: ObservedDirection) -> list[tuple[str, str]]:
        """The titles of the steps that are passed over as things stand, and why."""
        running = {run.proposal.name for run in state.runs if run.stage != "done"}
        passed_over = self._passed_over(tried(state) - running, came_out)
        return [(self.steps[name].title, why) for name, why in passed_over.items() if name not in tried(state)]

    def _passed_over(self, done: set[str], came_out: ObservedDirection) -> dict[str, str]:
        """The steps whose condition does not hold and will not, and why. `done`: the steps that were tried."""
        passed_over: dict[str, str] = {}
        for step in self.steps.values():
            if step.when and (why := self._why_not(step.when, done, passed_over, came_out)):
                passed_over[step.name] = why
        return passed_over

    def _why_not(
        self, when: When, done: set[str], passed_over: Container[str], came_out: ObservedDirection
    ) -> str | None:
        """Why a condition does not hold; None where it does, or may yet."""
        metric, title = METRICS[when.metric].title, self.steps[when.step].title
        came = came_out(when.step, when.metric)
        if came == when.came_out:
            return None
        if came:
            return f"for when the {metric} of {title!r} {WENT[when.came_out]}; it {WENT[came]}"
        if when.step in done:
            return f"it needs a comparison of {title!r} with the baseline, and there is none"
        if when.step in passed_over:
            return f"it needs a comparison of {title!r} with the baseline, and that was not tried"
        return None


def tried(state: State) -> set[str]:
    """The names of all proposals so far."""
    failed = {failure.proposal.name for run in state.runs for failure in run.failed_attempts.values()}
    return failed | {run.proposal.name for run in state.runs}
