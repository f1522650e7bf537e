"""Measure rows that are stored beside rows that the model makes as they are read (`--stream`), on tiny-lm.

    python benchmarks/streaming.py [TOKENS]

Both read TOKENS rows (300,000 by default) in batches of 1,024, with one thread and nothing else running. It also says
what a harvest takes to be checked: hashed, as at the start of a study, and by its seal, as in every process after that.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agent.lab import activations, rows
from agent.lab.activations import Stream
from agent.lab.streamed import Blocks, StreamedRows

MODEL, HOOK_NAME, BATCH = "tiny-lm", "blocks.1.hook_resid_post", 1024
MANY = 500_000_000  # tokens


def timed(what: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Return the seconds that a call took, and what it returned."""
    started = time.monotonic()
    result = what(*arguments, **options)
    return time.monotonic() - started, result


def read(stream: Stream) -> tuple[float, float]:
    """Return the seconds until the first batch, and the rows a second."""
    started = time.monotonic()
    batches = iter(stream)
    next(batches)
    first = time.monotonic() - started
    for _ in batches:
        pass
    return first, stream.total / (time.monotonic() - started)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    tokens = int(sys.argv[1].replace("_", "")) if sys.argv[1:] else 300_000
    torch.set_num_threads(1)
    found: dict[str, tuple[float, int, float, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SAE_AGENT_CACHE"] = cache
        seconds, (stored, manifest) = timed(activations.ensure_harvest, MODEL, HOOK_NAME, tokens)
        data = activations.stored_stream(stored, manifest, tokens, BATCH, seed=0)
        found["stored"] = (seconds, size(stored), *read(data))
        hashing, _ = timed(activations.check_harvest, stored)
        comparing, _ = timed(activations.check_harvest, stored, rows.seal(stored, manifest))
        seconds, (text, manifest) = timed(activations.ensure_harvest, MODEL, HOOK_NAME, tokens, streamed=True)
        blocks = Blocks(text, manifest, MODEL)
        data = Stream(StreamedRows(blocks, tokens), manifest, tokens, BATCH, seed=0)
        found["streamed"] = (seconds, size(text), *read(data))
    print(f"| {tokens:,} rows | prepared | on the disk | of {MANY:,} | first batch | rows a second |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (prepared, disk, first, rate) in found.items():
        many = f"{disk / tokens * MANY / 1e9:.1f} GB"
        print(f"| {name} | {prepared:.1f} s | {disk / 1e6:.1f} MB | {many} | {first:.2f} s | {rate:,.0f} |")
    rate = found["stored"][1] / hashing / 1e9
    megabytes = found["stored"][1] / 1e6
    print(f"a check of {megabytes:.0f} MB: hashed {hashing:.3f} s ({rate:.2f} GB/s), sealed {comparing:.4f} s")


if __name__ == "__main__":
    main()
