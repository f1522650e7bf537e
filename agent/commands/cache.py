"""`agent cache`: what is stored under SAE_AGENT_CACHE, how large, how old and what for; and clearing it."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.display.console import LONGEST_LINE, make_console, print_table
from agent.lab.cache import root
from agent.lab.errors import UserError, nearest

KINDS = ("activations", "baselines", "evaluation", "worlds")


@dataclass(frozen=True)
class Entry:
    """One thing that is stored."""

    kind: str
    path: Path
    size: int  # bytes
    changed: float  # seconds since the epoch

    @property
    def what_for(self) -> str:
        if self.path.is_symlink():
            return "a link; not followed"
        if self.path.name.endswith(".partial"):
            return "not finished"
        if self.kind == "worlds":
            return "a synthetic world, built here"
        if self.kind == "evaluation":
            return "what evaluations on this model and hook share: text, probes, random floors"
        about = _json(self.path / ("manifest.json" if self.kind == "activations" else "about.json"))
        tokens = about.get("rows" if self.kind == "activations" else "tokens")
        if not isinstance(tokens, int):
            return "damaged; made again when it is needed"
        setting = f"{about.get('model')}, {about.get('hook_name')}, {tokens:,} tokens"
        if self.kind == "activations":
            return setting
        trained = sum(path.is_dir() and not path.name.endswith(".partial") for path in self.path.iterdir())
        return f"{trained} of {setting}, d_sae {about.get('d_sae')}"


def entries(kind: str) -> list[Entry]:
    """What is stored of a kind; lock files, which hold nothing, are not counted."""
    folder = root() / kind
    if folder.is_symlink() or not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.iterdir()) if path.suffix != ".lock"]
    return [Entry(kind, path, *_measure(path)) for path in paths]


def show() -> None:
    """Print what is stored, with the total."""
    stored = [entry for kind in KINDS for entry in entries(kind)]
    if not stored:
        print(f"nothing is stored in {root()}")
        return
    console, now = make_console(LONGEST_LINE), time.time()
    rows = [(e.kind, in_bytes(e.size), age(now - e.changed), e.what_for, e.path.name) for e in stored]
    print_table(console, ("kind", "size", "age", "what for", "name"), rows)
    console.print(f"{in_bytes(sum(entry.size for entry in stored))} in {root()}", soft_wrap=True)


def clear(kinds: Sequence[str]) -> None:
    """Delete everything of these kinds (or `all`), and say how much was freed.

    Raises UserError for an unknown kind, and while the cache is in use.
    """
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise UserError(f"--clear {kind}: {nearest(kind, (*KINDS, 'all'))}")
    if not root().is_dir():
        print(f"nothing is stored in {root()}")
        return
    with (root() / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root()} is in use by a study or a run: clear it when that has ended") from None
        for kind in KINDS if "all" in kinds else sorted(set(kinds)):
            freed = sum(entry.size for entry in entries(kind))
            _delete(root() / kind)
            print(f"{kind}: {in_bytes(freed)} freed")


def in_bytes(size: float) -> str:
    """A size for reading: 1.4 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits: 3 days."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (number := int(seconds // length)) >= 1:
            return f"{number} {unit}{'s' * (number > 1)}"
    return "just now"


def _measure(path: Path) -> tuple[int, float]:
    """Bytes in a file or a folder, and when something in it last changed. Links are not followed."""
    files = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    size, changed = 0, 0.0
    for file in [path] if path.is_symlink() else files:
        try:
            status = file.lstat()
        except FileNotFoundError:  # a study works with it
            continue
        size += 0 if file.is_dir() and not file.is_symlink() else status.st_size
        changed = max(changed, status.st_mtime)
    return size, changed


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # removes links in it, not what they point to
    else:
        path.unlink(missing_ok=True)


def _json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
