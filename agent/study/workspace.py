"""The directories of a study, its lock and its git repository."""

import hashlib
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from agent import TEMPLATES, idea_folder
from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.files import BadFile, read_plain_text, remove
from agent.lab.locks import Busy, lock_now
from agent.lab.progress import notify
from agent.study import digests, job_names, ledger, repository
from agent.study.events import StudyStarted
from agent.study.runs import Run
from agent.study.state import State, derive

if TYPE_CHECKING:
    from git import Repo

STUDY_VARIABLE = "SAE_AGENT_STUDY"  # in the environment of every child process: the directory of its study
IGNORED = """\
# Git holds the story of the study; large and temporary files stay outside.
/events.jsonl
/transcript.jsonl
/lock
*.log
*.tampered
/git_damaged_*
/jobs/
/slot_*/
/setup.json
/wandb/
/run_*/*
!/run_*/experiment.py
!/run_*/metrics.jsonl
!/run_*/final_info.json
/baseline_*/*
!/baseline_*/final_info.json
/reference_*/*
!/reference_*/final_info.json
"""
TOP_COMMITTED = (".gitignore", "experiment.py")
COMMITTED = {
    "run": ("experiment.py", "metrics.jsonl", "final_info.json"),
    **dict.fromkeys(("baseline", "reference"), ("final_info.json",)),
}
_committed: dict[tuple[Path, str], dict[str, digests.Status]] = {}  # by study and its newest commit: as they went in
LONGEST_MESSAGE = 50_000  # characters of a commit's
MOST_AGO = 20  # commits, since one that an earlier driver made: other jobs' may have come between


class StudyBusy(UserError):
    """Another driver works on the study."""


class ChangedRecord(UserError):
    """A file of the study is not as it was recorded."""


@dataclass(frozen=True)
class Study:
    """One investigation of an idea: its data under runs/, its notes and figures under notes/."""

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
        """Where every exchange with a language model is recorded."""
        return self.directory / "transcript.jsonl"

    def run_dir(self, number: int) -> Path:
        return self.directory / f"run_{number}"

    def reference_dir(self, name: str) -> Path:
        """Where an SAE from elsewhere lies, as it was imported."""
        return self.directory / job_names.reference(name)

    def attempt_dir(self, number: int, attempt: int) -> Path:
        """Where an attempt is kept that another one followed."""
        return self.directory / f"run_{number}_attempt_{attempt}"

    def idea_folder(self, started: StudyStarted) -> Path:
        """Return the folder of the study's idea: its own copy of one that came from outside."""
        ideas = self.directory / idea_folder.KEPT if started.idea_folder else TEMPLATES / "ideas"
        return ideas / started.idea

    def archive_attempt(self, number: int, attempt: int) -> None:
        """Move the directory of a run away, so that another attempt can use its name.

        A directory that the ledger does not know is kept as a leftover: a killed preflight left it, or a run by hand
        that was never noted.
        """
        if not os.path.lexists(self.run_dir(number)):
            return
        target = self.attempt_dir(number, attempt)
        if attempt == 0 or os.path.lexists(target):
            names = (f"run_{number}_leftover_{count}" for count in itertools.count(1))
            target = next(path for name in names if not os.path.lexists(path := self.directory / name))
        self.run_dir(number).rename(target)

    def restore_committed_files(self) -> list[str]:
        """Restore the committed files that have changed and return their names. experiment.py may differ."""
        with self._repository() as repo:
            if not repo.head.is_valid():  # the experiment removed the repository: a new one was begun
                return []
            changed = repo.git.diff("HEAD", "--name-only", "-z").split("\0")
            changed = [name for name in changed if name and name != "experiment.py"]
            for name in changed:
                remove(self.directory / name)
            if changed:
                repo.git.checkout("HEAD", "--", *changed)
        return changed

    def head(self) -> str:
        """Return the newest commit, or "" if there is none: read as a file, since a git process takes far longer."""
        try:
            return read_plain_text(self.directory / ".git/refs/heads/main").strip()
        except (BadFile, FileNotFoundError):
            return ""

    def restore_head(self, commit: str) -> bool:
        """Make `commit` the newest again and return True if it was not. What replaced it stays under refs/tampered.

        If the repository was replaced, so that it is not there any more, the new one is left as it is.
        """
        from git import GitCommandError  # here because the import fails where git is not installed

        if (found := self.head()) == commit:
            return False
        with self._repository() as repo:
            if found:
                repo.git.update_ref(f"refs/tampered/{found}", found)
            with suppress(GitCommandError):
                repo.git.update_ref(*(["HEAD", commit] if commit else ["-d", "HEAD"]))
        return True

    def recorded_path(self, name: str) -> Path:
        """Return where a file that the ledger names lies: a failed attempt is moved away when the next one begins."""
        attempt = "_attempt_" in name and re.fullmatch(r"(run_\d+)_attempt_\d+/(.+)", name)
        if attempt and not os.path.lexists(self.directory / name.split("/")[0]):
            return self.directory / attempt[1] / attempt[2]
        return self.directory / name

    def find_blob(self, name: str, digest: str) -> str | None:
        """Return the git object of a committed version of a file that has this SHA-256 digest, or None."""
        with self._repository() as repo:
            listed = repo.git.log("--all", "--format=", "--raw", "--no-abbrev", "--no-renames", "--", name).splitlines()
        blobs = {line.split()[3] for line in listed} - {"0" * 40}
        return next((blob for blob in blobs if hashlib.sha256(self.read_blob(blob)).hexdigest() == digest), None)

    def read_blob(self, blob: str) -> bytes:
        """Return the content of a git object."""
        with self._repository() as repo:
            return repo.git.cat_file("blob", blob, stdout_as_string=False, strip_newline_in_stdout=False)

    def load_runs(self, state: State, hidden: Container[str] = (), only: int | None = None) -> list[Run]:
        """Return all runs, or `only` the one of this number, with results where a run is done and they are neither
        `hidden` nor lost.

        Raise BadFile if they cannot be read, ChangedRecord if they are not those that were recorded.
        """
        runs = []
        for run in state.runs if only is None else state.runs[only : only + 1]:
            name = f"run_{run.number}/final_info.json"
            shown = run.stage == "done" and name not in hidden and name not in state.lost
            info = self._read_results(name, state) if shown else None
            if info and run.comparison:
                info = info.model_copy(update={"comparison": run.comparison})
            runs.append(Run(run, self.run_dir(run.number), info))
        return runs

    def _read_results(self, name: str, state: State) -> results.FinalInfo:
        recorded = state.digests.get(name)
        if recorded and digests.of_file(self.directory / name) != recorded:
            raise ChangedRecord(
                f"{self.directory / name} was changed after it was recorded: see agent show {self.name}"
            )
        return _parsed(self.directory / name, recorded) if recorded else results.read((self.directory / name).parent)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the study. Raise StudyBusy if another driver has it."""
        with ExitStack() as held:
            try:
                held.enter_context(lock_now(self.directory / "lock"))
            except Busy as busy:
                driver = busy.holder or "another driver"
                raise StudyBusy(f"{self.name} is in use by {driver}: wait until that has ended") from None
            yield

    def commit(self, message: str, more: Collection[str] = ()) -> None:
        """Commit what tells the story, also if nothing has changed: each proposal and each result gets one commit.

        `more` are further files that are committed from then on, by their paths in the study.

        Do nothing if one of the newest commits has this message: a driver was killed just after making it.
        """
        message = message[:LONGEST_MESSAGE].replace("\0", "")
        with self._repository(whole=False) as repo:
            newest = list(repo.iter_commits(max_count=MOST_AGO)) if repo.head.is_valid() else []
            if any(str(commit.message).strip() == message.strip() for commit in newest):
                return
            before = {name for name in repo.git.ls_files("-z").split("\0") if name}
            present = self._statuses({*before, *more})
            known = _committed.get((self.directory, self.head()), {})
            if gone := before - present.keys():
                repo.git.update_index("--force-remove", "--", *sorted(gone))
            if new := [name for name, status in present.items() if name not in before or known.get(name) != status]:
                repo.git.update_index("--add", "--", *sorted(new))
            repo.git.commit("--allow-empty", "--no-verify", "--quiet", "--cleanup=verbatim", "-m", message)
            _committed.clear()
            settled = {name: status for name, status in present.items() if digests.is_settled(status)}
            _committed[self.directory, self.head()] = settled

    def _statuses(self, before: Collection[str]) -> dict[str, digests.Status]:
        """Return the status of each file that tells the story, or was committed before, by its path in the study:
        regular files only, and none beyond a link."""
        folders = {"", *(entry.name for entry in os.scandir(self.directory) if entry.is_dir(follow_symlinks=False))}
        names = {f"{folder}/{name}" for folder in folders for name in COMMITTED.get(folder.partition("_")[0], ())}
        found = {}
        for name in {*TOP_COMMITTED, *names, *before}:
            folder, path = name.rpartition("/")[0], self.directory / name
            if folder in folders or path.parent.resolve() == self.directory.resolve() / folder:
                with suppress(OSError):
                    if stat.S_ISREG((status := path.lstat()).st_mode):
                        found[name] = digests.content_status(status)
        return found

    @contextmanager
    def _repository(self, whole: bool = True) -> "Iterator[Repo]":
        """Open the repository; git processes are marked as the study's, so that none outlives a killed driver."""
        with repository.opened(self.directory, {STUDY_VARIABLE: str(self.directory)}, whole) as repo:
            yield repo


@lru_cache(maxsize=4096)
def _parsed(path: Path, digest: str) -> results.FinalInfo:  # noqa: ARG001
    """Return the results in a file with this digest; nobody changes what is returned."""
    return results.read(path.parent)


def create_study(root: Path, idea: str) -> Study:
    """Create a study, named after the time and the idea. Raise UserError without git."""
    if shutil.which("git") is None:
        raise UserError("git is not installed, and a study is a git repository: install git and run this again")
    study = _claim_directory(root, idea)
    study.notes.mkdir(parents=True)
    (study.directory / ".gitignore").write_text(IGNORED)
    return study


def _claim_directory(root: Path, idea: str) -> Study:
    """Create the directory of a study. One that is started in the same second as another waits for the next second, so
    that their names differ."""
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
    """Return the study of a directory under runs/ or notes/ with its state, or None if it has no events.

    Raise BadFile if its ledger cannot be read.
    """
    path = path.resolve()
    root = path.parent.parent
    study = (
        Study(root / "runs" / path.name, path)
        if path.parent.name == "notes"
        else Study(path, root / "notes" / path.name)
    )
    try:
        events = ledger.read(study.ledger)
    except FileNotFoundError:
        return None
    try:
        return (study, derive(events)) if events else None
    except ValueError as error:
        raise ledger.BadLedger(f"{study.ledger} is damaged: {error}") from None


def find_study_to_resume(root: Path, path: Path | None) -> tuple[Study, State]:
    """Return the study at `path`, or the newest unfinished one, with its state.

    Of several, those whose ledger cannot be read are passed over, each with a line that says so. Raise UserError if
    there is none, BadFile if the ledger of the one at `path` cannot be read.
    """
    if path:
        if study := find_study(path):
            return study
        raise UserError(f"{path} is not a study that has started: give a directory in {root / 'runs'}")
    for directory in sorted((root / "runs").glob("*/"), reverse=True):
        try:
            study = find_study(directory)
        except BadFile as error:
            notify(f"{directory.name} is passed over: {error}")
            continue
        if study and not study[1].finished:
            return study
    raise UserError(
        f"no study in {root / 'runs'} is unfinished: start one with `agent run`, or name the one to go on with"
    )
