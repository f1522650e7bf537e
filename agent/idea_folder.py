"""The folder of an idea that may lie anywhere: how a user names it, which files belong to it, and a study's copy."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from agent.lab.errors import UserError
from agent.lab.files import MIB, BadFile, exists, locate, read_plain, write_atomically

KEPT = "idea"  # in a study's directory: the copy of an idea from outside templates/ideas
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MOST_FILES = 100
MOST_BYTES = 4 * MIB  # of each


class BadIdea(UserError):
    """An idea that does not exist, breaks the schema, or cannot be rendered."""


def is_path(name: str) -> bool:
    """Return True if a user names an idea by its folder, not by its name in templates/ideas."""
    return name.startswith(".") or os.sep in name


def find(name: str) -> Path:
    """Return the folder that a user's path stands for, whole. Raise BadIdea if no idea can be there."""
    folder = locate(name).resolve()
    if not exists(folder / "idea.yaml"):
        raise BadIdea(f"{name} is no folder with an idea.yaml: give an idea's folder, or a name that agent ideas lists")
    require_name(folder)
    return folder


def require_name(folder: Path) -> None:
    """Raise BadIdea if a folder has a name that no study can have."""
    if not NAME.fullmatch(folder.name):
        raise BadIdea(f"{folder}: studies are named after the folder, so name it with letters, digits, _ and - alone")


def files(folder: Path) -> list[Path]:
    """Return the files of an idea, sorted: all but hidden ones and Python's caches.

    Raise BadIdea for a link or anything else that is no file, for more than MOST_FILES, and for a larger one than
    MOST_BYTES.
    """
    found: list[Path] = []
    try:
        for path in _entries(folder):
            if path.is_symlink() or not path.is_file():
                what = "a link" if path.is_symlink() else "no regular file"
                raise BadIdea(f"{path} is {what}: an idea's folder holds its own files alone")
            if (size := path.stat().st_size) > MOST_BYTES:
                raise BadIdea(
                    f"{path} has {size:,} bytes; a study keeps a copy of at most {MOST_BYTES:,}: leave it out"
                )
            found.append(path)
            if len(found) > MOST_FILES:
                raise BadIdea(f"{folder} holds more than {MOST_FILES} files: give an idea a folder of its own")
    except OSError as error:
        raise BadIdea(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return sorted(found)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder and those below it, but the folders themselves."""
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _entries(entry)
        else:
            yield entry


def keep(folder: Path, directory: Path) -> list[str]:
    """Copy an idea's files into the `directory` of a study, and return where they lie in it.

    Raise BadIdea for a file that cannot be read.
    """
    names = []
    for path in files(folder):
        copy = directory / KEPT / folder.name / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, _content(path))
        names.append(copy.relative_to(directory).as_posix())
    return names


def has_changed(folder: Path, copy: Path) -> bool:
    """Return True if an idea is still in its `folder`, with other files than its copy has."""
    if not exists(folder / "idea.yaml"):
        return False
    try:
        return _contents(folder) != _contents(copy)
    except BadIdea:
        return True


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): _content(path) for path in files(folder)}


def _content(path: Path) -> bytes:
    try:
        return read_plain(path, MOST_BYTES)
    except (BadFile, FileNotFoundError) as error:
        raise BadIdea(str(error)) from None
