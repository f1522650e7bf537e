"""The rows of the table that benchmarks/gpu.sh writes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, its value with a unit, and what it is to be read beside."""

    what: str
    figure: str
    note: str = ""

    def line(self, part: str) -> str:
        """Return the row in Markdown."""
        cells = (part, self.what, self.figure, self.note)
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def head() -> str:
    return "| part | what | figure | note |\n| --- | --- | --- | --- |"
