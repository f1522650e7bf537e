"""The cache: large files that can be made again, shared between studies."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.lab.errors import UserError
from agent.lab.locks import shared_lock


def root() -> Path:
    """Return the cache folder: SAE_AGENT_CACHE, or sae-agent in the user's cache folder.

    Raises UserError where no folder can be, since a file is there.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SAE_AGENT_CACHE") or Path(base) / "sae-agent").expanduser().absolute()
    if not (there := _nearest(folder)).is_dir():
        raise UserError(f"the cache {folder} cannot be there, as {there} is no folder: set SAE_AGENT_CACHE to a folder")
    return folder


@contextmanager
def in_use() -> Iterator[None]:
    """Keep `agent cache --clear` away while this process works with the cache."""
    root().mkdir(parents=True, exist_ok=True)
    with shared_lock(root() / "lock", "the cache is being cleared"):
        yield


def mark_used(entry: Path) -> None:
    """Note the time at which a file or folder of the cache was used last: the oldest are the first to be pruned."""
    with suppress(OSError):  # not there yet, or seen by a confined process that may not write it
        os.utime(entry)


def slug(name: str) -> str:
    """Return a name fit for a file: letters, digits, dots and hyphens.

    >>> slug("blocks.1.hook_resid_post")
    'blocks.1.hook-resid-post'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def free_space(folder: Path) -> int:
    """Return the bytes free on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    """Return a folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def require_space(folder: Path, needed: int, purpose: str, otherwise: str = "") -> None:
    """Raise UserError unless the disk of `folder` has `needed` bytes free and a tenth more; its end is `otherwise`."""
    if (free := free_space(folder)) < 1.1 * needed:
        raise UserError(
            f"{purpose} need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
            f"free some space or point SAE_AGENT_CACHE at another disk{otherwise}"
        )
