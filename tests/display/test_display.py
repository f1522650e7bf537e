"""The live display shows what it is told, letter by letter."""

import io
from pathlib import Path

import pytest
from builders import CHANGE
from rich.console import Console

from agent.display.console import study_table
from agent.display.live import LiveDisplay
from agent.study.runs import Run
from agent.study.state import RunState


def test_brackets_in_a_title_are_no_markup():
    titled = CHANGE.model_copy(update={"title": "[/half] the [b]width[/b]"})
    console = Console(width=160, file=io.StringIO())
    console.print(study_table([Run(RunState(1, titled), Path("nowhere"), None)]))
    assert isinstance(console.file, io.StringIO)
    assert "[/half] the [b]width[/b]" in console.file.getvalue()


def test_brackets_in_what_a_process_says_are_no_markup(capsys: pytest.CaptureFixture[str]):
    with LiveDisplay() as display:
        display.progress("warning in [/usr/lib]: see [b]")
        display.say("and so it ended [/usr/lib]: see [b]")
    assert "and so it ended [/usr/lib]: see [b]" in capsys.readouterr().out
