"""`agent review`: the page of a study, or of several side by side."""

import hashlib
import os
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent import ROOT
from agent.audit import contradicted
from agent.lab.errors import UserError
from agent.lab.files import MIB, BadFile, exists, write_atomically
from agent.lab.progress import notify
from agent.report.page.opened import open_study
from agent.report.page.render import render
from agent.report.page.serve import PageServer
from agent.study.state import State
from agent.study.workspace import Study, find_study

LONGEST_NAME = 200  # characters of a file's


def review(paths: Sequence[Path]) -> None:
    """Write the page of the studies at `paths`, or of the newest, and print where it is."""
    found = _find(paths)
    page = render([open_study(*each, contradicted) for each in found])
    target = _target([study for study, _ in found])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page)
    print(f"{target} ({len(page.encode()) / MIB:.1f} MiB)")


def serve(paths: Sequence[Path], port: int) -> None:
    """Serve the page until Ctrl-C, and open a browser if there is one."""
    studies = [study for study, _ in _find(paths)]
    watched = [path for study in studies for path in (study.ledger, study.transcript)]

    def build(version: str) -> str:
        found = _find([study.directory for study in studies])
        return render([open_study(*each, contradicted) for each in found], live=version)

    with PageServer(port, watched, build) as server:
        print(f"{server.address} shows {', '.join(study.name for study in studies)}; end with Ctrl-C", flush=True)
        if sys.stdout.isatty() and _has_display():
            with suppress(webbrowser.Error):
                webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)


def _has_display() -> bool:
    """Return True if a browser would open in a window, and not take over the terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _find(paths: Sequence[Path]) -> list[tuple[Study, State]]:
    """Return the studies at these paths with their states, or the newest. Raise UserError if one is none."""
    if not paths:
        return [_newest(ROOT / "runs")]
    found = []
    for path in paths:
        study = find_study(path) if exists(path) and path.is_dir() else None
        if study is None:
            raise UserError(f"{path} is not a study that has started: give a directory in {ROOT / 'runs'}")
        found.append(study)
    if len({study.directory for study, _ in found}) < len(found):
        raise UserError("the same study is given twice: give different ones to see them side by side")
    return found


def _newest(runs: Path) -> tuple[Study, State]:
    """Return the newest study; those whose ledger cannot be read are passed over, each with a line that says so."""
    for directory in sorted(runs.glob("*/"), reverse=True):
        try:
            if found := find_study(directory):
                return found
        except BadFile as error:
            notify(f"{directory.name} is passed over: {error}")
    raise UserError(f"no study in {runs}: start one with `agent run`")


def _target(studies: Sequence[Study]) -> Path:
    """Return where the page is written: in the notes of a study, or beside those of several."""
    first, *others = studies
    if not others:
        return first.notes / "review.html"
    name = "review_" + "_".join(study.name for study in studies)
    if len(name) > LONGEST_NAME:
        name = f"review_{len(studies)}_studies_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return first.notes.parent / f"{name}.html"
