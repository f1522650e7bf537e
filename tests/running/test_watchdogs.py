"""Watchdogs: each ends a process for its own reason, and says what it saw."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.running import process, process_tree
from agent.running.process import ProcessResult
from agent.running.watchdogs import GIB, Disk, DiskFull, LogCap, Memory, Stall, Watchdog, memory_limit, require_disk
from agent.study import workspace

MIB = 2**20
HOLD_64_MIB = "import time; held = b'x' * 2**26; time.sleep(60)"


def watched(code: str, directory: Path, *watchdogs: Watchdog) -> ProcessResult:
    return process.run(
        [sys.executable, "-uc", code],
        cwd=directory,
        env=dict(os.environ),
        stdout=directory / "stdout.log",
        stderr=directory / "stderr.log",
        timeout=20,
        watch=watchdogs,
    )


def test_a_process_that_says_nothing_new_is_stalled(tmp_path: Path):
    stall = Stall([tmp_path / "metrics.jsonl", tmp_path / "stdout.log"], seconds=1)
    ended = watched("import time; print('once'); time.sleep(60)", tmp_path, stall)
    assert ended.stopped
    assert ended.stopped.name == "stalled"
    assert ended.stopped.evidence == "nothing new in metrics.jsonl, stdout.log for 1 s"
    assert ended.seconds < 10


def test_a_process_that_goes_on_is_not_stalled(tmp_path: Path):
    code = "import time\nfor _ in range(10): print('.'); time.sleep(0.25)"
    assert watched(code, tmp_path, Stall([tmp_path / "stdout.log"], seconds=2)).stopped is None


def test_a_process_tree_that_holds_too_much_is_out_of_memory(tmp_path: Path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD_64_MIB!r}])"
    ended = watched(code, tmp_path, Memory(40 * MIB))
    assert ended.stopped
    assert ended.stopped.name == "out_of_memory"
    assert "the limit is 0.0 GiB" in ended.stopped.evidence


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells shared pages apart")
def test_memory_that_forks_share_is_counted_once(tmp_path: Path):
    code = "import os, time; held = b'x' * 2**26; [os.fork() for _ in range(3)]; time.sleep(2)"
    most: list[tuple[int, int]] = []

    def measure() -> None:
        processes = process_tree.descendants()
        most.append((process_tree.memory_at_most(processes), process_tree.memory(processes)))

    watched(code, tmp_path, measure)
    rss, pss = max(most)
    assert rss > 8 * 64 * MIB
    assert 64 * MIB < pss < 3 * 64 * MIB


def test_the_memory_limit_is_a_share_of_the_machine():
    assert GIB / 4 < memory_limit() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_disk_that_fills_ends_the_process(tmp_path: Path):
    ended = watched("import time; time.sleep(60)", tmp_path, Disk(tmp_path, free=2**60))
    assert ended.stopped
    assert ended.stopped.name == "disk_full"
    assert "GiB must stay free" in ended.stopped.evidence
    assert Disk(tmp_path, free=1)() is None


def test_a_full_disk_is_said_before_a_run_is_spent_on_it(tmp_path: Path):
    with pytest.raises(DiskFull, match="GiB must stay free: make room, then agent resume continues"):
        require_disk(tmp_path, free=2**60)
    require_disk(tmp_path, free=1)


def test_a_log_that_grows_too_long_keeps_its_ends_while_it_is_written(tmp_path: Path):
    log = tmp_path / "stdout.log"
    code = """
import time
print("the first line")
for number in range(40):
    print("x" * 50_000)
    time.sleep(0.05)
print("the last line")
"""
    watched(code, tmp_path, LogCap(log, size=200_000, kept=60_000))
    LogCap(log, size=200_000, kept=60_000)()
    said = log.read_text()
    assert len(said) <= 200_000 + 100
    assert said.startswith("the first line\n")
    assert said.endswith("the last line\n")
    assert "bytes cut by the driver" in said
    assert "\0" not in said


def test_what_a_killed_driver_left_is_found_by_its_mark_and_nothing_else_is(tmp_path: Path):
    def left_by(directory: Path) -> int:
        code = "import subprocess; print(subprocess.Popen(['sleep', '63.5'], stdout=2, start_new_session=True).pid)"
        env = dict(os.environ) | {workspace.STUDY_VARIABLE: str(directory)}
        shown = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
        return int(shown.stdout)

    mine, other = left_by(tmp_path), left_by(tmp_path / "other")
    assert process_tree.end_orphans(tmp_path) == 1
    time.sleep(0.1)
    assert [_running(pid) for pid in (mine, other)] == [False, True]
    assert process_tree.end_orphans(tmp_path / "other") == 1


def _running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
