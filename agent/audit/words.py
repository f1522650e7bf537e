"""What results contradict in the words that a language model wrote about a run."""

from collections.abc import Mapping, Sequence

from agent.comparison.judgement import Judgement
from agent.study.runs import Run


def check(text: str, run: int, runs: Sequence[Run], judged: Mapping[int, Judgement]) -> list:
    return []
