"""The saved states of a training in the slot's keeping: out of its reach, with digests, for another try at the job."""

import hashlib
import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.lab.defaults import STATE_FILE
from agent.lab.files import MIB, BadFile, read_plain, remove, write_atomically
from agent.running.jobs import Training
from agent.study import digests

KEPT = "kept.json"  # in the folder of a try, beside the state


class Kept(BaseModel):
    """A saved state, and what had been used when it was saved, all tries at the job together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int  # that the server had handed out
    digest: str  # SHA-256 of the file
    source: str  # of the experiment with its seed
    seconds: float  # of training
    cpu_seconds: float
    smoke: str = ""  # hash of the checkpoint that the first steps left


def newest(job: Path) -> tuple[Path, Kept] | None:
    """Return the state that came furthest of all tries at a job, with its file; None if there is none."""
    found = [(folder / STATE_FILE.format(kept.rows), kept) for folder in job.glob("try_*") if (kept := _read(folder))]
    return max(found, key=lambda each: each[1].rows, default=None)


def usable(job: Path, training: Training) -> tuple[Path, Kept] | None:
    """Return the newest state of a job if it is this training's, and as it was when the slot took it."""
    found = newest(job)
    if found and found[1].source == _source(training) and digests.of_file(found[0]) == found[1].digest:
        return found
    return None


class StateKeeper:
    """Takes what one training saves into a folder that it cannot write to."""

    def __init__(
        self, folder: Path, training: Training, before: tuple[Path, Kept] | None = None, smoke: str = ""
    ) -> None:
        """`before` is the state from which the training goes on, `smoke` the hash that its first steps left."""
        self.folder, self.smoke, self._source = folder, smoke, _source(training)
        self._file, self.before = before or (None, None)
        self._rows, self._started = 0, time.monotonic()

    @property
    def skip(self) -> int:
        """Rows that are not served again."""
        return self.before.rows if self.before else 0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, all tries together, without what was lost."""
        return (self.before.seconds if self.before else 0.0) + time.monotonic() - self._started

    def hand_over(self, run_dir: Path) -> None:
        """Put the state from which the training goes on into its directory."""
        if self._file:
            os.link(self._file, run_dir / self._file.name)

    def take(self, run_dir: Path, rows: int, cpu_seconds: float) -> None:
        """Take the state that was saved after so many rows, unless that was done. The one before it is removed.

        A file that is not there, or not a plain one, is not asked for again.
        """
        if rows == self._rows or run_dir.is_symlink():
            return
        self._rows, name = rows, STATE_FILE.format(rows)
        try:
            (run_dir / name).rename(self.folder / name)
        except OSError:
            return
        if (digest := digests.of_file(self.folder / name)) is None:
            remove(self.folder / name)
            return
        used = cpu_seconds + (self.before.cpu_seconds if self.before else 0.0)
        kept = Kept(
            rows=rows, digest=digest, source=self._source, seconds=self.seconds, cpu_seconds=used, smoke=self.smoke
        )
        write_atomically(self.folder / KEPT, kept.model_dump_json())
        if self._file:
            remove(self._file)
        self._file = self.folder / name

    def taken(self) -> tuple[Path, Kept] | None:
        """Return the state that was taken last."""
        kept = _read(self.folder)
        return (self.folder / STATE_FILE.format(kept.rows), kept) if kept else None

    def discard(self) -> None:
        """Remove what was kept: the training has ended."""
        remove(self.folder / KEPT)
        if self._file:
            remove(self._file)


def _read(folder: Path) -> Kept | None:
    try:
        return Kept.model_validate_json(read_plain(folder / KEPT, MIB))
    except (FileNotFoundError, BadFile, ValidationError):
        return None


def _source(training: Training) -> str:
    return hashlib.sha256(f"{training.seed}\n{training.source}".encode()).hexdigest()
