"""The code that judges a study's runs: recorded when the study begins, and compared with that while it runs."""

import ast
import hashlib
from pathlib import Path

from agent import ROOT, TEMPLATES
from agent.lab.code_hash import lab_hash, without_docstrings

LAB = ROOT / "agent/lab"


def judging_hash(idea: str) -> str:
    """Return 16 hex digits that change with the code and the templates that compare runs and report on them.

    The lab is left out, whose hash is in the fingerprint, as are comments and docstrings.
    """
    listing = "".join(
        f"{path.relative_to(ROOT).as_posix()} {hashlib.sha256(_meaning(path, content)).hexdigest()}\n"
        for path, content in sorted(_contents(idea).items())
        if not path.is_relative_to(LAB)
    )
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


class JudgingCode:
    """The judging code of a study as it was when the driver started, the lab included."""

    def __init__(self, idea: str) -> None:
        self.idea, self._before, self._lab = idea, _contents(idea), lab_hash()

    def changed(self) -> list[str]:
        """Return the files that now mean something else, by their paths in the checkout; all of the lab as one."""
        now = _contents(self.idea)
        differing = [path for path in sorted(now | self._before) if now.get(path) != self._before.get(path)]
        changed = [
            path.relative_to(ROOT).as_posix()
            for path in differing
            if not path.is_relative_to(LAB)
            and (path not in now or path not in self._before or _differ(path, now[path], self._before[path]))
        ]
        lab = any(path.is_relative_to(LAB) for path in differing) and lab_hash() != self._lab
        return ["agent/lab"] * lab + changed


def _contents(idea: str) -> dict[Path, bytes]:
    folders = (TEMPLATES / "notes", TEMPLATES / "prompts", TEMPLATES / "ideas" / idea)
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
