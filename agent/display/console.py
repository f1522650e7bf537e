"""Tables on the terminal."""

import difflib
import os
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from agent.display.formatting import format_value
from agent.lab.metrics import METRICS
from agent.lab.results import headline
from agent.lab.visible import visible
from agent.study.runs import Run

WIDTH_WITHOUT_TERMINAL = 120
LONGEST_LINE = 1000  # without a terminal, for tables whose rows should stay on one line
METRICS_PER_TABLE = 7
DIFF_STYLES = {"@": "cyan", "+": "green", "-": "red"}


def make_console(width: int = WIDTH_WITHOUT_TERMINAL) -> Console:
    """Return a console on standard output, as wide as the terminal, or `width` characters if there is none."""
    fixed_width = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=width if fixed_width else None, highlight=False, markup=False)


def study_table(runs: Sequence[Run]) -> Group:
    """Return a table with one row per run and its headline metrics; metrics beyond the first seven go to further
    tables below it."""
    names = headline(run.info for run in runs if run.info)
    tables = []
    for start in range(0, len(names), METRICS_PER_TABLE):
        columns = names[start : start + METRICS_PER_TABLE]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=start == 0)
        table.add_column("run", justify="right", no_wrap=True)
        if start == 0:
            table.add_column("title", no_wrap=True, ratio=1)
            table.add_column("verdict", no_wrap=True)
        for name in columns:
            longest_word = max(METRICS[name].title.split(), key=len)
            table.add_column(METRICS[name].title, justify="right", width=max(len(longest_word), 6))
        for run in runs:
            verdict = run.info.verdict.name if run.info else run.state.stage
            values = [format_value(name, run.info.metric(name)) if run.info else "" for name in columns]
            title = Text(run.state.proposal.title)  # as Text, because brackets in a string would be read as markup
            table.add_row(str(run.number), *([title, verdict] if start == 0 else []), *values)
        tables.append(table)
    return Group(*tables)


def print_diff(console: Console, before: str, after: str) -> None:
    """Print how one text differs from another, line by line; nothing if it does not."""
    diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))
    for line in diff[2:]:  # the first two lines would name files
        console.print(visible(line), style=DIFF_STYLES.get(line[0]), soft_wrap=True)


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: with a line below its head on a terminal, as aligned columns alone elsewhere."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("size", "steps") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
