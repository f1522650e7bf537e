"""`agent ideas`: the ideas there are as a table, and one of them in full."""

from typing import TYPE_CHECKING

from agent import ideas
from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.ideas import BadIdea, Idea, Step
from agent.lab.metrics import METRICS

if TYPE_CHECKING:
    from rich.console import Console

CAME_OUT = {"up": "above the baseline's", "down": "below the baseline's", "same": "within the noise of the baseline's"}


def show_all() -> None:
    """Print the ideas there are; one that is broken with what is wrong with it."""
    console = make_console(LONGEST_LINE)
    rows, broken = [], []
    for name in ideas.names():
        try:
            idea = ideas.load(name)
        except BadIdea as error:
            rows.append((name, "broken: see below", ""))
            broken.append(str(error))
        else:
            rows.append((name, idea.title, str(len(idea.plan))))
    print_table(console, ("name", "title", "steps"), rows)
    for error in broken:
        console.print(f"broken: {error}", style="red", soft_wrap=True)


def show_one(name: str) -> None:
    """Print the idea of this name. Raise BadIdea where there is none."""
    print_idea(ideas.load(name))


def print_idea(idea: Idea) -> None:
    """Print an idea with its plan."""
    console = make_console()
    fixed, metric = idea.fixed, METRICS[idea.primary_metric]
    console.print(f"{idea.name}: {idea.title}", style="bold")
    _paragraph(console, idea.description)
    _paragraph(console, f"hypothesis: {idea.hypothesis}")
    smallest = f"{idea.smallest_effect:g} {metric.unit}".rstrip()
    console.print(f"\nprimary metric: {metric.title}, smallest effect worth having {smallest}")
    console.print(
        f"fixed: {fixed.model}, {fixed.hook_name}, {fixed.tokens:,} tokens, d_sae {fixed.d_sae:,}, seed {fixed.seed}, "
        f"evaluations {fixed.evals}"
    )
    if idea.defaults:
        console.print(f"parameters as the baseline has them: {_settings(idea.defaults)}")
    if idea.template is None:
        console.print("no template: it needs --proposer llm", soft_wrap=True)
    if idea.analysis:
        console.print(f"own measures: {idea.analysis}", soft_wrap=True)
    if idea.figures:
        console.print(f"own figures: {idea.figures}", soft_wrap=True)
    for number, step in enumerate(idea.plan, 1):
        _print_step(console, number, step)


def _print_step(console: "Console", number: int, step: Step) -> None:
    console.print(f"\n{number}. {step.title} ({step.name})", style="bold")
    _paragraph(console, step.description, indent=3)
    _paragraph(console, f"why: {step.why}", indent=3)
    predictions = {METRICS[metric].title: direction for metric, direction in step.predictions.items()}
    _paragraph(console, f"predictions: {_settings(predictions) or 'none'}", indent=3)
    if step.parameters:
        _paragraph(console, f"parameters: {_settings(step.parameters)}", indent=3)
    if step.when:
        came_out = f"{METRICS[step.when.metric].title} of {step.when.step} came out {CAME_OUT[step.when.came_out]}"
        _paragraph(console, f"when: {came_out}", indent=3)


def _settings(values: dict) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())


def _paragraph(console: "Console", text: str, indent: int = 0) -> None:
    """Text as long lines, broken where the page ends; as the YAML breaks them says nothing."""
    from rich.padding import Padding

    console.print(Padding(" ".join(text.split()), (0, 0, 0, indent)))
