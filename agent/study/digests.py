"""SHA-256 digests of files that later runs are judged by. They are kept in the ledger, so that an edit is noticed."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.lab.files import MIB, BadFile, open_plain, read_plain_text, write_atomically

RUN_FILES = (
    *("final_info.json", "metrics.jsonl", "experiment.py"),
    *(f"checkpoint/{name}" for name in ("header.json", "encode.json", "tensors.safetensors")),
)
SEAL = "digests.json"
SETTLED_SECONDS = 2.0  # a clock tick may hide a change that follows within it

Status = tuple[int, int, int, int, int]
_hashed: dict[Path, tuple[Status, str]] = {}


def of_file(path: Path) -> str | None:
    """Return the digest of a regular file, or None if there is none: links are not followed, pipes not waited for.

    A file is not hashed again while its inode, size and times are the same. The time of its last change of status is
    among them, which the kernel sets at each write and no program sets back.
    """
    known = _hashed.get(path)
    try:
        if known and known[0] == content_status(path.lstat()):
            return known[1]
        file = open_plain(path)
    except (BadFile, OSError):
        return None
    with file:
        status = content_status(os.fstat(file.fileno()))
        content = hashlib.sha256()
        while part := file.read(MIB):
            content.update(part)
        digest = content.hexdigest()
        if is_settled(status):
            _hashed[path] = status, digest
        return digest


def content_status(status: os.stat_result) -> Status:
    """Return what of a file's status differs once its content does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(status: Status) -> bool:
    """Return True if a later change of the content will show in the status."""
    return time.time() - status[-1] / 1e9 > SETTLED_SECONDS


def of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of the regular files among `names`, which are paths in `folder`."""
    digests = {name: of_file(folder / name) for name in names}
    return {name: digest for name, digest in digests.items() if digest}


def of_run(run_dir: Path) -> dict[str, str]:
    """Return the digests of a run's files, by their paths in the directory of its study."""
    return of_files(run_dir.parent, (f"{run_dir.name}/{name}" for name in RUN_FILES))


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of files to SEAL beside them, those of the other files there kept.

    It notices accidents and hasty edits, and nobody who writes it anew.
    """
    write_atomically(folder / SEAL, json.dumps(_sealed(folder) | of_files(folder, names), indent=2) + "\n")


def is_sealed(folder: Path, names: Iterable[str]) -> bool:
    """Return True if files are as they were sealed, and those that were not sealed are not there."""
    return is_recorded(folder, names, _sealed(folder))


def is_recorded(folder: Path, names: Iterable[str], recorded: Mapping[str, str]) -> bool:
    """Return True if files have their recorded digests, and those without one are not there; False if none has one."""
    expected = {name: recorded[name] for name in names if name in recorded}
    return bool(expected) and of_files(folder, names) == expected


def _sealed(folder: Path) -> dict[str, str]:
    try:
        content = json.loads(read_plain_text(folder / SEAL))
    except (BadFile, FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
