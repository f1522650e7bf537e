"""A disk that fills while activations are written: one line, nothing half-written, and another try."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_lab import HOOK

CODE = """
import shutil, sys, threading, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from agent.lab import activations
from agent.lab.exits import one_line_errors

disk, (model, hook) = Path("/small"), sys.argv[1:]

def fill():
    with (disk / "filler").open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(disk).free):
            file.write(bytes(min(free, 2**20)))

def fill_once_it_writes():
    while not any(raw.stat().st_size for raw in disk.glob("cache/activations/*.partial/*.raw")):
        time.sleep(0.001)
    fill()

def attempt(what, *arguments, **options):
    try:
        with one_line_errors("interrupted"):
            what(*arguments, **options)
    except SystemExit as end:
        print(end.code)

attempt(activations.ensure_harvest, model, hook, 20_000_000)
filler = threading.Thread(target=fill_once_it_writes)
filler.start()
attempt(activations.ensure_harvest, model, hook, 60_000)
filler.join()
print([path.name for path in disk.glob("cache/activations/*") if path.suffix != ".lock"])
fill()
attempt(save_file, {"rows": torch.zeros(1000)}, disk / "rows.safetensors")
attempt(activations.ensure_harvest, model, hook, 60_000, streamed=True)
(disk / "filler").unlink()
attempt(activations.ensure_harvest, model, hook, 60_000)
print([path.name for path in disk.glob("cache/activations/*/manifest.json")])
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap gives the small disk")
def test_a_disk_that_fills_is_one_line_each_and_the_next_try_succeeds(small_model: Path):
    disk = ["bwrap", "--dev-bind", "/", "/", "--size", str(40 * 2**20), "--tmpfs", "/small"]
    ended = subprocess.run(
        [*disk, sys.executable, "-c", CODE, str(small_model), HOOK],
        env=os.environ | {"SAE_AGENT_CACHE": "/small/cache"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.stdout.splitlines() == ["2", "1", "[]", "1", "2", "['manifest.json']"], ended.stderr
    large, full, tensors, refused = (line for line in ended.stderr.splitlines() if "\r" not in line and line.strip())
    assert re.fullmatch(r"error: activations need 1\.3 GB and .+ has 0\.0 GB free: .+ disk, or give --stream", large)
    assert full.startswith("error: No space left on device (")
    assert full.endswith("): free some space")
    assert tensors == "error: No space left on device (while writing): free some space"
    assert refused == (
        "error: token ids need 0.0 GB and /small/cache/activations has 0.0 GB free: free some space or point "
        "SAE_AGENT_CACHE at another disk"
    )
