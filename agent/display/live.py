"""Show the work of the driver: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agent.display.console import study_table
from agent.lab.visible import visible
from agent.study.runs import Run

PLAIN_SECONDS = 30.0  # at least, before lines of progress in a log, one for each job


class Display(AbstractContextManager["Display"], Protocol):
    """A display of the work of a study, for the researcher."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def progress(self, lines: Sequence[str]) -> None:
        """Show how far each job that runs has come, in the place of the progress shown before."""

    def table(self, load_runs: Callable[[], Sequence[Run]]) -> None:
        """Show the runs of the study as they stand now, loaded only where they are shown."""

    def paused(self) -> AbstractContextManager[object]:
        """Leave the terminal free within the context, for a question."""
        ...


class PlainDisplay:
    """A display of plain lines, for a pipe or a file."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self._last = time.monotonic()
        print(visible(text), flush=True)

    def progress(self, lines: Sequence[str]) -> None:
        if lines and time.monotonic() - self._last >= PLAIN_SECONDS:
            self.say("\n".join(lines))

    def table(self, load_runs: Callable[[], Sequence[Run]]) -> None:
        """Show nothing: `say` has printed a line for every run."""

    def paused(self) -> AbstractContextManager[object]:
        return nullcontext()


class LiveDisplay:
    """A display that redraws the table of the study, and the current stage below it, in place."""

    def __init__(self) -> None:
        self._table: Text | Group = Text()
        self._progress: Sequence[str] = ()
        self._live = Live(refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress = ()
        self._draw()
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(visible(text), markup=False, highlight=False)
        self._draw()

    def progress(self, lines: Sequence[str]) -> None:
        self._progress = lines
        self._draw()

    def table(self, load_runs: Callable[[], Sequence[Run]]) -> None:
        self._table = study_table(load_runs())
        self._draw()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def _draw(self) -> None:
        bottom = [Spinner("line", text=Text(visible(line))) for line in self._progress]
        self._live.update(Group(self._table, *bottom))


def make_display() -> Display:
    """Return the display that suits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()
