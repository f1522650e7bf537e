"""Memory is given back to the processes beside: by a run by hand before its evaluator starts, by shards on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent import ROOT
from agent.lab.rows import may_stay

MIB = 2**20
FREES_SMALL_PIECES = """
import psutil, torch
from agent.lab import memory

process = psutil.Process()
before = process.memory_info().rss
pieces = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, below what the system is asked for singly
last = torch.ones(2**14)  # at the end of the heap, so that it does not shrink by itself
held = process.memory_info().rss
del pieces
memory.give_back()
print(held - before, process.memory_info().rss - before)
"""
HOLDS_MUCH = """
from pathlib import Path
import torch
from agent.lab.run import run

def main(out_dir: Path) -> None:
    much = torch.ones(2**26)
    me = {"much": much}
    me["me"] = me  # which only the collector of cycles frees
    (out_dir / "checkpoint").mkdir()

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to give memory back")
def test_small_pieces_that_are_freed_go_back_to_the_system():
    program = subprocess.run([sys.executable, "-c", FREES_SMALL_PIECES], capture_output=True, text=True, check=True)
    held, left = map(int, program.stdout.split())
    assert held > 100 * MIB
    assert left < 40 * MIB


def test_shards_take_at_most_a_quarter_of_a_gpu():
    free, size, shards = 40, 1, 0
    while may_stay(size, shards, free):
        free, shards = free - size, shards + size
    assert shards == 10
    assert not may_stay(size, shards, free), "another reader's shards count too"
    assert not may_stay(3, 0, 8)


@pytest.mark.slow
def test_a_run_by_hand_holds_nothing_while_it_is_evaluated(tmp_path: Path):
    script = tmp_path / "experiment.py"
    script.write_text(HOLDS_MUCH)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SAE_AGENT_CACHE": str(tmp_path / "cache")}
    run = subprocess.Popen([sys.executable, str(script), f"--out_dir={tmp_path / 'run_0'}"], env=env)
    process, most = psutil.Process(run.pid), 0
    while not (evaluators := process.children()):
        most = max(most, process.memory_info().rss)
        assert run.poll() is None
    held = process.memory_info().rss
    evaluators[0].kill()
    assert run.wait() == 1
    assert most - held > 200 * MIB
