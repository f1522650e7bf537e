"""`agent cache`: list what SAE_AGENT_CACHE holds, with sizes and ages, clear it, or prune it to a size."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.lab.cache import root
from agent.lab.defaults import SAE_BENCH
from agent.lab.errors import UserError, did_you_mean
from agent.lab.files import MIB, BadFile, read_plain, remove
from agent.lab.locks import Busy, lock_now

KINDS = ("activations", "baselines", "evaluation", "references", "texts", "worlds")


@dataclass(frozen=True)
class Entry:
    """A folder or file of the cache."""

    kind: str
    path: Path
    size: int  # bytes
    used: float  # or changed, last; seconds since the epoch

    @property
    def finished(self) -> bool:
        return not self.path.name.endswith(".partial")

    @property
    def purpose(self) -> str:
        if self.path.is_symlink():
            return "a link; not followed"
        if not self.finished:
            return "not finished"
        if self.kind == "worlds":
            return "a synthetic world, built here"
        if self.path == root() / "texts" / SAE_BENCH:
            return "SAE-Bench's own data"
        if self.kind == "texts":
            is_commit = self.path.suffix == ".commit"
            return "the commit of a hub dataset" if is_commit else "what was read of a text, as tokens"
        if self.kind == "references":
            return "scores of an SAE that was trained elsewhere"
        if self.kind == "evaluation":
            return "shared by evaluations on one model and hook: text, probes, random floors"
        about = _read_json(self.path / ("manifest.json" if self.kind == "activations" else "about.json"))
        tokens = about.get("rows" if self.kind == "activations" else "tokens")
        if not isinstance(tokens, int):
            return "damaged; will be rebuilt when needed"
        setting = f"{about.get('model')}, {about.get('hook_name')}, {tokens:,} tokens"
        if self.kind == "activations":
            return setting
        trained = sum(path.is_dir() and not path.name.endswith(".partial") for path in self.path.iterdir())
        return f"{trained} of {setting}, d_sae {about.get('d_sae')}"


def entries(kind: str) -> list[Entry]:
    """Return the entries of a kind, without lock files, which are empty."""
    folder = root() / kind
    if folder.is_symlink() or not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.iterdir()) if path.suffix != ".lock"]
    return [Entry(kind, path, *_size_and_change(path)) for path in paths]


def show() -> None:
    """Print a table of the cache, with its total size."""
    stored = [entry for kind in KINDS for entry in entries(kind)]
    if not stored:
        print(f"the cache {root()} is empty")
        return
    console, now = make_console(LONGEST_LINE), time.time()
    rows = [(e.kind, format_size(e.size), format_age(now - e.used), e.purpose, e.path.name) for e in stored]
    print_table(console, ("kind", "size", "age", "purpose", "name"), rows)
    console.print(f"{format_size(sum(entry.size for entry in stored))} in {root()}", soft_wrap=True)


def clear(kinds: Sequence[str]) -> None:
    """Delete everything of these kinds (or `all`) and print how much was freed.

    Raise UserError for an unknown kind, or if the cache is in use.
    """
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise UserError(f"--clear {kind}: {did_you_mean(kind, (*KINDS, 'all'))}")
    if not root().is_dir():
        print(f"the cache {root()} is empty")
        return
    with _alone("clear"):
        for kind in KINDS if "all" in kinds else sorted(set(kinds)):
            freed = sum(entry.size for entry in entries(kind))
            remove(root() / kind)
            print(f"{kind}: {format_size(freed)} freed")


def prune(gigabytes: float) -> None:
    """Delete what was not finished, and then what was used longest ago, until at most `gigabytes` are left; print it.

    Raise UserError if the cache is in use.
    """
    if not root().is_dir():
        print(f"the cache {root()} is empty")
        return
    with _alone("prune"):
        stored, now = [entry for kind in KINDS for entry in entries(kind)], time.time()
        left = sum(entry.size for entry in stored)
        for entry in sorted(stored, key=lambda entry: (entry.finished, entry.used)):
            if left <= gigabytes * 1e9:
                break
            if not entry.path.is_symlink() and entry.path.suffix != ".commit":  # which takes no room, and pins a text
                remove(entry.path)
                left -= entry.size
                age = f"{format_age(now - entry.used)} ago".replace("now ago", "now")
                print(f"{entry.kind}/{entry.path.name}: {format_size(entry.size)} freed, last used {age}")
        print(f"{format_size(left)} left in {root()}")


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Keep others from working with the cache. Raise UserError if one does; `what` is what it is in the way of."""
    try:
        with lock_now(root() / "lock"):
            yield
    except Busy as busy:
        user = busy.holder or "a study or a run"
        raise UserError(f"{root()} is in use by {user}: {what} it after that has ended") from None


def format_size(size: float) -> str:
    """Return a size as text: 1.4 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def format_age(seconds: float) -> str:
    """Return a time span in the largest unit that fits: 3 days."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (number := int(seconds // length)) >= 1:
            return f"{number} {unit}{'s' * (number > 1)}"
    return "just now"


def _size_and_change(path: Path) -> tuple[int, float]:
    """Return the bytes in a file or a folder, and its last change in seconds since the epoch, without following
    links."""
    files = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    size, changed = 0, 0.0
    for file in [path] if path.is_symlink() else files:
        try:
            status = file.lstat()
        except FileNotFoundError:  # deleted meanwhile by a study
            continue
        size += 0 if file.is_dir() and not file.is_symlink() else status.st_size
        changed = max(changed, status.st_mtime)
    return size, changed


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if there is none."""
    try:
        content = json.loads(read_plain(path, MIB))
    except (OSError, BadFile, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
