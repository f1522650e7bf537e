"""The template proposer: the baseline, then each step of the idea's plan in its order, once."""

from collections.abc import Container
from pathlib import Path

from agent import TEMPLATES
from agent.ideas import BadIdea, Fixed, Idea, Step, When, render_baseline, render_step
from agent.lab.metrics import METRICS
from agent.proposers import ObservedDirection
from agent.study.outcomes import StudyDone
from agent.study.records import Proposal
from agent.study.state import State

WENT = {"up": "went up", "down": "went down", "same": "stayed within the noise of the baseline's"}


def baseline_proposal(fixed: Fixed, rate: float | None = None) -> Proposal:
    """Return run 0, with the learning rate that the study has found, if any. Raise BadIdea if it cannot be rendered."""
    return Proposal(
        name="baseline",
        title="Baseline",
        description="The baseline experiment, without any change.",
        why="Every other run is compared with it.",
        predictions={},
        source=render_baseline(fixed, rate=rate),
    )


class TemplateProposer:
    """Proposes the steps of an idea's plan, all rendered at once so that a broken template is known at the start."""

    def __init__(self, idea: Idea, fixed: Fixed, templates: Path = TEMPLATES) -> None:
        """Raise BadIdea if the idea has no template, or a step cannot be rendered."""
        if idea.template is None:
            raise BadIdea(
                f"{idea.name} has a plan in words and no experiment.py.j2: it needs --proposer llm --llm MODEL"
            )
        self.idea, self.fixed, self.templates = idea, fixed, templates
        self.steps = {step.name: step for step in idea.plan}
        self.plan = [self._proposal(step) for step in idea.plan]

    def _proposal(self, step: Step, rate: float | None = None) -> Proposal:
        return Proposal(
            name=step.name,
            title=step.title,
            description=step.description.strip(),
            why=step.why.strip(),
            predictions=step.predictions,
            source=render_step(self.idea, step, self.fixed, self.templates, rate=rate),
        )

    def propose(self, state: State, observed: ObservedDirection, run: int) -> Proposal | None:  # noqa: ARG002
        """Return the first step that was neither tried nor is passed over, or None if it depends on runs that are not
        through. Raise StudyDone after the last.

        A step whose condition is not decided keeps its place in the budget of runs, so that the steps that are tried
        do not depend on how many runs are trained at once.
        """
        done = settled(state)
        passed_over = self._passed_over(done, observed)
        over, decided = tried(state) | passed_over.keys(), done | passed_over.keys()
        places = state.started.max_runs - state.runs_begun
        undecided = 0
        for proposal in self.plan:
            when = self.steps[proposal.name].when
            if proposal.name in over:
                continue
            if when and when.step not in decided:
                undecided += 1
            elif undecided == 0 or places > undecided:
                return self._proposal(self.steps[proposal.name], state.learning_rate)
        if undecided:
            return None
        raise StudyDone("the plan ended")

    def describe(self, state: State, run: int) -> None:
        """Return None: the plan's own descriptions say it all."""

    def conclude(self, state: State) -> None:
        """Return None: the rules of the idea say what follows."""

    def skipped(self, state: State, observed: ObservedDirection) -> list[tuple[str, str]]:
        """Return title and reason of each step that is passed over as things stand."""
        passed_over, over = self._passed_over(settled(state), observed), tried(state)
        return [(self.steps[name].title, why) for name, why in passed_over.items() if name not in over]

    def _passed_over(self, done: set[str], observed: ObservedDirection) -> dict[str, str]:
        """Return the steps whose condition does not hold and never will, with the reason; others are `done`."""
        passed_over: dict[str, str] = {}
        for step in self.steps.values():
            if step.when and (why := self._why_not(step.when, done, passed_over, observed)):
                passed_over[step.name] = why
        return passed_over

    def _why_not(
        self, when: When, done: set[str], passed_over: Container[str], observed: ObservedDirection
    ) -> str | None:
        """Return why a condition does not hold, or None if it does or still may."""
        metric, title = METRICS[when.metric].title, self.steps[when.step].title
        direction = observed(when.step, when.metric)
        if direction == when.observed_direction:
            return None
        if direction:
            wanted = WENT[when.observed_direction]
            return f"it is tried only if the {metric} of {title!r} {wanted}; it {WENT[direction]}"
        if when.step in done:
            return f"it needs a comparison of {title!r} with the baseline, and there is none"
        if when.step in passed_over:
            return f"it needs a comparison of {title!r} with the baseline, and that was not tried"
        return None


def settled(state: State) -> set[str]:
    """Return the names of the proposals of which no more will be known: those that failed, and runs whose comparison
    is final."""
    through = [run for run in state.runs if run.stage == "done" and not run.awaits_comparison]
    return (tried(state) - {run.proposal.name for run in state.runs}) | {run.proposal.name for run in through}


def tried(state: State) -> set[str]:
    """Return the names of all proposals so far."""
    failed = {failure.proposal.name for run in state.runs for failure in run.failed_attempts.values()}
    return failed | {run.proposal.name for run in state.runs}
