"""A study's directories and its git repository."""

import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent import ledger
from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.results import FinalInfo
from agent.lab.verdicts import MetricsRow
from agent.ledger import RunState, State

IGNORED = """\
# The story is in git; what is large or only of the moment stays beside it.
/events.jsonl
*.log
/run_*/*
!/run_*/experiment.py
!/run_*/metrics.jsonl
!/run_*/final_info.json
"""
GIT_SETTINGS = {  # so that a machine without an identity works, and one with its own hooks or signing too
    ("user", "name"): "sae-agent",
    ("user", "email"): "sae-agent@localhost",
    ("core", "hooksPath"): "/dev/null",
    ("core", "excludesFile"): "/dev/null",
    ("core", "autocrlf"): "false",
    ("commit", "gpgsign"): "false",
}


@dataclass(frozen=True)
class Run:
    """A run as its readers see it: what the ledger says of it, and what was measured."""

    state: RunState
    directory: Path
    info: FinalInfo | None  # None until the run is done

    @property
    def number(self) -> int:
        return self.state.number

    @property
    def counts(self) -> bool:
        """Whether this run has a result."""
        return self.info is not None and self.info.verdict.ok

    def metrics(self) -> list[MetricsRow]:
        """The training history; empty where its file is damaged, which the run's verdict says."""
        try:
            return results.read_metrics(self.directory)
        except results.BadResults:
            return []


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

    def run_dir(self, number: int) -> Path:
        return self.directory / f"run_{number}"

    def log(self, number: int, stream: str) -> Path:
        """Where a log is written while the run goes on: its directory belongs to the experiment until then."""
        return self.directory / f"run_{number}.{stream}.log"

    def runs(self, state: State) -> list[Run]:
        """Raises BadResults where the results of a run that is done cannot be read."""
        directories = [(run, self.run_dir(run.number)) for run in state.runs]
        return [Run(run, where, results.read(where) if run.stage == "done" else None) for run, where in directories]

    def commit(self, message: str) -> None:
        """Commit everything, also when nothing has changed: one commit for every proposal and every result."""
        from git import Repo  # here because it takes a while to import

        with Repo(self.directory) as repo:
            repo.git.add("--all")
            repo.git.commit("--allow-empty", "--no-verify", "--quiet", "-m", message)


def create(root: Path, idea: str) -> Study:
    """A new study with an empty repository, named by the time and the idea."""
    if shutil.which("git") is None:
        raise UserError("git is not installed: a study is a git repository; install git and run this again")
    study = _claim(root, idea)
    study.notes.mkdir(parents=True)
    from git import Repo

    with Repo.init(study.directory, initial_branch="main") as repo, repo.config_writer() as config:
        for (section, option), value in GIT_SETTINGS.items():
            config.set_value(section, option, value)
    (study.directory / ".gitignore").write_text(IGNORED)
    return study


def _claim(root: Path, idea: str) -> Study:
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


def find(path: Path) -> tuple[Study, State] | None:
    """The study that a directory under runs/ or notes/ belongs to, and its state. Raises BadLedger."""
    path = path.resolve()
    root = path.parent.parent
    study = (
        Study(root / "runs" / path.name, path)
        if path.parent.name == "notes"
        else Study(path, root / "notes" / path.name)
    )
    return (study, ledger.derive(ledger.read(study.ledger))) if study.ledger.exists() else None
