"""What the driver shows while it works: a live table on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, Self

from agent.display.console import study_table
from agent.study.runs import Run

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
