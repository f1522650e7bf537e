"""The tests of what only a GPU can show."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_parts.table import Row

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/gpu", "tests/lab/test_sparse.py")
PROCESSES = "4"


def measure(rehearse: bool) -> Iterator[Row]:
    """Yield pytest's last line, and a row for each test that failed."""
    chosen = ["-n", "0", "-k", "one_token", FILES[1]] if rehearse else ["-n", PROCESSES, *FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", *chosen]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ended.stdout, ended.stderr, file=sys.stderr)
    lines = ended.stdout.strip().splitlines() or [f"pytest ended with {ended.returncode}"]
    yield Row(" ".join(FILES), re.sub(r"^=+ | =+$", "", lines[-1]), "skipped: what needs a GPU, where there is none")
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            name, _, reason = line.partition(" - ")
            yield Row(name.removeprefix("FAILED "), "FAILED", reason[:200])
