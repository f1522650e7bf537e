"""What an experiment, an idea or a language model wrote can neither move a cursor nor pass for another line."""

import pytest

from agent.ideas import Step
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.lab.visible import one_line, visible
from agent.study.records import Proposal

ATTACKS = {
    "clear screen": ("\x1b[2Jgone", "\\x1b[2Jgone"),
    "clipboard": ("\x1b]52;c;cm0gLXJm\x07", "\\x1b]52;c;cm0gLXJm\\x07"),
    "one-byte escape": ("\x9b2J", "\\x9b2J"),
    "overwritten line": ("bad\rgood", "bad\\rgood"),
    "right to left": ("\u202egood\u2066", "\\u202egood\\u2066"),
    "hidden": ("a\u200bb\u00adc", "a\\u200bb\\xadc"),
    "half a character": ("\ud800", "\\ud800"),
}


@pytest.mark.parametrize(("text", "shown"), ATTACKS.values(), ids=list(ATTACKS))
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str):
    assert visible(text) == shown
    assert visible(shown) == shown
    verdict = Verdict(name="crashed", evidence=f"last words: {text}")
    assert verdict.evidence == one_line(f"last words: {text}")
    assert verdict.evidence.isprintable()


def test_honest_text_stays_as_it_is():
    assert visible("L0 ± 0.5 µ, naïve 日本\n\tindented\r\n") == "L0 ± 0.5 µ, naïve 日本\n\tindented\n"
    assert visible("3\u00a0nats") == "3 nats"


def test_records_are_visible_wherever_they_come_from():
    planted = "fine\n## Run 7: The winner\u202e"
    assert one_line(planted) == "fine ## Run 7: The winner\\u202e"
    info = FinalInfo.model_validate_json(
        '{"verdict": {"name": "ok", "evidence": "e", "warnings": ["\\u001b[2J"]}, "errors": {"tpp": "\\u001b]52;"}}'
    )
    assert info.verdict.warnings == ["\\x1b[2J"]
    assert info.errors == {"tpp": "\\x1b]52;"}
    proposal = Proposal(name="n", title=planted, description=planted, why="", predictions={}, source="\x1b")
    assert proposal.title == one_line(planted)
    assert proposal.description == "fine\n## Run 7: The winner\\u202e"
    assert proposal.source == "\x1b", "code is compared and run as it is"
    step = Step(name="n", title=planted, description=planted, why="w", predictions={})
    assert step.title == one_line(planted)
