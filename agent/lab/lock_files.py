"""A lock where the file system has no flock: a file that names its holder and has a heartbeat.

The file of a lock `x.lock` is `x.held.lock`. Whoever takes over from a dead holder makes `x.held-T.lock`, where T is
the token in the dead one's file, and so on: the last file of this chain is the holder's. Each is made by a hard link,
which one process alone can make, and nobody removes a file of others while he does not hold the lock: of many that find
the same holder dead, exactly one follows it.

No clock is read, since those of machines differ and jump. The holder counts up a number in its file, and another
process counts how often it has looked at it in vain.
"""

import errno
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

from agent.lab.errors import UserError
from agent.lab.files import BadFile, flush, read_plain, remove
from agent.lab.progress import notify
from agent.lab.visible import visible

PATIENCE = 60.0  # seconds of looks without a heartbeat after which a holder on another machine counts as dead
BEATS = 12  # in that time
LOOKS = 120  # in that time
LARGEST = 10_000  # bytes of a lock file


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. A process id says something only in the same `place`."""

    name: str  # in words: process 12 on n1
    token: str
    place: str
    pid: int
    start: str  # when the process started, in ticks since its machine did; "" if the system does not say
    beat: str = f"{0:012}"  # of one length: a file that is read while it is written can be read

    @classmethod
    def myself(cls) -> Self:
        pid = os.getpid()
        return cls(this_process(), uuid.uuid4().hex, _place(), pid, _start_and_state(pid)[0])

    @property
    def here(self) -> bool:
        """Return True if its process is, or was, one that this process can see."""
        return self.place == _place()

    @property
    def gone(self) -> bool:
        """Return True if its process is known to have ended."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        start, state = _start_and_state(self.pid)
        return state in ("Z", "X") or (start != self.start and "" not in (start, self.start))

    def __str__(self) -> str:
        return self.name

    def beaten(self) -> Self:
        return replace(self, beat=f"{int(self.beat) + 1:012}")

    def written(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Busy(UserError):
    """Somebody else holds a lock: `holder` in words, or "" if that is not known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is in use by {holder or 'another process'}: wait until that has ended")
        self.holder = holder


@contextmanager
def hold(path: Path, reason: str | None, patience: float) -> Iterator[None]:
    """Hold the lock at `path`; wait for it and tell the user the `reason`, or raise Busy if that is None.

    A holder on this machine is waited for as long as its process runs. One on another machine is dead if `patience`
    seconds have passed without a heartbeat: its lock is taken over. If the same is done to this process, it ends.
    """
    me = Holder.myself()
    _acquire(path, me, reason, patience)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, me, patience / BEATS, ended), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        _release(path, me)


@contextmanager
def share(path: Path, reason: str, patience: float) -> Iterator[None]:
    """Hold a lock that any number of processes may hold at once, but none together with `hold_alone`."""
    with ExitStack() as mine:
        with hold(path, reason, patience):
            mine.enter_context(hold(_named(path, f"-user-{uuid.uuid4().hex}"), reason, patience))
        yield


@contextmanager
def hold_alone(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock at `path`. Raise Busy if somebody else has it or shares it."""

    def remove_if_dead(user: Path) -> None:
        with hold(user, None, patience):
            pass

    with hold(path, None, patience):
        files = path.parent.glob(_named(path, "-user-*.held").name)
        users = [file.with_name(file.name.replace(".held", "", 1)) for file in files]
        with ThreadPoolExecutor(max_workers=len(users) + 1) as pool:  # all are watched at once
            list(pool.map(remove_if_dead, users))
        yield


def this_process() -> str:
    """Return the name of this process in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _acquire(path: Path, me: Holder, reason: str | None, patience: float) -> None:
    seen, silent, told = None, 0, False
    while True:
        chain = _chain(path)
        last = chain[-1] if chain else None
        silent = silent + 1 if last and last == seen and not last.here else 0
        if last is None or last.gone or silent >= LOOKS:
            if silent:
                notify(f"{path}: nothing was heard of {last} for {patience:.0f} s, so its lock is taken over")
            if _follow(path, last, me):
                return
            continue  # another one was faster
        if reason is None and (last.here or (seen and seen.token == last.token and seen != last)):
            raise Busy(path, last.name)
        if not told:
            doubt = "" if last.here else f", if it lives: {patience:.0f} s are given it for a sign"
            notify(f"waiting: {reason or 'it may be in use'} ({last} holds {path}{doubt})")
            told = True
        seen = last
        time.sleep(patience / LOOKS)


def _follow(path: Path, last: Holder | None, me: Holder) -> bool:
    """Take the place after `last`, which holds the lock no more. Return False if another process did."""
    target = _file_after(path, last)
    if not _link(target, me):
        return False
    if [holder.token for holder in _chain(path)][-1:] == [me.token]:
        return True
    remove(target)  # the whole chain was released after it had been read
    return False


def _release(path: Path, me: Holder) -> None:
    """Remove the files of the lock, the first one first: from then on it is free."""
    chain = _chain(path)
    if not chain or chain[-1].token != me.token:
        return
    for last in (None, *chain[:-1]):
        remove(_file_after(path, last))


def _beat(path: Path, me: Holder, seconds: float, ended: threading.Event) -> None:
    """Show that this process lives. End it if its lock was taken over: then two would do what one may do."""
    while not ended.wait(seconds):
        with suppress(OSError, BadFile):  # the disk may answer at the next beat
            chain = _chain(path)
            if not chain or chain[-1].token != me.token:
                by = f"taken over by {chain[-1].name}" if chain else "removed"
                notify(f"error: the lock {path} was {by} while {me.name} was not heard of: it ends, so start it again")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            me = me.beaten()
            with _file_after(path, chain[-2] if len(chain) > 1 else None).open("r+b") as file:
                file.write(me.written())
                file.flush()
                os.fsync(file.fileno())


def _chain(path: Path) -> list[Holder]:
    """Return the holder that was first and all that took over; [] if the lock is free."""
    chain: list[Holder] = []
    while holder := _read(file := _file_after(path, chain[-1] if chain else None)):
        if holder.token in (earlier.token for earlier in chain):
            raise _not_ours(file)
        chain.append(holder)
    return chain


def _file_after(path: Path, last: Holder | None) -> Path:
    return _named(path, f".held-{last.token}" if last else ".held")


def _named(path: Path, addition: str) -> Path:
    return path.with_name(f"{path.stem}{addition}{path.suffix}")


def _read(file: Path) -> Holder | None:
    try:
        holder = Holder(**json.loads(read_plain(file, LARGEST)))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed by another machine while it was read
            return None
        raise
    except (ValueError, TypeError):
        raise _not_ours(file) from None
    texts = (holder.name, holder.token, holder.place, holder.start, holder.beat)
    if not all(isinstance(text, str) for text in texts) or not isinstance(holder.pid, int):
        raise _not_ours(file)
    if not holder.token.isalnum():
        raise _not_ours(file)
    return replace(holder, name=visible(holder.name))


def _not_ours(file: Path) -> BadFile:
    return BadFile(f"{file} is not a lock of ours: remove it if no study runs")


def _link(target: Path, me: Holder) -> bool:
    """Make a file that appears with its content. Return False if it is there already. Raise UserError."""
    partial = target.with_name(f"{target.name}.{me.token}.partial")
    try:
        partial.write_bytes(me.written())
        flush(partial)
        with suppress(FileExistsError):  # also what a server answers that is asked twice
            os.link(partial, target)
        return (found := _read(target)) is not None and found.token == me.token
    except OSError as error:
        raise UserError(
            f"{target} cannot be made ({error.strerror}), and {target.parent} has no flock: "
            "put the study and SAE_AGENT_CACHE on a file system with flock or hard links"
        ) from None
    finally:
        remove(partial)


@cache
def _place() -> str:
    """Return where a process id counts: a boot of a machine, and its process namespace, of which a sandbox has one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_and_state(pid: int) -> tuple[str, str]:
    """Return when a process started and the letter of its state, or "" for each if the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], fields[0]
    except (OSError, IndexError):
        return "", ""
