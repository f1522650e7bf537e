"""Watchdogs: each ends a process for its own reason, with the evidence in the verdict."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.lab.machine import memory_limit
from agent.lab.verdicts import Verdict
from agent.running import process, process_tree
from agent.running.process import ProcessResult
from agent.running.watchdogs import (
    GIB,
    Disk,
    DiskFull,
    Files,
    FirstSteps,
    LogCap,
    Memory,
    Processes,
    SharedMemory,
    Stall,
    Watchdog,
    require_disk,
)
from agent.study import workspace

MIB = 2**20
USE_64_MIB = "import time; data = b'x' * 2**26; time.sleep(60)"


def run_watched(code: str, directory: Path, *watchdogs: Watchdog) -> ProcessResult:
    return process.run(
        [sys.executable, "-uc", code],
        cwd=directory,
        env=dict(os.environ),
        stdout=directory / "stdout.log",
        stderr=directory / "stderr.log",
        timeout=20,
        watchdogs=watchdogs,
    )


def test_a_process_that_writes_nothing_new_is_stalled(tmp_path: Path):
    stall = Stall([tmp_path / "metrics.jsonl", tmp_path / "stdout.log"], seconds=1)
    result = run_watched("import time; print('once'); time.sleep(60)", tmp_path, stall)
    assert result.stop_verdict
    assert result.stop_verdict.name == "stalled"
    assert result.stop_verdict.evidence == "nothing new in metrics.jsonl, stdout.log for 1 s"
    assert result.seconds < 10


def test_a_process_that_keeps_writing_is_not_stalled(tmp_path: Path):
    code = "import time\nfor _ in range(10): print('.'); time.sleep(0.25)"
    assert run_watched(code, tmp_path, Stall([tmp_path / "stdout.log"], seconds=2)).stop_verdict is None


def test_the_clock_of_first_steps_starts_with_the_first(tmp_path: Path):
    code = "import time; time.sleep(1.2); open('metrics.jsonl', 'w').write('row'); time.sleep({})"
    clock = FirstSteps(tmp_path / "metrics.jsonl", seconds=0.8, start=60)
    assert run_watched(code.format(0.1), tmp_path, clock).stop_verdict is None
    clock = FirstSteps(tmp_path / "metrics.jsonl", seconds=0.2, start=60)
    result = run_watched(code.format(60), tmp_path, clock)
    assert result.stop_verdict == Verdict(name="timed_out", evidence="still running 0 s after its first step")


def test_first_steps_that_do_not_come_are_waited_for_so_long(tmp_path: Path):
    clock = FirstSteps(tmp_path / "metrics.jsonl", seconds=60, start=0.5)
    result = run_watched("import time; time.sleep(60)", tmp_path, clock)
    assert result.stop_verdict == Verdict(name="timed_out", evidence="still running 0 s and without a step")


def test_a_process_tree_that_uses_too_much_memory_is_ended(tmp_path: Path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {USE_64_MIB!r}])"
    result = run_watched(code, tmp_path, Memory(40 * MIB))
    assert result.stop_verdict
    assert result.stop_verdict.name == "out_of_memory"
    assert "the limit is 0.0 GiB" in result.stop_verdict.evidence


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells shared pages apart")
def test_memory_shared_by_forks_is_counted_once(tmp_path: Path):
    code = "import os, time; data = b'x' * 2**26; [os.fork() for _ in range(3)]; time.sleep(2)"
    samples: list[tuple[int, int]] = []

    def measure() -> None:
        processes = process_tree.descendants()
        samples.append((process_tree.used_memory_upper_bound(processes), process_tree.used_memory(processes)))

    run_watched(code, tmp_path, measure)
    rss, pss = max(samples)
    assert rss > 8 * 64 * MIB
    assert 64 * MIB < pss < 3 * 64 * MIB


def test_the_memory_limit_is_a_share_of_the_machine():
    assert GIB / 4 < memory_limit() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_memory_limit_of_a_container_counts(tmp_path: Path):
    unlimited, limited, old = (tmp_path / name for name in ("max", "new", "old"))
    for path, content in {unlimited: "max\n", limited: f"{GIB}\n", old: f"{2**63 - 4096}\n"}.items():
        path.write_text(content)
    machine = memory_limit([unlimited, old, tmp_path / "none"])
    assert memory_limit([old, limited]) == int(0.85 * GIB) < machine == memory_limit([])


def test_a_run_that_starts_too_many_processes_is_ended(tmp_path: Path):
    code = "import subprocess; [subprocess.Popen(['sleep', '30']) for _ in range(30)][-1].wait()"
    verdict = run_watched(code, tmp_path, Processes(most=25)).stop_verdict
    assert verdict
    assert verdict.name == "crashed"
    assert int(verdict.evidence.removeprefix("it had started ").removesuffix(" processes")) > 25


def test_a_run_that_makes_too_many_files_is_ended(tmp_path: Path):
    for number in range(50):  # of earlier runs
        (tmp_path / f"earlier_{number}").touch()
    code = "import os, time; [open(f'new_{{i}}', 'w') for i in range({})]; time.sleep({})"
    assert run_watched(code.format(20, 0.1), tmp_path, Files(tmp_path, most=40)).stop_verdict is None
    verdict = run_watched(code.format(41, 60), tmp_path, Files(tmp_path, most=15)).stop_verdict
    assert verdict == Verdict(name="crashed", evidence="it had made more than 15 files")


def test_a_run_that_floods_its_log_is_ended(tmp_path: Path):
    code = "import os\nwhile True: os.write(1, b'x' * 2**20)"
    verdict = run_watched(code, tmp_path, LogCap(tmp_path / "stdout.log", flood=32 * MIB)).stop_verdict
    assert verdict
    assert (verdict.name, "GiB to stdout.log faster than they can be cut" in verdict.evidence) == ("crashed", True)
    assert (tmp_path / "stdout.log").stat().st_size < 2 * GIB


def test_a_run_that_fills_the_shared_memory_is_ended(tmp_path: Path):
    watchdog = SharedMemory(limit=-1, folder=tmp_path)
    assert watchdog.left == 0
    verdict = watchdog()
    assert verdict
    assert (verdict.name, f"GiB into {tmp_path}" in verdict.evidence) == ("out_of_memory", True)


def test_a_nearly_full_disk_ends_the_process(tmp_path: Path):
    result = run_watched("import time; time.sleep(60)", tmp_path, Disk(tmp_path, free=2**60))
    assert result.stop_verdict
    assert result.stop_verdict.name == "disk_full"
    assert "GiB must stay free" in result.stop_verdict.evidence
    assert Disk(tmp_path, free=1)() is None


def test_no_run_starts_on_a_nearly_full_disk(tmp_path: Path):
    with pytest.raises(DiskFull, match="GiB must stay free: free some space, then `agent resume` continues"):
        require_disk(tmp_path, free=2**60)
    require_disk(tmp_path, free=1)


def test_a_log_that_grows_too_long_is_cut_in_the_middle_while_it_is_written(tmp_path: Path):
    log = tmp_path / "stdout.log"
    code = """
import time
print("the first line")
for number in range(40):
    print("x" * 50_000)
    time.sleep(0.05)
print("the last line")
"""
    run_watched(code, tmp_path, LogCap(log, size=200_000, kept=60_000))
    LogCap(log, size=200_000, kept=60_000)()
    text = log.read_text()
    assert len(text) <= 200_000 + 100
    assert text.startswith("the first line\n")
    assert text.endswith("the last line\n")
    assert "bytes cut by the driver" in text
    assert "\0" not in text


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_what_was_put_in_the_place_of_a_log_is_not_cut(tmp_path: Path, kind: str):
    victim, log = tmp_path / "victim", tmp_path / "stdout.log"
    victim.write_bytes(b"x" * 1000)
    {"link": log.symlink_to, "hard link": log.hardlink_to, "pipe": lambda _: os.mkfifo(log)}[kind](victim)
    LogCap(log, size=100, kept=10)()
    assert victim.stat().st_size == 1000


def test_processes_that_a_killed_driver_left_are_ended_and_no_others(tmp_path: Path):
    def leave_running(directory: Path) -> int:
        code = "import subprocess; print(subprocess.Popen(['sleep', '63.5'], stdout=2, start_new_session=True).pid)"
        env = dict(os.environ) | {workspace.STUDY_VARIABLE: str(directory)}
        parent = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
        return int(parent.stdout)

    mine, other = leave_running(tmp_path), leave_running(tmp_path / "other")
    assert process_tree.end_orphans(tmp_path) == 1
    time.sleep(0.1)
    assert [_running(pid) for pid in (mine, other)] == [False, True]
    assert process_tree.end_orphans(tmp_path / "other") == 1


def _running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
