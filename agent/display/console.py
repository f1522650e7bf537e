"""Tables on the terminal."""

import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, Group

from agent.display.formatting import format_value
from agent.lab.metrics import METRICS
from agent.lab.results import headline
from agent.study.runs import Run

LONGEST_LINE = 1000  # without a terminal, where a row should stay on one line
IN_A_TABLE = 7  # headline metrics beside a run's title


def study_table(runs: "Sequence[Run]") -> "Group":
    """One row per run with the headline metrics of those that count; those that find no room in a table below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = headline(run.info for run in runs if run.info)
    tables = []
    for start in range(0, len(names), IN_A_TABLE):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=start == 0)
        table.add_column("run", justify="right", no_wrap=True)
        if start == 0:
            table.add_column("title", no_wrap=True, ratio=1)
            table.add_column("verdict", no_wrap=True)
        for name in (shown := names[start : start + IN_A_TABLE]):
            widest = max(METRICS[name].title.split(), key=len)
            table.add_column(METRICS[name].title, justify="right", width=max(len(widest), 6))
        for run in runs:
            verdict = run.info.verdict.name if run.info else run.state.stage
            measured = [format_value(name, run.info.metric(name)) if run.info else "" for name in shown]
            title = Text(run.state.proposal.title)  # a string would be read for markup, which a title may look like
            table.add_row(str(run.number), *([title, verdict] if start == 0 else []), *measured)
        tables.append(table)
    return Group(*tables)


WIDTH_WITHOUT_TERMINAL = 120


def make_console(width: int = WIDTH_WITHOUT_TERMINAL) -> "Console":
    """Standard output, as wide as its terminal; `width` is used without one."""
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=width if wide else None, highlight=False, markup=False)


def print_table(console: "Console", columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a line under its head on a terminal, aligned columns and nothing else without one."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("size", "steps") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
