"""Measure sae-agent on one GPU, part after part, and write one table; benchmarks/gpu.sh starts it.

Each part is a process with a limit of its own, so that one that is slow or fails costs no other. Its rows are kept as
they come. The last part gets what is left of the time.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil
from gpu_parts.table import Row, head

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 525.0  # for all parts; the rest of the 9 minutes is for starting and ending them
GRACE = 8.0  # between being asked to end and being killed
LIMITS = {"machine": 45.0, "steps": 110.0, "harvest": 110.0, "tests": 110.0, "study": 400.0}
GIB = 2**30


@dataclass
class Peaks:
    """The most memory that was seen in use, in bytes: of the GPU by all, of the host by a part's processes."""

    gpu: int = 0
    host: int = 0

    def look(self, process: psutil.Process) -> None:
        used = 0
        try:
            for each in (process, *process.children(recursive=True)):
                used += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass
        self.gpu, self.host = max(self.gpu, gpu_memory()), max(self.host, used)


def gpu_memory() -> int:
    """Return the bytes of the first GPU that are in use, 0 without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    if not shutil.which(command[0]):
        return 0
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return int(answer) * 2**20 if answer.isdigit() else 0


def carry_out(part: str, limit: float, log: Path, rehearse: bool) -> Iterator[Row]:
    """Run a part in a process of its own and yield its rows, and last its time and memory, or what went wrong."""
    started, peaks = time.monotonic(), Peaks()
    command = [sys.executable, __file__, "--part", part, *(["--rehearse"] if rehearse else [])]
    with tempfile.TemporaryDirectory(prefix="gpu_") as scratch, log.open("w") as errors:
        environment = os.environ | {"SAE_AGENT_CACHE": f"{scratch}/cache", "TMPDIR": scratch}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        timer = threading.Timer(limit, end, [process])
        timer.start()
        watcher = threading.Thread(target=watch, args=(process, peaks), daemon=True)
        watcher.start()
        assert process.stdout
        for line in process.stdout:
            if line.startswith("{"):
                yield Row(**json.loads(line))
        code = process.wait()
        timer.cancel()
        watcher.join()
    seconds = time.monotonic() - started
    memory = f"at most {peaks.gpu / GIB:.1f} GiB of the GPU in use by all, {peaks.host / GIB:.1f} GiB of the host"
    yield Row("the whole part", f"{seconds:.0f} s", memory)
    if code:
        lines = [line for line in log.read_text().splitlines() if line.strip()] or [f"exit code {code}"]
        yield Row("NOT COMPLETE", f"stopped after {limit:.0f} s" if seconds >= limit else "failed", lines[-1][:300])


def watch(process: "subprocess.Popen[str]", peaks: Peaks) -> None:
    while process.poll() is None:
        try:
            peaks.look(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            return
        time.sleep(1)


def end(process: "subprocess.Popen[str]") -> None:
    """Ask a part and all it started to end, and kill what does not."""
    for kind in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="Measure sae-agent on one GPU.")
    default = Path(os.environ.get("OUT", ".")) / "gpu.md"
    parser.add_argument("table", nargs="?", type=Path, default=default, help=f"file for the table; {default}")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the CPU if there is no GPU")
    parser.add_argument("--parts", default=",".join(LIMITS), help="by default all: %(default)s")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for row in importlib.import_module(f"gpu_parts.{args.part}").measure(args.rehearse):
            print(json.dumps(asdict(row)), flush=True)
        return
    deadline = time.monotonic() + SECONDS
    with args.table.open("w") as table:
        print_both(head(), table)
        for part in args.parts.split(","):
            limit = min(LIMITS[part], deadline - time.monotonic() - GRACE)
            log = args.table.with_name(f"{args.table.stem}_{part}.log")
            for row in carry_out(part, max(limit, 1.0), log, args.rehearse):
                print_both(row.line(part), table)


def print_both(text: str, file: TextIO) -> None:
    for place in (sys.stdout, file):
        print(text, file=place, flush=True)


if __name__ == "__main__":
    main()
