"""Room on the disk for what an evaluation writes to the cache, asked before it starts."""

import shutil
from pathlib import Path

from agent.lab.evaluation.families import Lack


def lacking(folder: Path, needed: float, purpose: str) -> list[Lack]:
    """What is missing for `needed` bytes and a tenth more on the disk of a folder, which need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(there).free) >= 1.1 * needed:
        return []
    why = f"{purpose} need {needed / 1e9:,.1f} GB and {there} has {free / 1e9:,.1f} GB free"
    return [Lack(why, "free some space or point SAE_AGENT_CACHE at another disk")]
