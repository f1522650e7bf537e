"""A study's directories and its git repository."""

import fcntl
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.files import remove
from agent.study import ledger
from agent.study.runs import Run
from agent.study.state import State, derive

STUDY_VARIABLE = "SAE_AGENT_STUDY"  # in the environment of every child: the directory of the study it works for
IGNORED = """\
# The story is in git; what is large or only of the moment stays beside it.
/events.jsonl
/transcript.jsonl
/lock
*.log
/beside.py
/run_*/*
!/run_*/experiment.py
!/run_*/metrics.jsonl
!/run_*/final_info.json
/baseline_*/*
!/baseline_*/final_info.json
/smoke/
"""
GIT_SETTINGS = {  # so that a machine without an identity works, and one with its own hooks or signing too
    ("user", "name"): "sae-agent",
    ("user", "email"): "sae-agent@localhost",
    ("core", "hooksPath"): "/dev/null",
    ("core", "excludesFile"): "/dev/null",
    ("core", "autocrlf"): "false",
    ("commit", "gpgsign"): "false",
}
# What git leaves behind when it is killed. Nobody else's: a study's driver holds the study's lock.
GIT_LOCKS = ("*.lock", "refs/heads/*.lock")


class StudyBusy(UserError):
    """Another driver works on the study."""


@dataclass(frozen=True)
class Study:
    """One investigation of an idea: what is heavy under runs/, what is for reading under notes/."""

    directory: Path
    notes: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def ledger(self) -> Path:
        return self.directory / "events.jsonl"

    @property
    def transcript(self) -> Path:
        """Every exchange with a language model."""
        return self.directory / "transcript.jsonl"

    def run_dir(self, number: int) -> Path:
        return self.directory / f"run_{number}"

    def attempt_dir(self, number: int, attempt: int) -> Path:
        """Where an attempt is kept that was tried again."""
        return self.directory / f"run_{number}_attempt_{attempt}"

    def archive_attempt(self, number: int, attempt: int) -> None:
        """Make place for another attempt at a run. What the ledger does not know of, the trace of a preflight that was
        killed or a run by hand that was never noted, is kept too."""
        if not os.path.lexists(self.run_dir(number)):
            return
        target = self.attempt_dir(number, attempt)
        if attempt == 0 or os.path.lexists(target):
            names = (f"run_{number}_leftover_{count}" for count in itertools.count(1))
            target = next(path for name in names if not os.path.lexists(path := self.directory / name))
        self.run_dir(number).rename(target)

    def restore_recorded_files(self, except_for: str) -> list[str]:
        """The names of recorded files that were changed, which are as they were again; `except_for` may differ."""
        from git import Repo

        with Repo(self.directory) as repo:
            repo.git.update_environment(**{STUDY_VARIABLE: str(self.directory)})
            changed = repo.git.diff("HEAD", "--name-only", "-z").split("\0")
            changed = [name for name in changed if name and Path(name).parts[0] not in (except_for, "experiment.py")]
            for name in changed:
                path = self.directory / name
                if path.is_symlink() or path.exists():
                    remove(path)
            if changed:
                repo.git.checkout("HEAD", "--", *changed)
        return changed

    def load_runs(self, state: State) -> list[Run]:
        """Raises BadResults where the results of a run that is done cannot be read."""
        directories = [(run, self.run_dir(run.number)) for run in state.runs]
        return [Run(run, where, results.read(where) if run.stage == "done" else None) for run, where in directories]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other drivers away for as long as this one lives: the system frees the lock of a killed process.

        Raises StudyBusy.
        """
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StudyBusy(f"{self.name} is being worked on by {file.read() or 'another driver'}") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def remove_git_locks(self) -> None:
        """Make the repository usable again after a git that was killed."""
        for pattern in GIT_LOCKS:
            for lock in (self.directory / ".git").glob(pattern):
                lock.unlink()

    def commit(self, message: str) -> None:
        """Commit everything, also when nothing has changed: one commit for every proposal and every result.

        Nothing is done where the newest commit has this message: a driver was killed just after it.
        """
        from git import Repo  # here because it takes a while to import

        with Repo(self.directory) as repo:
            repo.git.update_environment(**{STUDY_VARIABLE: str(self.directory)})
            if repo.head.is_valid() and str(repo.head.commit.message).strip() == message.strip():
                return
            repo.git.add("--all")
            repo.git.commit("--allow-empty", "--no-verify", "--quiet", "--cleanup=verbatim", "-m", message)


def create_study(root: Path, idea: str) -> Study:
    """A new study with an empty repository, named by the time and the idea."""
    if shutil.which("git") is None:
        raise UserError("git is not installed: a study is a git repository; install git and run this again")
    study = _claim_directory(root, idea)
    study.notes.mkdir(parents=True)
    from git import Repo

    with Repo.init(study.directory, initial_branch="main") as repo, repo.config_writer() as config:
        for (section, option), value in GIT_SETTINGS.items():
            config.set_value(section, option, value)
    (study.directory / ".gitignore").write_text(IGNORED)
    return study


def _claim_directory(root: Path, idea: str) -> Study:
    """Two studies started in the same second must not share a name: the later one waits for the next second."""
    while True:
        name = f"{datetime.now():%Y%m%d_%H%M%S}_{idea}"
        study = Study(root / "runs" / name, root / "notes" / name)
        try:
            study.directory.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.1)
        else:
            return study


def find_study(path: Path) -> tuple[Study, State] | None:
    """The study that a directory under runs/ or notes/ belongs to, and its state. Raises BadLedger."""
    path = path.resolve()
    root = path.parent.parent
    study = (
        Study(root / "runs" / path.name, path)
        if path.parent.name == "notes"
        else Study(path, root / "notes" / path.name)
    )
    return (study, derive(ledger.read(study.ledger))) if study.ledger.exists() else None


def find_study_to_resume(root: Path, path: Path | None) -> tuple[Study, State]:
    """The study at `path`, or the newest one that has not ended. Raises UserError or BadLedger."""
    if path:
        found = find_study(path)
        if found is None or found[1].started is None:
            raise UserError(f"{path} is not a study that has started: give one of {root / 'runs'}")
        return found
    for directory in sorted((root / "runs").glob("*/"), reverse=True):
        found = find_study(directory)
        if found and found[1].started and not found[1].finished:
            return found
    raise UserError(f"no study under {root / 'runs'} waits to be resumed; agent run starts one")
