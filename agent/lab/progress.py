"""Progress of long work on stderr: a bar with rate and time left; without a terminal a line now and then."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def say(message: str) -> None:
    """One line to the user; stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def bar(title: str, total: int, unit: str) -> "tqdm[Any]":
    """A bar to `update(n)`; nothing is shown of work that takes under a second."""
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


class Stages:
    """Called with the name of each stage of a work when it is done. `count`, of all stages, may change on the way."""

    def __init__(self, title: str, count: int, shown: "tqdm[Any]") -> None:
        self.title, self.count, self.shown, self.finished = title, count, shown, 0

    def __call__(self, name: str) -> None:
        self.finished += 1
        if self.shown.disable:
            say(f"{self.title}: {name} done ({self.finished} of {self.count})")
        else:
            self.shown.total = self.count
            self.shown.set_postfix_str(f"{name} done", refresh=False)
            self.shown.update()


@contextmanager
def stages(title: str, count: int) -> Iterator[Stages]:
    """Progress of work in a few unlike stages."""
    terminal = sys.stderr.isatty()
    with tqdm(total=count, desc=title, unit=" stages", leave=False, dynamic_ncols=True, disable=not terminal) as shown:
        yield Stages(title, count, shown)


def track(items: Sequence[Item], title: str, unit: str, per_item: int = 1) -> Iterator[Item]:
    """Iterate with progress; each item counts `per_item` units."""
    with bar(title, len(items) * per_item, unit) as shown:
        for item in items:
            yield item
            shown.update(per_item)
