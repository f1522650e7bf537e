"""What this machine, or this container, has for a study. No torch here."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.lab import cache

MEMORY_SHARE = 0.85  # of the memory of the machine, for all the processes of a run
# The memory limit of a container, of cgroup version 2 (bytes, or `max`) and 1 (bytes, absurdly many if there is none).
CGROUP_LIMITS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]


def memory_limit(containers: Sequence[Path] = CGROUP_LIMITS) -> int:
    """Return the bytes that a run may use on this machine, or in this container."""
    limits = [path.read_text().strip() for path in containers if path.exists()]
    bounds = [int(limit) for limit in limits if limit != "max"]
    return int(MEMORY_SHARE * min([psutil.virtual_memory().total, *bounds]))


@dataclass(frozen=True)
class Machine:
    """The bytes that a study may use."""

    ram: int
    gpu: int  # free now, on the GPU of a job; 0: none
    cache: int  # free on the disk of the cache
    runs: int  # free on the disk of the studies
    one_disk: bool  # the cache and the studies are on the same


def this_machine(runs: Path, gpu: int) -> Machine:
    """Return what there is here for studies in `runs`, with `gpu` bytes free on a GPU."""
    disk = next(path for path in (cache.root(), *cache.root().parents) if path.exists())
    one_disk = disk.stat().st_dev == runs.stat().st_dev
    return Machine(memory_limit(), gpu, cache.free_space(cache.root()), shutil.disk_usage(runs).free, one_disk)
