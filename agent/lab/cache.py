"""Where large things that can be made again are kept, shared between studies."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from agent.lab.errors import UserError


def root() -> Path:
    """The cache folder: SAE_AGENT_CACHE, or sae-agent in the user's cache folder."""
    if chosen := os.environ.get("SAE_AGENT_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "sae-agent"


def lab_hash() -> str:
    """A hash of the lab's code: what it does to figures is not known of any other version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def slug(name: str) -> str:
    """A name fit for a file: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise UserError unless the disk of `folder` has `needed` bytes free and a tenth more."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        raise UserError(
            f"{purpose} need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: "
            "free some space or point SAE_AGENT_CACHE at another disk"
        )
