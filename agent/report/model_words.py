"""What a language model wrote, as it stands in notes and on the page: unchecked, and said so, with what the results
contradict marked behind it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from agent.comparison.judgement import Judgement
from agent.report import prose, sentences
from agent.report.layout import paragraph
from agent.report.prose import Facts
from agent.study.runs import Run
from agent.study.state import State

HEADING = sentences.IN_THE_MODELS_WORDS  # of a section, and of what a model found out in a run
CHANGED = f"{HEADING}, the change"


class Contradiction(Protocol):
    """A sentence that the results contradict, and by which of them."""

    @property
    def sentence(self) -> str: ...

    @property
    def evidence(self) -> str: ...


# Finds what results contradict in a text about a run (agent.audit.words, which knows this package and not the reverse).
Check = Callable[[str, int, Facts], Iterable[Contradiction]]


def unchecked(text: str, run: int, facts: Facts) -> list[Contradiction]:  # noqa: ARG001
    """Return nothing: a Check that looks for no contradiction."""
    return []


def marks(text: str, run: int, facts: Facts, check: Check) -> list[str]:
    """Return a line on each sentence of a rendered text about a run that the results contradict."""
    return [
        sentences.CONTRADICTED_WORDS.render(quoted=f'"{each.sentence}"', evidence=each.evidence)
        for each in check(text, run, facts)
    ]


def concluded(
    state: State, runs: Sequence[Run], judged: Mapping[int, Judgement], check: Check
) -> list[tuple[str, str, list[str]]]:
    """Return the model's conclusion, what it would try next and the reasons of its plans: label, text, and marks."""
    facts, conclusion, last = Facts.of(runs, judged, state.started), state.conclusion, len(state.runs) - 1
    texts = []
    if conclusion and conclusion.text:
        texts = [(f"Conclusion after run {conclusion.after_run}", conclusion.text), ("Next", conclusion.next)]
    texts += [(f"Plan after run {plan.after_run}", plan.reasoning) for plan in state.plans]
    rendered = [(label, prose.render(text, facts)) for label, text in texts if text]
    return [
        (label, text, marks(text, last, facts, check) if label.startswith("Conclusion") else [])
        for label, text in rendered
    ]


def paragraphs(text: str, label: str, found: Sequence[str]) -> list[str]:
    """Return the lines of a text and of the marks behind it."""
    return [line for part in (paragraph(text, label), *map(paragraph, found)) for line in part.split("\n")]
