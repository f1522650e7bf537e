"""Plain text laid out for reading: paragraphs that are wrapped, and aligned tables."""

import re
import textwrap
from collections.abc import Sequence

from agent.lab.visible import one_line

WIDTH = 120  # of a paragraph; a table may be wider, up to LONGEST
LONGEST = 160  # characters of a line
INDENT = "  "  # of the lines that continue a paragraph
_GLUE = "\0"
_MARKS = re.compile(
    r" (?=#|[-*•] |\(?\d{1,2}[.)] |[^ ]+:(?: |$))"
)  # what may not begin a line: it would be read as one


def flow(text: str) -> str:
    """Put text into one paragraph on one line, which is no heading whatever it begins with."""
    return re.sub(r"\A(?=#)", r"\\", one_line(text))


def paragraph(text: str, label: str = "") -> str:
    """Put text into one wrapped paragraph, which is no heading, item or label whatever its lines begin with."""
    glued = _MARKS.sub(_GLUE, f"{label}: {flow(text)}" if label else flow(text))
    lines = textwrap.wrap(glued, WIDTH, subsequent_indent=INDENT, break_on_hyphens=False)
    return "\n".join(lines).replace(_GLUE, " ")


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the head, then the rows, with two spaces or more between cells.

    A column is flush right if all of its cells are numbers, and "-" stands in an empty cell, so that the cells of a
    line can be told apart.
    """
    from rich.cells import cell_len  # here because `agent --help` answers sooner without it

    table = [[one_line(cell) or "-" for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    right = [all(map(_is_number, column[1:])) for column in zip(*table, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = []
        for cell, width, flush_right in zip(row, widths, right, strict=True):
            room = " " * (width - cell_len(cell))
            padded.append(room + cell if flush_right else cell + room)
        return "  ".join(padded).rstrip()

    return list(map(line, table))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-|[+-]?\d[\d.,]*(?: ± [\d.,]+)?", cell) is not None


def wrapped_results(results: str) -> str:
    """Wrap the dictionary of a run's results between its entries."""
    words = textwrap.wrap(results.replace(": ", f":{_GLUE}"), WIDTH, subsequent_indent=INDENT, break_long_words=False)
    return "\n".join(words).replace(_GLUE, " ")
