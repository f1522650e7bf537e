"""python -I -S confine.py SPEC COMMAND [ARGUMENT ...]: run a command under Landlock and seccomp. Linux 6.12 or newer.

SPEC is JSON: `paths` (path -> read, write or hidden), `devices` (paths) and `network` (bool). What no path covers can
be neither read nor written. Only the standard library is imported, and nothing of `agent`, to start quickly.
"""

import ctypes
import errno
import json
import os
import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

ABI = 6  # of Landlock: the first that keeps signals inside, Linux 6.12

# linux/landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
EVERY_RIGHT = (1 << 16) - 1
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the others are of directories
READ = EXECUTE | READ_FILE | READ_DIR
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV | READ_DIR
WRITE = EVERY_RIGHT & ~(IOCTL_DEV | 1 << 6 | 1 << 11)  # all but making devices, and commands to them

# linux/prctl.h, linux/capability.h
SET_SECCOMP, CAPBSET_DROP, SET_NO_NEW_PRIVS = 22, 24, 38
CAPABILITY_VERSION = 0x20080522

# linux/audit.h; a system call is named as in the manual. Namespaces, the keys and the shared memory of the user, the
# kernel's own interpreters; io_uring, since what it does passes no filter.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
}
SOCKET = (41, 198)
CLONE, CLONE3, PRLIMIT = (56, 220), (435, 435), (302, 261)
NEW_NAMESPACES = 0x7E020000  # the flags of clone that make one
X32 = 0x40000000

LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _checked(LIBC.syscall(ctypes.c_long(number), *arguments), what)


def _prctl(what: str, option: int, *arguments: object) -> int:
    padded = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(LIBC.prctl(ctypes.c_int(option), *padded), what)


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock, or 0 if it has none."""
    number = LIBC.syscall(
        ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION)
    )
    return max(0, number)


def rules(paths: dict[Path, str]) -> Iterator[tuple[Path, int]]:
    """Yield paths with the rights on each and on everything below it.

    Landlock can only add rights, so a directory with something hidden in it is allowed entry by entry. The names in it
    can be listed. What is to be read only inside of what is written cannot be expressed.
    """
    hidden = {path for path, access in paths.items() if access == "hidden"}
    for path, access in paths.items():
        if access == "write":
            yield path, WRITE
        elif access == "read":
            yield from _readable(path, hidden)


def _readable(path: Path, hidden: set[Path]) -> Iterator[tuple[Path, int]]:
    if path in hidden:
        return
    if not any(path in each.parents for each in hidden):
        yield path, READ
        return
    yield path, READ_DIR
    for child in path.iterdir():
        if not child.is_symlink():
            yield from _readable(child, hidden)


def restrict_files(paths: dict[Path, str], devices: list[Path], network: bool) -> None:
    """Allow the paths and nothing else of the file system, no TCP, and no signals to processes outside."""
    handled = struct.pack("QQQ", EVERY_RIGHT, 0 if network else BIND_AND_CONNECT_TCP, ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _syscall("Landlock", CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    for path, rights in [*rules(paths), *((device, DEVICE) for device in devices)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = rights if path.is_dir() else rights & OF_FILES
        rule = struct.pack("=Qi", allowed, descriptor)
        _syscall(f"Landlock for {path}", ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, ctypes.c_uint32(0))
        os.close(descriptor)
    _syscall("Landlock", RESTRICT_SELF, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def drop_capabilities() -> None:
    """Give up what root may do beyond an ordinary user, for good."""
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        LIBC.prctl(CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # refused to an ordinary user, who has none
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION, 0), struct.pack("6I", *[0] * 6)
    _checked(LIBC.capset(header, nothing), "capset")


def system_call_filter(sockets: bool) -> bytes:
    """Return a seccomp program that refuses what neither Landlock nor namespaces keep apart. Raise OSError if there is
    none for this processor."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    column = list(ARCHITECTURES).index(machine)
    refused = [*REFUSED.values(), *([] if sockets else [SOCKET])]
    return b"".join(_filter(ARCHITECTURES[machine], [row[column] for row in refused], column))


def restrict_calls(network: bool) -> None:
    """Refuse system calls that Landlock knows nothing of."""
    program = system_call_filter(sockets=network)
    code = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _prctl("seccomp", SET_SECCOMP, 2, ctypes.c_char_p(description))


def _filter(architecture: int, refused: list[int], column: int) -> Iterator[bytes]:
    """Yield a program of linux/bpf_common.h, an instruction at a time."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, of_architecture, first_argument = 0, 4, 16  # offsets in struct seccomp_data
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    yield instruction(load, of_architecture)
    yield instruction(equal, architecture, if_true=1)
    yield instruction(give, kill)
    yield instruction(load, number)
    yield instruction(at_least, X32, if_false=1)
    yield instruction(give, refuse)
    for call in refused:
        yield instruction(equal, call, if_false=1)
        yield instruction(give, refuse)
    yield instruction(equal, CLONE3[column], if_false=1)
    yield instruction(give, unknown)  # glibc then uses clone, whose flags a filter can read
    yield instruction(equal, CLONE[column], if_false=3)
    yield instruction(load, first_argument)
    yield instruction(any_bit, NEW_NAMESPACES, if_false=5)  # to the last
    yield instruction(give, refuse)
    yield instruction(equal, PRLIMIT[column], if_false=3)  # another process's limits: 0 is its own
    yield instruction(load, first_argument)
    yield instruction(equal, 0, if_true=1)
    yield instruction(give, refuse)
    yield instruction(give, allow)


def main() -> None:
    specification, *command = sys.argv[1:]
    asked = json.loads(specification)
    if landlock_abi() < ABI:
        sys.exit(f"error: Landlock has version {landlock_abi()} here, and {ABI} is needed")
    _prctl("no new privileges", SET_NO_NEW_PRIVS, 1)
    paths, devices = {Path(path): access for path, access in asked["paths"].items()}, map(Path, asked["devices"])
    restrict_files(paths, list(devices), asked["network"])
    drop_capabilities()
    restrict_calls(asked["network"])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
