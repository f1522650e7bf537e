"""Locks between processes, with the system's flock and on a file system that has none."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from without_flock import without_flock

from agent.lab.lock_files import Holder

HOLD = """
import sys, time
from pathlib import Path
from agent.lab.locks import {kind}
with {kind}(Path(sys.argv[1]), *{arguments}):
    print("held", flush=True)
    sys.stdin.read()
"""
WAIT = HOLD.format(kind="waiting_lock", arguments=("somebody builds it",))
WAIT_SHORTLY = HOLD.format(kind="waiting_lock", arguments=("somebody builds it", 1.5))
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture(params=["flock", "ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return {} if request.param == "flock" else without_flock(tmp_path, getattr(errno, request.param))


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """A function that starts Python code which holds the lock at tmp_path/lock until its standard input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "lock")],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


only_without_flock = pytest.mark.parametrize("environment", ["ENOLCK"], indirect=True)


def first_line(process: "subprocess.Popen[str]", of_errors: bool = False) -> str:
    pipe = process.stderr if of_errors else process.stdout
    assert pipe
    return pipe.readline()


def elsewhere(token: str = "a0") -> Holder:
    """The holder of a lock on another machine."""
    return replace(Holder.myself(), name="process 7 on n2", token=token, place="another machine")


def beat_for_a_while(file: Path, holder: Holder) -> None:
    for _ in range(10):
        time.sleep(0.3)
        holder = holder.beaten()
        with file.open("r+b") as written:
            written.write(holder.written())


def test_a_process_that_has_to_wait_tells_for_whom_and_goes_on_when_that_ends(start: Start, tmp_path: Path):
    holder = start(WAIT)
    assert first_line(holder) == "held\n"
    waiting = start(WAIT)
    owner = rf"process {holder.pid} on {os.uname().nodename}"
    assert first_line(waiting, of_errors=True) == f"waiting: somebody builds it ({owner} holds {tmp_path / 'lock'})\n"
    assert holder.communicate("")[1] == ""
    assert first_line(waiting) == "held\n"
    assert waiting.communicate("")[1] == ""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("lock")] == ["lock"]


@only_without_flock
def test_the_lock_of_a_killed_process_is_free_at_once(start: Start):
    holder = start(WAIT)
    assert first_line(holder) == "held\n"
    waiting = start(WAIT)
    assert first_line(waiting, of_errors=True).startswith("waiting: ")
    killed = time.monotonic()
    holder.kill()
    holder.wait()
    assert first_line(waiting) == "held\n"
    assert time.monotonic() - killed < 10


@only_without_flock
def test_a_silent_holder_on_another_machine_is_followed_and_a_living_one_waited_for(start: Start, tmp_path: Path):
    file, holder = tmp_path / "lock.held", elsewhere()
    file.write_bytes(holder.written())
    waiting = start(WAIT_SHORTLY)
    assert "(process 7 on n2 holds" in first_line(waiting, of_errors=True)
    beat_for_a_while(file, holder)
    assert waiting.poll() is None
    assert "nothing was heard of process 7 on n2 for 2 s, so its lock is taken" in first_line(waiting, of_errors=True)
    assert first_line(waiting) == "held\n"
    assert sorted(path.name for path in tmp_path.glob("lock.*")) == ["lock.held", "lock.held-a0"]
    waiting.communicate("")
    assert not list(tmp_path.glob("lock.*"))


ENTER_OFTEN = """
import os, sys, time
from pathlib import Path
from agent.lab.locks import waiting_lock
lock = Path(sys.argv[1])
log = os.open(lock.with_name("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(4):
    with waiting_lock(lock, "many want it", 1.5):
        os.write(log, f"in {os.getpid()}\\n".encode())
        time.sleep(0.01)
        os.write(log, f"out {os.getpid()}\\n".encode())
"""


@only_without_flock
def test_of_many_that_find_the_holder_dead_one_at_a_time_follows_it(start: Start, tmp_path: Path):
    dead = elsewhere()
    (tmp_path / "lock.held").write_bytes(dead.written())
    (tmp_path / "lock.held-a0").write_bytes(elsewhere("b1").written())  # it followed, and died too
    processes = [start(ENTER_OFTEN) for _ in range(8)]
    assert {process.wait(60) for process in processes} == {0}
    log = (tmp_path / "log").read_text().split()
    assert log[::4] == ["in"] * 32
    assert log[2::4] == ["out"] * 32
    assert log[1::4] == log[3::4]
    assert not list(tmp_path.glob("lock.*"))


@only_without_flock
def test_who_wants_a_lock_alone_gives_all_that_share_it_the_same_time_for_a_sign(start: Start, tmp_path: Path):
    for number in range(6):
        (tmp_path / f"lock-user-{number}.held").write_bytes(elsewhere(f"a{number}").written())
    started, alone = time.monotonic(), start(HOLD.format(kind="lock_now", arguments=(1.5,)))
    assert first_line(alone) == "held\n"
    assert 1.5 < time.monotonic() - started < 7.5
    assert not list(tmp_path.glob("lock-user-*"))
    sharing = start(HOLD.format(kind="shared_lock", arguments=("somebody clears it",)))
    assert "waiting: somebody clears it (process" in first_line(sharing, of_errors=True)
    alone.communicate("")
    assert first_line(sharing) == "held\n"


@only_without_flock
def test_a_process_whose_lock_was_taken_over_ends(start: Start, tmp_path: Path):
    holder = start(WAIT_SHORTLY)
    assert first_line(holder) == "held\n"
    (tmp_path / "lock.held").unlink()
    (tmp_path / "lock.held").write_bytes(elsewhere().written())
    assert "was taken over by process 7 on n2 while process" in first_line(holder, of_errors=True)
    assert holder.wait(30) == -signal.SIGTERM
    assert (tmp_path / "lock.held").exists()


@only_without_flock
@pytest.mark.parametrize("content", ["", "[]", '{"token": "../x"}', "\x00" * 20_000])
def test_a_lock_file_that_is_none_is_named(start: Start, tmp_path: Path, content: str):
    (tmp_path / "lock.held").write_text(content)
    errors = start(WAIT).communicate("")[1]
    assert f"{tmp_path / 'lock.held'} is" in errors.splitlines()[-1]


def study_lock(directory: Path, environment: dict[str, str]) -> str:
    """Return what a driver says that wants the lock of a study."""
    code = (
        "import sys; from pathlib import Path; from agent.study.workspace import Study\n"
        "with Study(Path(sys.argv[1]), Path()).lock(): sys.exit('free')"
    )
    command = [sys.executable, "-c", code, str(directory)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stderr.strip()


@only_without_flock
def test_a_study_in_use_names_its_driver_also_without_flock(start: Start, tmp_path: Path, environment: dict[str, str]):
    driver = start(HOLD.format(kind="lock_now", arguments=()))
    assert first_line(driver) == "held\n"
    busy = f"StudyBusy: {tmp_path.name} is in use by process {driver.pid} on {os.uname().nodename}: wait until"
    assert busy in study_lock(tmp_path, environment).splitlines()[-1]
    driver.kill()
    driver.wait()
    assert study_lock(tmp_path, environment) == "free"


@only_without_flock
def test_the_driver_of_a_study_on_another_machine_is_known_by_its_beats(tmp_path: Path, environment: dict[str, str]):
    file, holder = tmp_path / "lock.held", elsewhere()
    file.write_bytes(holder.written())
    driver = threading.Thread(target=beat_for_a_while, args=(file, holder))
    driver.start()
    lines = study_lock(tmp_path, environment).splitlines()
    driver.join()
    held = f"process 7 on n2 holds {tmp_path / 'lock'}, if it lives: 60 s are given it for a sign"
    assert lines[0] == f"waiting: it may be in use ({held})"
    assert lines[-1].endswith(f"StudyBusy: {tmp_path.name} is in use by process 7 on n2: wait until that has ended")
