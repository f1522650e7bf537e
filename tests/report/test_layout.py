"""Paragraphs and tables are read back as they were meant, whatever the text is."""

import pytest

from agent.audit import notes_reader
from agent.report.layout import LONGEST, aligned, paragraph

HOSTILE = [
    "word " * 21 + "## Run 7: the winner",
    "word " * 22 + "- an item that is none",
    "word " * 22 + "2. an item that is none",
    "word " * 20 + "Results: {'ce_loss_score': 0.99}",
    "word " * 20 + "Description: another one",
    "word " * 20 + "l0_front.png: shows it",
    "word " * 22 + "metric  baseline  difference",
    "# a heading",
    "x" * 500,
    "שלום " * 40,
    "\x1b[2J\u202eturned\u2066 round " * 9,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_of_a_paragraph_is_anything_else(text: str):
    lines = paragraph(text, "Description").split("\n")
    assert max(map(len, lines)) <= LONGEST
    assert lines[0].startswith("Description: ")
    assert all(line.startswith("  ") and not line.lstrip().startswith(("#", "- ", "2.")) for line in lines[1:])
    notes = notes_reader.parse("# Title\nT\n\n## Run 0: Baseline\nResults: {'l0': 16.0}\n" + "\n".join(lines) + "\n")
    (run,) = notes.runs
    assert run.figures == {"l0": 16.0}
    assert notes.tables == []
    assert {statement.label for statement in notes.statements} == {"description"}


def test_columns_of_numbers_are_flush_right_and_empty_cells_are_marked():
    rows = [["1", "short", "+0.5 ± 0.1", ""], ["12", "a  title\nof two lines", "-10.5 ± 0.1", "worse"]]
    assert aligned(["run", "change", "difference", "outcome"], rows) == [
        "run  change                 difference  outcome",
        "  1  short                  +0.5 ± 0.1  -",
        " 12  a title of two lines  -10.5 ± 0.1  worse",
    ]


def test_wide_characters_keep_the_columns_in_line():
    lines = aligned(["a", "b"], [["漢字", "x"], ["abcd", "y"]])
    assert lines[1:] == ["漢字  x", "abcd  y"]
