"""`agent ideas`: a table of the ideas, or one idea in full."""

from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from agent import TEMPLATES, ideas
from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.ideas import BadIdea, Idea, Step
from agent.lab.metrics import METRICS

OBSERVED = {"up": "above the baseline's", "down": "below the baseline's", "same": "within the noise of the baseline's"}


def print_ideas() -> None:
    """Print a table of the ideas, those in folders of the current one too, with the errors of broken ones below it."""
    console = make_console(LONGEST_LINE)
    rows, broken = [], []
    for name in [*ideas.idea_names(), *_ideas_here()]:
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


def _ideas_here() -> list[str]:
    """Return the paths, as --idea takes them, of the user's own ideas that lie in the current folder."""
    folders = [path.parent for path in sorted(Path().glob("*/idea.yaml"))]
    return [f"./{folder}" for folder in folders if folder.resolve().parent != TEMPLATES / "ideas"]


def print_idea(idea: Idea) -> None:
    """Print an idea with its plan."""
    console = make_console()
    fixed, metric = idea.fixed, METRICS[idea.primary_metric]
    console.print(f"{idea.name}: {idea.title}", style="bold")
    _print_paragraph(console, idea.description)
    _print_paragraph(console, f"hypothesis: {idea.hypothesis}")
    smallest = f"{idea.smallest_effect:g} {metric.unit}".rstrip()
    console.print(f"\nprimary metric: {metric.title}, smallest effect worth having {smallest}")
    console.print(
        f"fixed: {fixed.model_in_words}, {fixed.hook_name}, {fixed.tokens:,} tokens, d_sae {fixed.d_sae:,}, "
        f"seed {fixed.seed}, evaluations {fixed.evals}"
    )
    for words, conditions in (
        ("supported if all of", idea.answer.supported_if_all if idea.answer else ()),
        ("refuted if any of", idea.answer.refuted_if_any if idea.answer else ()),
    ):
        if conditions:
            _print_paragraph(console, f"{words}: {'; '.join(map(str, conditions))}")
    if idea.template:
        console.print(f"baselines: {', '.join(idea.baselines)}")
    if idea.defaults:
        console.print(f"parameters of the baseline: {_settings(idea.defaults)}")
    if idea.template is None:
        console.print("no template: run it with --proposer llm", soft_wrap=True)
    if idea.measures:
        console.print(f"own measures: {idea.measures}", soft_wrap=True)
    if idea.figures:
        console.print(f"own figures: {idea.figures}", soft_wrap=True)
    for number, step in enumerate(idea.plan, 1):
        _print_step(console, number, step)


def _print_step(console: Console, number: int, step: Step) -> None:
    console.print(f"\n{number}. {step.title} ({step.name})", style="bold")
    _print_paragraph(console, step.description, indent=3)
    _print_paragraph(console, f"why: {step.why}", indent=3)
    predictions = {METRICS[metric].title: direction for metric, direction in step.predictions.items()}
    _print_paragraph(console, f"predictions: {_settings(predictions) or 'none'}", indent=3)
    if step.parameters:
        _print_paragraph(console, f"parameters: {_settings(step.parameters)}", indent=3)
    if when := step.when:
        result = f"{METRICS[when.metric].title} of {when.step} is {OBSERVED[when.observed_direction]}"
        _print_paragraph(console, f"when: {result}", indent=3)


def _settings(values: dict) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())


def _print_paragraph(console: Console, text: str, indent: int = 0) -> None:
    """Print text wrapped at the width of the console, without the line breaks of the YAML file."""
    console.print(Padding(" ".join(text.split()), (0, 0, 0, indent)))
