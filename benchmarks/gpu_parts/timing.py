"""Times of work on a device: by its own events on a GPU, by the clock on a CPU."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

WARM_UP = 3  # calls before the first that is timed

Work = Callable[[], object]
Mark = Any  # a moment in the order of a device's work: an event, or seconds


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mark() -> Mark:
    """Return this moment in the order of the device's work, without waiting for it."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Mark, end: Mark) -> float:
    """Return the milliseconds between two marks, waiting for the second."""
    if isinstance(start, float):
        return (end - start) * 1000
    end.synchronize()
    return start.elapsed_time(end)


def medians(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each work, done in turn so that what else happens hits all alike."""
    for work in works.values():
        for _ in range(WARM_UP):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = mark()
            work()
            times[name].append(between(start, mark()))
    return {name: statistics.median(each) for name, each in times.items()}


def peak_of(work: Work) -> float:
    """Return the most memory in GiB that torch held on the GPU during a work, 0 on a CPU."""
    if not torch.cuda.is_available():
        work()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30
