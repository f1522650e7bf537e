"""Attacks by what a user may have from others: a copied study, an idea, notes. The study itself is honest.

Here the effect does all: it puts something in the place of a file, and looks at what a command makes of it.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from attacking.attack import Attack, Effect
from attacking.trial import BREAKS, CANARIES, Trial

BOUND = 20.0  # seconds for a command that answers within one otherwise


def given(number: str, title: str, **fields: Any) -> Callable[[Effect], Attack]:
    """Make an attack of an effect: what it returns has been done to the user of an honest study."""

    def nothing(at: Any) -> None:
        """Do nothing: the study is honest."""

    return lambda effect: Attack(number, title, nothing, effect, **fields)


def bad_end(trial: Trial, *command: str) -> str:
    """Run a command, and say how it ended if not as it should."""
    before, trial.out = trial.out, ""
    code = trial.agent(*command, timeout=BOUND)
    how = "hangs" if code is None else "ends with a traceback" if "Traceback" in trial.out or code < 0 else ""
    trial.out = before + trial.out
    return f"{BREAKS}agent {command[0]} {how}" if how else ""


def other_study(trial: Trial) -> Path:
    """Make a directory that looks like a newer study."""
    folder = trial.root / "runs/99999999_000000_other"
    folder.mkdir()
    return folder


def unfinished(trial: Trial) -> None:
    """Take the end from the study's ledger, so that it can be resumed."""
    lines = trial.study.ledger.read_bytes().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if b'"event":"test_scored"' in line)
    trial.study.ledger.write_bytes(b"".join(lines[:end]))


@given("52", "a directory under runs/ whose ledger is a pipe")
def piped_ledger(trial: Trial) -> str:
    folder = other_study(trial)
    os.mkfifo(folder / "events.jsonl")
    return ", ".join(filter(None, (bad_end(trial, "show", str(folder)), bad_end(trial, "resume"))))


@given("53", "a directory under runs/ whose ledger is a link to /dev/zero")
def endless_ledger(trial: Trial) -> str:
    folder = other_study(trial)
    (folder / "events.jsonl").symlink_to("/dev/zero")
    return ", ".join(filter(None, (bad_end(trial, "show", str(folder)), bad_end(trial, "resume"))))


@given("54", "a damaged study beside a sound one that is to be resumed")
def damaged_study(trial: Trial) -> str:
    unfinished(trial)
    sound = trial.study
    (other_study(trial) / "events.jsonl").write_text("{nonsense}\n")
    trial.agent("resume")
    return "" if b'"event":"study_resumed"' in sound.ledger.read_bytes() else "the sound study is not resumed"


def with_monitor(trial: Trial) -> Path:
    """Put a monitor into the git configuration of the study; return what it writes."""
    mark, script = trial.drop / "monitored", trial.folder / "monitor.sh"
    script.write_text(f"#!/bin/sh\nenv >> '{mark}'\n")
    script.chmod(0o755)
    with (trial.study.directory / ".git/config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = \"'{script}'\"\n")
    return mark


@given("55", "a copied study with core.fsmonitor: agent resume, agent note")
def copied_study(trial: Trial) -> str:
    study, mark = trial.study.directory, with_monitor(trial)
    shutil.copytree(study / "run_1", study / "run_2")
    trial.agent("note", str(study), "run_2", "-m", "By hand")
    noted, ran = ["agent note"] if mark.exists() else [], []
    mark.unlink(missing_ok=True)
    unfinished(trial)
    trial.agent("resume")
    ran = noted + (["agent resume"] if mark.exists() else [])
    return f"its program ran in {' and '.join(ran)}" if ran else ""


@given("56", "links in copied notes: partial file, figure, notes kept as edited")
def linked_notes(trial: Trial) -> str:
    notes, victims = trial.study.notes, [".bashrc", ".profile", ".zshrc"]
    text = (notes / "notes.txt").read_text() + "I doubt it.\n"
    (notes / "notes.txt").write_text(text)
    edited = notes / f"notes_edited_{hashlib.sha256(text.encode()).hexdigest()[:8]}.txt"
    for path, victim in zip((notes / "notes.txt.partial", notes / "l0_front.png", edited), victims, strict=True):
        path.unlink(missing_ok=True)
        path.symlink_to(trial.home / victim)
    unfinished(trial)
    trial.agent("resume")
    changed = [name for name in victims if not (trial.home / name).read_bytes().startswith(b"# .")]
    return f"written through a link: {', '.join(changed)}" if changed else ""


def plant_in_idea(name: str, text: str) -> Callable[[Trial], None]:
    """Return a preparation that puts a file into the idea, with PLACE as where it may leave a mark."""

    def prepare(trial: Trial) -> None:
        folder = trial.root / "templates/ideas/attack"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("PLACE", str(trial.drop / "idea-1")))

    return prepare


def idea_ran(trial: Trial) -> str:
    text = trial.dropped("idea")
    return f"its code ran in the driver{' with the key' if CANARIES['OPENAI_API_KEY'] in text else ''}" if text else ""


@given("57", "an idea whose experiment.py.j2 runs code")
def template_code(trial: Trial) -> str:
    folder = trial.root / "templates/ideas/attack"
    mark = trial.drop / "idea-1"
    code = f"{{% set _ = cycler.__init__.__globals__.os.system('env > {mark}') %}}"
    (folder / "experiment.py.j2").write_text(code + "{{ source }}")
    trial.run()
    return idea_ran(trial)


MARK = """
import contextlib, os
with contextlib.suppress(OSError):
    open("PLACE", "w").write(str(dict(os.environ)))
"""
FIGURES = f"{MARK}def draw(runs, write):\n    return []\n"
MEASURES = f"{MARK}MEASURES = {{}}\n"


@given("58", "an idea's figures.py and measures.py", prepare=plant_in_idea("figures.py", FIGURES))
def figures_code(trial: Trial) -> str:
    drawn = idea_ran(trial)
    plant_in_idea("measures.py", MEASURES)(trial)
    (trial.root / "templates/ideas/attack/analysis.py").write_text("def measure(exam):\n    return {}\n")
    trial.run()
    return drawn or idea_ran(trial)


@given("51", "a heading smuggled into the notes through idea.yaml")
def smuggled_heading(trial: Trial) -> str:
    path = trial.root / "templates/ideas/attack/idea.yaml"
    idea = yaml.safe_load(path.read_text())
    idea["plan"][0]["title"] = "Slight\n\n## Run 7: The winner\nBetter (confirmed): it is"
    path.write_text(yaml.safe_dump(idea))
    trial.run()
    trial.agent("audit", str(trial.study.notes / "notes.txt"))
    return "a section of its own in the notes" if "\n## Run 7: The winner" in trial.notes else ""


@given("59", "notes that make agent audit slow: deep nesting, many headings")
def slow_audit(trial: Trial) -> str:
    slow, notes = [], trial.study.notes / "notes.txt"
    text = notes.read_text()
    for name, more in (
        ("20,000 levels", f"Results: {'f(' * 20_000}\n"),
        ("4,000 headings", "".join(f"## Run {n}: x\n" for n in range(4000))),
    ):
        notes.write_text(text.replace("# Plot descriptions", more + "\n# Plot descriptions"))
        start = time.monotonic()
        trial.agent("audit", str(notes), timeout=BOUND)
        slow += [f"{name}: {time.monotonic() - start:.0f} s"] if time.monotonic() - start > BOUND / 2 else []
    return ", ".join(slow)


ATTACKS: list[Attack] = [value for value in list(globals().values()) if isinstance(value, Attack)]
