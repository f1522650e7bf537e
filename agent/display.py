"""What the driver shows while it works: a live table on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from agent import process
from agent.lab.metrics import METRICS, headline
from agent.lab.results import Compared, Comparison, FinalInfo
from agent.lab.verdicts import MetricsRow

if TYPE_CHECKING:
    from rich.console import Group

    from agent.events import Remark
    from agent.study import Run

IN_A_TABLE = 7  # headline metrics beside a run's title
PLAIN_SECONDS = 10.0  # between two lines of progress in a log


class Display(AbstractContextManager["Display"], Protocol):
    def say(self, text: str) -> None:
        """A line that stays."""

    def progress(self, text: str) -> None:
        """How far the current stage has come; replaces what it said before."""

    def table(self, runs: "Sequence[Run]") -> None:
        """The study's runs as they stand now."""

    def paused(self) -> AbstractContextManager[object]:
        """Leaves the terminal to somebody else for a while."""
        ...


class PlainDisplay:
    """Lines for a pipe or a file."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, flush=True)

    def progress(self, text: str) -> None:
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self.say(text)

    def table(self, runs: "Sequence[Run]") -> None:
        """Nothing: every run has said its line."""

    def paused(self) -> AbstractContextManager[object]:
        return nullcontext()


class LiveDisplay:
    """The study's table with the current stage under it, redrawn in place."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.text import Text

        self._table: Any = Text()
        self._progress = ""
        self._live = Live(refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress = ""
        self._draw()
        self._live.stop()

    def say(self, text: str) -> None:
        self._progress = ""
        self._live.console.print(text, markup=False, highlight=False)
        self._draw()

    def progress(self, text: str) -> None:
        self._progress = text
        self._draw()

    def table(self, runs: "Sequence[Run]") -> None:
        self._table = study_table(runs)
        self._draw()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        bottom = [Spinner("line", text=Text(self._progress))] if self._progress else []
        self._live.update(Group(self._table, *bottom))


def display() -> Display:
    """The display that suits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()


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


def format_value(name: str, value: float | None, sign: str = "") -> str:
    """A metric's value with its digits; `-` where it was not measured or not finite."""
    return "-" if value is None else f"{value:{sign}z,.{METRICS[name].digits}f}"


def format_difference(name: str, compared: Compared) -> str:
    """A difference from the baseline with the half width of its 95% interval."""
    return f"{format_value(name, compared.difference, sign='+')} ± {format_value(name, compared.half_width)}"


def beside(name: str, comparison: Comparison) -> str:
    """The difference of the metric without which this one's would mislead, in brackets; empty where there is none."""
    other = METRICS[name].beside
    compared = comparison.metrics.get(other)
    return f" ({METRICS[other].title} {format_difference(other, compared)})" if compared else ""


def comparison_line(info: FinalInfo, primary: str) -> str:
    """How the primary metric compares, in one line; empty for a run that was not compared."""
    if info.comparison is None:
        return ""
    if compared := info.comparison.metrics.get(primary):
        difference = format_difference(primary, compared) + beside(primary, info.comparison)
        return f"{METRICS[primary].title} {difference} from the baseline at this L0"
    return f"not comparable: {info.comparison.not_comparable or 'not measured on both sides'}"


def remarks(infos: Iterable[FinalInfo]) -> list[str]:
    """What evaluations say of their own figures, each once."""
    said = (
        f"{family}: {scored.remark}" for info in infos for family, scored in info.evaluations.items() if scored.remark
    )
    return list(dict.fromkeys(said))


def remark_line(remark: "Remark") -> str:
    """What a language model has said, in one line."""
    match remark.event:
        case "plan_made":
            titles = "; ".join(planned.title for planned in remark.runs)
            return f"plan after run {remark.after_run}: {titles or 'nothing is left to try'}"
        case "answer_sent_back":
            why = "it claims what only results may say" if remark.prose else remark.why.splitlines()[0]
            return f"the model's {remark.purpose} went back: {why}"
        case "run_described":
            return f"run {remark.run} is described"


def run_line(info: FinalInfo) -> str:
    """How a run came out, in one line."""
    if not info.verdict.ok:
        return f"{info.verdict.name} ({info.verdict.evidence})"
    return "ok, " + ", ".join(
        f"{METRICS[name].title} {format_value(name, info.metric(name))}" for name in headline([info])
    )


def training_progress(label: str, rows: Sequence[MetricsRow], tokens: int) -> str:
    """Tokens done of all, loss, L0, rate and time left."""
    if not rows:
        return f"{label}: starting"
    row = rows[-1]
    loss, l0 = (f"{value:.4g}" if value is not None else "not finite" for value in (row.loss, row.l0))
    rate = row.tokens / row.seconds if row.seconds > 0 else 0.0
    left = f", {rate:,.0f} tokens/s, {max(0, tokens - row.tokens) / rate:.0f} s left" if rate else ""
    done = min(1.0, row.tokens / tokens)
    return f"{label}: training {row.tokens:,} of {tokens:,} tokens ({done:.0%}), loss {loss}, L0 {l0}{left}"


def evaluation_progress(label: str, log: Path) -> str:
    """What the evaluator said last."""
    said = process.tail(log, 1)
    return f"{label}: {said[0] if said else 'evaluating'}"
