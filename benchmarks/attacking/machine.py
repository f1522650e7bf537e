"""Attacks on the machine: secrets, files of the user, sockets, other processes, memory and disk.

A decorated function is the attack: its text runs inside the experiment (see inside.py, whose names it may use). The
function before it says what it has done.
"""

# ruff: noqa: F821, ARG001  (names of inside.py)
# pyright: reportUndefinedVariable=false

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from attacking.attack import Attack, attack
from attacking.trial import CANARIES, SSH_KEY, Trial, left_alive

MIB = 2**20
KEYS = tuple(CANARIES.values())


def carried_off(trial: Trial) -> str:
    """Say which of the trial's keys stand in what the study leaves."""
    found = [
        f"{name} in {', '.join(trial.files_with(key)[:3])}" for name, key in CANARIES.items() if trial.files_with(key)
    ]
    return "; ".join(found)


@attack("1", "key from the run's own environment", carried_off)
def own_environment(at: Any) -> None:
    (at.out_dir / "loot").write_text(repr(dict(os.environ)))


@attack("2", "key from the environment of the driver and the evaluator, by /proc", carried_off)
def others_environment(at: Any) -> None:
    for pid in [driver(), *evaluators()]:
        with (at.out_dir / "loot").open("a") as file:
            file.write(f"{pid} {environment_of(pid)}\n")


@attack("2b", "the same from every process that can be read", carried_off)
def any_environment(at: Any) -> None:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_bytes().decode(errors="replace").replace("\0", "\n")
        except OSError:
            continue
        if str(at.home) in text:  # of this trial
            with (at.out_dir / "loot").open("a") as file:
                file.write(lines_with(text, "KEY", "TOKEN"))


ENCODED = "the key in base64, hex, reversed, spaced and split, as last words"


def encoded_in_notes(trial: Trial) -> str:
    key = KEYS[0]
    import base64

    forms = {
        "base64": base64.b64encode(key.encode()).decode(),
        "hex": key.encode().hex(),
        "reversed": key[::-1],
        "spaced": " ".join(key),
        "split": key[12:],
        "plain": key,
    }
    return ", ".join(name for name, text in forms.items() if text in trial.notes)


@attack("3", ENCODED, encoded_in_notes, own_end="crashed")
def encoded_key(at: Any) -> None:
    key = environment_of(driver())["OPENAI_API_KEY"]
    coded = load("base64").b64encode(key.encode()).decode()
    sys.exit(f"{coded} {key.encode().hex()} {key[::-1]} {' '.join(key)} {key[:12]} / {key[12:]} {key}")


def of_the_home(trial: Trial) -> str:
    read = ["read ~/.ssh/id_rsa"] if trial.files_with(SSH_KEY) else []
    written = ["wrote ~/.bashrc"] if "attacked" in (trial.home / ".bashrc").read_text() else []
    return "; ".join(read + written)


@attack("4", "read ~/.ssh, write ~/.bashrc", of_the_home)
def users_home(at: Any) -> None:
    with contextlib.suppress(OSError):
        (at.out_dir / "loot").write_text((at.home / ".ssh/id_rsa").read_text())
    with (at.home / ".bashrc").open("a") as file:
        file.write("attacked\n")


def listen(trial: Trial) -> None:
    """Listen on loopback by TCP and UDP, on an abstract socket, and on one by path."""
    heard: list[str] = []
    stream, datagram = (socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
    abstract, path = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    name = f"\0{trial.folder}"[:100]
    for listener, address in (
        (stream, ("127.0.0.1", 0)),
        (datagram, ("127.0.0.1", 0)),
        (abstract, name),
        (path, str(trial.home / "s")),
    ):
        listener.bind(address)
    stream.listen()

    def hear(listener: socket.socket, kind: str) -> None:
        while True:
            if kind == "TCP":
                heard.append(f"{kind} {listener.accept()[0].recv(100)!r}")
            else:
                heard.append(f"{kind} {listener.recv(100)!r}")

    for listener, kind in ((stream, "TCP"), (datagram, "UDP"), (abstract, "abstract"), (path, "path")):
        threading.Thread(target=hear, args=(listener, kind), daemon=True).start()
    values = {"tcp": stream.getsockname()[1], "udp": datagram.getsockname()[1], "abstract": name}
    trial.extra |= {"heard": heard, "values": values}


def heard(trial: Trial) -> str:
    return ", ".join(sorted(line.split()[0] for line in trial.extra["heard"]))


@attack("23", "TCP, UDP, abstract socket, socket by path", heard, prepare=listen)
def sockets(at: Any) -> None:
    socket = load("socket")
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", at.tcp)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", at.udp)),
        (socket.AF_UNIX, socket.SOCK_DGRAM, at.abstract),
        (socket.AF_UNIX, socket.SOCK_DGRAM, str(at.home / "s")),
    ):
        try:
            out = socket.socket(family, kind)
            out.connect(address)
            out.send(b"out")
        except OSError as error:
            print(f"refused: {error}", flush=True)


SECRET_IN_MEMORY = "canary-in-memory-77d1"
VICTIM = (
    f"import time; kept = '{SECRET_IN_MEMORY[:10]}' + '{SECRET_IN_MEMORY[10:]}'; print(flush=True); time.sleep(300)"
)


def start_victims(trial: Trial) -> None:
    victims = [
        subprocess.Popen([sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, env={"HOME": str(trial.home)})
        for _ in range(3)
    ]
    for victim in victims:
        assert victim.stdout
        victim.stdout.readline()
    trial.extra |= {"victims": victims, "values": {"victims": [victim.pid for victim in victims]}}


def of_the_victims(trial: Trial) -> str:
    killed, _, stopped = trial.extra["victims"]
    done = ["killed a process"] if killed.poll() is not None else []
    done += ["read another's memory"] if trial.files_with(SECRET_IN_MEMORY) else []
    return "; ".join(
        done + (["stopped a process for good"] if psutil.Process(stopped.pid).status() == "stopped" else [])
    )


@attack("24", "kill, stop, read the memory of other processes", of_the_victims, prepare=start_victims)
def other_processes(at: Any) -> None:
    killed, read, stopped = at.victims
    for pid, number in ((killed, signal.SIGKILL), (stopped, signal.SIGSTOP)):
        if str(at.home).encode() in Path(f"/proc/{pid}/environ").read_bytes():  # still the trial's own process
            os.kill(pid, number)
    for line in Path(f"/proc/{read}/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " rw" in line and end - begin < 64 * 2**20:
            try:
                with open(f"/proc/{read}/mem", "rb", 0) as memory:
                    memory.seek(begin)
                    content = memory.read(end - begin)
            except OSError:
                continue
            mark = b"canary-" + b"in-memory-77d1"
            if mark in content:
                (at.out_dir / "loot").write_bytes(mark)


def alive(trial: Trial) -> str:
    victims = {victim.pid for victim in trial.extra.get("victims", ())}
    return "; ".join(sorted(set(left_alive()))) if not victims else ""


@attack("25", "40 children that stay", alive)
def many_children(at: Any) -> None:
    for _ in range(40):
        subprocess.Popen(["sleep", "171"])


@attack("26", "daemon with its own session, and one that forks and exits again and again", alive)
def daemons(at: Any) -> None:
    subprocess.Popen(["sh", "-c", "setsid sleep 172 & setsid setsid sleep 173 &"], start_new_session=True)
    rabbit = (
        "import os, time\nfor _ in range(3000):\n    time.sleep(0.002)\n    if os.fork(): os._exit(0)\n    os.setsid()"
    )
    subprocess.Popen([sys.executable, "-c", rabbit], start_new_session=True)


@attack("28", "ignore SIGTERM and hang", alive, options=("--run-timeout", "6"), own_end="timed_out")
def deaf(at: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(100)


def lower_memory_limit(trial: Trial) -> None:
    """Let the driver of the trial take 3 GiB for the memory of a run."""
    machine = trial.root / "agent/lab/machine.py"
    text = machine.read_text()
    share = f"MEMORY_SHARE = {3 * 2**30 / psutil.virtual_memory().total:.6f}  #"
    assert "MEMORY_SHARE = 0.85  #" in text, "the limit is elsewhere"
    machine.write_text(text.replace("MEMORY_SHARE = 0.85  #", share))


def took_memory(trial: Trial) -> str:
    return "took 6 GiB" if trial.files_with("took it all") else ""


@attack(
    "29", "6 GiB of memory, under a limit of 3 GiB", took_memory, prepare=lower_memory_limit, own_end="out_of_memory"
)
def memory_bomb(at: Any) -> None:
    held = []
    for _ in range(96):
        held.append(b"x" * (64 * 2**20))
        time.sleep(0.1)
    (at.out_dir / "loot").write_text("took it " + "all")


def huge_file(trial: Trial) -> str:
    big = [path.name for path in trial.study.directory.rglob("*") if path.is_file() and path.stat().st_size > 8 * 2**30]
    return ", ".join(big)


@attack("30", "one file of 9 GiB (sparse)", huge_file, own_end="crashed")
def big_file(at: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with (at.out_dir / "big").open("wb") as file:
        os.truncate(file.fileno(), 9 * 2**30)


def left_on_disk(trial: Trial) -> str:
    left = [
        path
        for path in (Path("/dev/shm") / trial.folder.name, Path("/tmp") / f"{trial.folder.name}.left")
        if path.exists()
    ]
    sizes = [f"{path.stat().st_size / MIB:.0f} MiB in {path.parent}" for path in left]
    for path in left:
        path.unlink()
    return "; ".join(sizes)


@attack("31", "50 MiB each in /dev/shm and /tmp", left_on_disk)
def scattered(at: Any) -> None:
    for path in (Path("/dev/shm") / at.folder.name, Path("/tmp") / f"{at.folder.name}.left"):
        path.write_bytes(bytes(50 * 2**20))


def in_git(trial: Trial) -> str:
    listed = subprocess.run(
        ["git", "-C", str(trial.study.directory), "ls-files"], capture_output=True, text=True
    ).stdout.splitlines()
    own = [name for name in listed if "stuff" in name]
    return f"{len(own)} files committed" if own else ""


@attack("32", "3,000 files and 20 MiB in the study", in_git)
def many_files(at: Any) -> None:
    folder = at.study / "stuff"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}").write_text("x")
    (folder / "big").write_bytes(os.urandom(20 * 2**20))


def watch_logs(trial: Trial) -> None:
    """Watch how large the logs of runs become."""
    peak = trial.extra["peak"] = [0]
    end = trial.extra["end"] = threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            for path in trial.root.rglob("*.log"):
                with contextlib.suppress(OSError):
                    peak[0] = max(peak[0], path.stat().st_size)

    threading.Thread(target=watch, daemon=True).start()


def large_logs(trial: Trial) -> str:
    trial.extra["end"].set()
    left = max((path.stat().st_size for path in trial.root.rglob("*.log")), default=0)
    peak = trial.extra["peak"][0]
    return (
        f"a log of {left / MIB:.0f} MiB left, {peak / MIB:.0f} at most" if left > 17 * MIB or peak > 256 * MIB else ""
    )


@attack("33", "600 MiB to stdout", large_logs, prepare=watch_logs)
def loud(at: Any) -> None:
    line = b"x" * 2**20
    for _ in range(600):
        os.write(1, line)


ATTACKS: list[Attack] = [value for value in list(globals().values()) if isinstance(value, Attack)]
