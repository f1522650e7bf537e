"""The display shows texts as they are: brackets are no markup."""

import io
from pathlib import Path

import pytest
from builders import CHANGE
from rich.console import Console

from agent.display.console import study_table
from agent.display.live import LiveDisplay
from agent.study.run_state import RunState
from agent.study.runs import Run


def test_brackets_in_a_title_are_shown():
    proposal = CHANGE.model_copy(update={"title": "[/half] the [b]width[/b]"})
    console = Console(width=160, file=io.StringIO())
    console.print(study_table([Run(RunState(1, proposal), Path("nowhere"), None)]))
    assert isinstance(console.file, io.StringIO)
    assert "[/half] the [b]width[/b]" in console.file.getvalue()


def test_brackets_in_progress_and_messages_are_shown(capsys: pytest.CaptureFixture[str]):
    with LiveDisplay() as display:
        display.progress(["warning in [/usr/lib]: see [b]", "another job"])
        display.say("it ended [/usr/lib]: see [b]")
    assert "it ended [/usr/lib]: see [b]" in capsys.readouterr().out
