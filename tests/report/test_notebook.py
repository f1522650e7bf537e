"""Notes are written as soon as there is something new, and not again."""

from pathlib import Path

from builders import BASELINE, STARTED

from agent.report.notebook import Notebook
from agent.report.notes import NO_ANALYSIS
from agent.study.events import ProposalMade
from agent.study.state import derive
from agent.study.workspace import Study


def test_the_text_is_written_when_there_is_something_new(tmp_path: Path):
    study = Study(tmp_path / "runs/study", tmp_path / "notes/study")
    notebook = Notebook(study, NO_ANALYSIS)
    assert not notebook.is_due
    notebook.write(derive([STARTED]), [])
    notebook.refresh()
    assert notebook.is_due
    notebook.write(derive([STARTED, ProposalMade(run=0, proposal=BASELINE)]), [], whole=False)
    assert "## Run 0: Baseline" in (study.notes / "notes.txt").read_text()
    notebook.write(derive([STARTED]), [])
    assert not notebook.is_due
