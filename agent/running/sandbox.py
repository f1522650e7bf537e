"""Confinement of child processes: by bubblewrap where it works, else by Landlock with seccomp, else none.

`settle` chooses once for a study. A `View` says what one process may see: no path is there that the view does not
cover. Both kinds take away the network, signals to other processes, and what root may do beyond an ordinary user.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from agent.lab.errors import UserError
from agent.running import confine
from agent.study.records import Confinement, SandboxKind, SandboxWish

Access = Literal["read", "write", "hidden"]

TMPFS_BYTES = 2**30
HIDDEN_BYTES = 2**20  # of an empty folder in the place of a hidden one
SHARED_MEMORY_BYTES = 2 * 2**30
PROBE_SECONDS = 20
# What a program needs of the system besides the interpreter. Of /etc: no password, key or configuration of a service.
SYSTEM = [
    *(
        f"/{name}"
        for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "opt/rocm", "nix/store", "gnu/store", "sys")
    ),
    *(f"/etc/{name}" for name in ("alternatives", "fonts", "group", "hosts", "ld.so.cache", "ld.so.conf")),
    *(f"/etc/{name}" for name in ("ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "OpenCL", "passwd")),
    *(f"/etc/{name}" for name in ("ca-certificates", "pki", "resolv.conf", "ssl")),
]
DEV = Path("/dev")
DEVICES = ("null", "zero", "full", "random", "urandom")
GPUS = ("nvidia*", "dri", "kfd", "dxg")  # of CUDA, ROCm and WSL
PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")  # as containers have them: root may write them elsewhere


@dataclass(frozen=True)
class View:
    """What a process may see. Of a path and one inside it, the inner one decides for itself and what is below it.

    Under Landlock what is inside of something to be written can be written, too.
    """

    paths: Mapping[Path, Access]
    network: bool = False

    def resolved(self) -> dict[Path, Access]:
        """Return the paths that exist, outer ones first, also where their links lead."""
        places: dict[Path, Access] = {}
        for path, access in self.paths.items():
            if path.exists():
                places[path.resolve()] = places[path.absolute()] = access
        return dict(sorted(places.items(), key=lambda place: len(place[0].parts)))


@dataclass(frozen=True)
class Sandbox:
    """The way in which the processes of a study are confined."""

    kind: SandboxKind
    version: str = ""
    why_not: str = ""  # of kind none: the reason, and what to do

    @property
    def description(self) -> str:
        """Say whether and how runs are confined."""
        if self.kind == "none":
            return f"NOT confined: {self.why_not}"
        name = {"bubblewrap": "bubblewrap", "landlock": "Landlock and seccomp"}[self.kind]
        return f"confined by {name} {self.version}: no network, no other files"

    @contextmanager
    def command(
        self, command: Sequence[str], view: View, *, cwd: Path, scratch: Path
    ) -> Iterator[tuple[list[str], list[int]]]:
        """Yield the command that runs `command` with this view alone, and the descriptors that it inherits.

        `scratch` is an empty directory of its own, for temporary files and as its home.
        """
        if self.kind == "bubblewrap":
            with tempfile.TemporaryFile() as rules:
                rules.write(confine.system_call_filter(sockets=True))  # its namespace has no network to reach
                rules.seek(0)
                options = ["--seccomp", str(rules.fileno()), *bubblewrap_options(view, cwd, scratch)]
                yield ["bwrap", *options, "--", *command], [rules.fileno()]
        elif self.kind == "landlock":
            specification = _landlock_specification(view, scratch)
            yield [sys.executable, "-I", "-S", confine.__file__, specification, *command], []
        else:
            yield list(command), []

    def record(self, wish: SandboxWish) -> Confinement:
        """Return what the ledger keeps of it."""
        return Confinement(wish=wish, kind=self.kind, sentence=f"Runs were {self.description}.")

    def is_weaker(self, than: SandboxKind) -> bool:
        """Return True if it confines less than the other kind."""
        kinds = get_args(SandboxKind)
        return kinds.index(self.kind) < kinds.index(than)

    def exit_code(self, code: int) -> int:
        """Return the exit code of the confined command, negative if a signal killed it."""
        return 128 - code if self.kind == "bubblewrap" and code > 128 else code


UNCONFINED = Sandbox("none", why_not="--sandbox off was given")


def settle(wish: SandboxWish) -> Sandbox:
    """Return the strongest confinement that works here. Raise UserError if `required` and there is none."""
    if wish == "off":
        return UNCONFINED
    reasons = []
    for find in (find_bubblewrap, find_landlock):
        found = find()
        if isinstance(found, Sandbox):
            return found
        reasons.append(found)
    sandbox = Sandbox("none", why_not=", and ".join(reasons))
    if wish == "required":
        raise UserError(f"--sandbox required: runs would not be confined: {sandbox.why_not}")
    return sandbox


def interpreter_paths(environment: Mapping[str, str]) -> dict[Path, Access]:
    """Return what every Python process reads: the interpreter, its packages, the libraries of the system."""
    folders = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    folders |= {folder for name in ("PYTHONPATH", "LD_LIBRARY_PATH") for folder in environment.get(name, "").split(":")}
    return {Path(each): "read" for each in chain(SYSTEM, folders) if each}


def find_bubblewrap() -> Sandbox | str:
    """Return a sandbox of bubblewrap, or why there is none and what to do."""
    if sys.platform != "linux":
        return f"bubblewrap and Landlock are of Linux, and this is {sys.platform}: confined runs need a Linux machine"
    if shutil.which("bwrap") is None:
        return "bwrap is not installed (apt-get install bubblewrap)"
    version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.split()[-1:]
    sandbox = Sandbox("bubblewrap", version=version[0] if version else "of an unknown version")
    if error := _try_out(sandbox):
        return f"bubblewrap {sandbox.version} does not work here: {_explained(error)}"
    return sandbox


def find_landlock() -> Sandbox | str:
    """Return a sandbox of Landlock and seccomp, or why there is none."""
    if sys.platform != "linux":
        return "there is nothing else"
    if (abi := confine.landlock_abi()) < confine.ABI:
        kernel = f"this kernel's Landlock is version {abi}" if abi else "this kernel has no Landlock"
        return f"{kernel} (version {confine.ABI}, of Linux 6.12, would do)"
    sandbox = Sandbox("landlock", version=f"(version {abi})")
    if error := _try_out(sandbox):
        return f"Landlock does not work here: {error}"
    return sandbox


def _try_out(sandbox: Sandbox) -> str:
    """Start the interpreter in a sandbox, with the options of a training. Return the error, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="sae-agent-") as folder:
        scratch, written = Path(folder, "scratch"), Path(folder, "written")
        scratch.mkdir()
        written.mkdir()
        view = View({**interpreter_paths(os.environ), written: "write"})
        python = [sys.executable, "-I", "-c", "pass"]
        try:
            with sandbox.command(python, view, cwd=written, scratch=scratch) as (command, descriptors):
                result = subprocess.run(
                    command, capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=written, pass_fds=descriptors
                )
        except subprocess.TimeoutExpired:
            return f"it did not start within {PROBE_SECONDS} s"
        except OSError as error:
            return str(error)
    lines = result.stderr.strip().splitlines()
    return (lines[-1] if lines else f"exit status {result.returncode}") if result.returncode else ""


def _explained(error: str) -> str:
    """Say what to do about what bubblewrap printed."""
    if "Unknown option" in error:
        return "it is too old (0.8.0 or newer would do)"
    with suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            return (
                "AppArmor keeps user namespaces from it, as Ubuntu has it since 24.04 "
                "(sudo apt-get install apparmor-profiles, then load bwrap-userns-restrict)"
            )
    with suppress(OSError):
        if Path("/proc/sys/kernel/unprivileged_userns_clone").read_text().strip() == "0":
            return "user namespaces are switched off (sudo sysctl kernel.unprivileged_userns_clone=1)"
    if re.search("namespace|uid map|mount", error, re.IGNORECASE) and Path("/.dockerenv").exists():
        return f"this container allows no user namespaces (docker run --security-opt seccomp=unconfined): {error}"
    return error


def bubblewrap_options(view: View, cwd: Path, scratch: Path, dev: Path = DEV) -> list[str]:
    """Return the options of bwrap; `dev` is where the machine's devices are."""
    options = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += [] if view.network else ["--unshare-net"]
    options += ["--disable-userns", "--cap-drop", "ALL", "--die-with-parent"]
    options += chain.from_iterable(_mounts(view, scratch))
    options += ["--proc", "/proc"]
    for name in PROC_READ_ONLY:
        options += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    options += ["--dev", "/dev", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"]
    for device in gpu_devices(dev):
        options += ["--dev-bind-try", str(device), str(device)]
    return [*options, "--dir", str(cwd), "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(cwd)]


def _mounts(view: View, scratch: Path) -> Iterator[list[str]]:
    """Yield the options that mount what a view covers, outer paths first, each where it would otherwise differ."""
    places: dict[Path, Access | Literal["empty"]] = {**view.resolved(), Path("/tmp"): "empty", scratch: "empty"}
    for path, access in sorted(places.items(), key=lambda place: len(place[0].parts)):
        around = next((places[outer] for outer in path.parents if outer in places), "hidden")
        if access == "empty":
            yield ["--size", str(TMPFS_BYTES), "--tmpfs", str(path)]
        elif access == "hidden" and around in ("read", "write"):
            empty = ["--size", str(HIDDEN_BYTES), "--tmpfs"] if path.is_dir() else ["--ro-bind", "/dev/null"]
            yield [*empty, str(path)]
        elif access in ("read", "write") and access != around:
            yield ["--bind" if access == "write" else "--ro-bind", str(path), str(path)]


def _landlock_specification(view: View, scratch: Path) -> str:
    paths = {Path("/proc"): "read", **view.resolved(), scratch: "write"}
    devices = [*(f"/dev/{name}" for name in DEVICES), *map(str, gpu_devices())]
    content = {"paths": {str(path): access for path, access in paths.items()}}
    return json.dumps({**content, "devices": devices, "network": view.network})


def gpu_devices(dev: Path = DEV) -> list[Path]:
    """Return the device files by which programs reach the GPUs of this machine."""
    return sorted(chain.from_iterable(dev.glob(pattern) for pattern in GPUS))
