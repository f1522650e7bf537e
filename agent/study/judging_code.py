"""The code that judges a study's runs: recorded when the study begins, and compared with that while it runs."""

import ast
import hashlib
from pathlib import Path

from agent import ROOT, TEMPLATES, idea_folder
from agent.lab.code_hash import lab_hash, without_docstrings

LAB = ROOT / "agent/lab"


def judging_hash(idea: Path) -> str:
    """Return 16 hex digits that change with the code and the templates that compare runs and report on them, those in
    the folder of the study's `idea` among them.

    The lab is left out, whose hash is in the fingerprint, as are comments and docstrings.
    """
    listing = "".join(
        f"{_place(path, idea)} {hashlib.sha256(_meaning(path, content)).hexdigest()}\n"
        for path, content in sorted(_contents(idea).items())
        if not path.is_relative_to(LAB)
    )
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


class JudgingCode:
    """The judging code of a study as it was when the driver started, the lab included."""

    def __init__(self, idea: Path) -> None:
        """`idea` is the folder of the study's idea."""
        self.idea, self._before, self._lab = idea, _contents(idea), lab_hash()

    def changed(self) -> list[str]:
        """Return the files that now mean something else, by their paths in the checkout; all of the lab as one."""
        now = _contents(self.idea)
        differing = [path for path in sorted(now | self._before) if now.get(path) != self._before.get(path)]
        changed = [
            _place(path, self.idea)
            for path in differing
            if not path.is_relative_to(LAB)
            and (path not in now or path not in self._before or _differ(path, now[path], self._before[path]))
        ]
        lab = any(path.is_relative_to(LAB) for path in differing) and lab_hash() != self._lab
        return ["agent/lab"] * lab + changed


def _place(path: Path, idea: Path) -> str:
    """Return a file's path in the checkout; for an idea that a study keeps, its path in the study, wherever that is."""
    kept = idea.parent.name == idea_folder.KEPT and path.is_relative_to(idea)
    return path.relative_to(idea.parent.parent if kept else ROOT).as_posix()


def _contents(idea: Path) -> dict[Path, bytes]:
    folders = (TEMPLATES / "notes", TEMPLATES / "prompts", idea)
    paths = [*(ROOT / "agent").rglob("*.py"), *(path for folder in folders for path in folder.rglob("*"))]
    return {path: path.read_bytes() for path in paths if path.is_file() and "__pycache__" not in path.parts}


def _differ(path: Path, content: bytes, other: bytes) -> bool:
    return _meaning(path, content) != _meaning(path, other)


def _meaning(path: Path, content: bytes) -> bytes:
    """Return what a file does: its parsed code without docstrings, or its bytes if it cannot be parsed as Python."""
    if path.suffix != ".py":
        return content
    try:
        return ast.dump(without_docstrings(content.decode())).encode()
    except (SyntaxError, ValueError):
        return content
