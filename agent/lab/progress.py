"""Progress of long work on stderr: a bar with rate and time left on a terminal, else a line now and then."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def notify(message: str) -> None:
    """Print one line to stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def progress_bar(title: str, total: int, unit: str) -> "tqdm[Any]":
    """Return a bar to `update(n)`; it stays hidden for work that takes under a second."""
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        unit_scale=True,
        delay=1,
        mininterval=0.2 if sys.stderr.isatty() else 15,
        leave=sys.stderr.isatty(),
        dynamic_ncols=True,
    )


class StageProgress:
    """Progress in unlike stages: call it with the name of each stage that is done.

    `count`, the number of all stages, may be changed on the way.
    """

    def __init__(self, title: str, count: int, bar: "tqdm[Any]") -> None:
        self.title, self.count, self.bar, self.finished = title, count, bar, 0

    def __call__(self, name: str) -> None:
        self.finished += 1
        if self.bar.disable:
            notify(f"{self.title}: {name} done ({self.finished} of {self.count})")
        else:
            self.bar.total = self.count
            self.bar.set_postfix_str(f"{name} done", refresh=False)
            self.bar.update()


@contextmanager
def stage_progress(title: str, count: int) -> Iterator[StageProgress]:
    """Show the progress of work in a few unlike stages."""
    terminal = sys.stderr.isatty()
    with tqdm(total=count, desc=title, unit=" stages", leave=False, dynamic_ncols=True, disable=not terminal) as bar:
        yield StageProgress(title, count, bar)


def track(items: Sequence[Item], title: str, unit: str, per_item: int = 1) -> Iterator[Item]:
    """Iterate with progress; an item counts `per_item` units."""
    with progress_bar(title, len(items) * per_item, unit) as bar:
        for item in items:
            yield item
            bar.update(per_item)
