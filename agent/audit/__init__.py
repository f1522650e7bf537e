"""Check the claims of a notes.txt, or of a text about a study's runs, against figures."""

from collections.abc import Iterable

from agent.report.model_words import Contradiction
from agent.report.prose import Facts


def contradicted(text: str, run: int, facts: Facts) -> Iterable[Contradiction]:
    """Return what the results of a study contradict in a text about a run: a Check of agent.report.model_words."""
    from agent.audit import words  # here, as most studies have no such text and start sooner without

    return words.check(text, run, facts) if text else []
