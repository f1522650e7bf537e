"""The baselines that runs are compared with: other seeds and knobs, cached for every study of the same fingerprint."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.comparison.matching import all_metrics
from agent.display.live import Display
from agent.ideas import render_baseline
from agent.lab import cache, results
from agent.lab.evaluation.catalogue import NAMES
from agent.lab.evaluation.requests import Score
from agent.lab.files import MIB, atomic_path, read_plain, remove, write_atomically
from agent.lab.locks import waiting_lock
from agent.lab.metrics import family_of
from agent.lab.results import FinalInfo, Work
from agent.running.jobs import Job, Outcome, Training
from agent.running.taking_in import take_in
from agent.study import digests, first_steps
from agent.study.budget import Budget
from agent.study.custody import Custody
from agent.study.events import BaselineMeasured, StudyStarted
from agent.study.records import Baseline
from agent.study.workspace import Study

SENTINELS, RATES = "sentinels.json", "learning_rate.json"  # cached beside the baselines


@dataclass
class Baselines:
    """Baselines of one study: what trains and scores them, and their place in the cache. `k` is a baseline's knob."""

    study: Study
    started: StudyStarted
    custody: Custody
    display: Display

    @property
    def k(self) -> float:
        """The baseline's own knob."""
        return self.started.fixed.knob

    @property
    def learning_rate(self) -> float | None:
        """The rate that the study has found for its baselines; None for the model's own."""
        return self.custody.ledger.state.learning_rate

    @property
    def folder(self) -> Path:
        """The cache's folder for everything that figures depend on, apart from knob and seed."""
        fixed = self.started.fixed
        source = render_baseline(fixed.model_copy(update={"seed": 0}), rate=self.learning_rate)
        digest = hashlib.sha256(f"{self.started.fingerprint}\n{source}".encode()).hexdigest()[:12]
        return (
            cache.root() / "baselines" / f"{cache.slug(Path(fixed.model).name)}-{cache.slug(fixed.hook_name)}-{digest}"
        )

    def entry(self, k: float, seed: int) -> Path:
        """Return where the run directory of a baseline is cached."""
        return self.folder / f"k{k:g}_seed{seed}"

    def cached_run(self, k: float, seed: int) -> Path | None:
        """Return the cached run directory of a baseline, or None.

        A study uses its own, and those that were there when it began, as they were then.
        """
        folder = self.entry(k, seed)
        cache.mark_used(self.folder)
        return folder if self.custody.artefacts.are_recorded(folder, digests.RUN_FILES) else None

    def sealed_files(self) -> list[Path]:
        """Return the files of cached baselines, and of the sentinels' scores, that are as they were saved."""
        entries = [path for path in sorted(self.folder.glob("k*_seed*")) if path.is_dir() and not path.is_symlink()]
        sound = [entry for entry in entries if digests.is_sealed(entry, digests.RUN_FILES)]
        for entry in entries:
            if entry not in sound and entry.suffix != ".partial":
                self.display.say(f"{entry} in the cache is not as it was saved: trained again")
        files = [entry / name for entry in sound for name in digests.RUN_FILES]
        return files + [self.folder / name for name in (SENTINELS, RATES) if digests.is_sealed(self.folder, [name])]

    def cached_file(self, name: str) -> bytes | None:
        """Return a cached file beside the baselines, SENTINELS or RATES; None if there is none to rely on."""
        if not self.custody.artefacts.are_recorded(self.folder, [name]):
            return None
        return read_plain(self.folder / name, MIB)

    def save_file(self, name: str, content: bytes) -> None:
        """Cache a file beside the baselines."""
        with self.cache_lock():
            self._write_about()
            write_atomically(self.folder / name, content)
            digests.seal(self.folder, [name])
        self.custody.artefacts.record([self.folder / name])

    def cached_results(self, k: float, seed: int) -> FinalInfo | None:
        """Return the cached results of a baseline if they cover all families of the study, else None."""
        run_dir = self.cached_run(k, seed)
        info = results.read(run_dir) if run_dir else None
        return info if info and info.families >= set(self.started.evals) else None

    def cached_work(self, k: float, seed: int) -> Work | None:
        """Return what a cached baseline's training read and used, or None if it is not known."""
        run_dir = self.cached_run(k, seed)
        return results.read(run_dir).work if run_dir else None

    def cached_smoke(self, k: float, seed: int) -> str:
        """Return the hash of the checkpoint that a cached baseline's first steps left, or "" if it is not known."""
        run_dir = self.cached_run(k, seed)
        return results.read(run_dir).environment.get(first_steps.CHECKPOINT, "") if run_dir else ""

    def found(self, k: float, seed: int) -> BaselineMeasured | None:
        """Return a baseline's figures from the cache, or None if they are not all there."""
        info = self.cached_results(k, seed)
        return self._measured(k, seed, info, 0.0, {}) if info else None

    def job(self, k: float, seed: int, budget: Budget) -> Job:
        """Return the job that trains and scores a baseline, or scores a cached one by the families it has not."""
        label, run_dir = self.started.fixed.architecture.baseline_with(k, seed), self._run_dir(k, seed)
        if not self.cached_run(k, seed):
            source = render_baseline(self.started.fixed, k, rate=self.learning_rate)
            return self.training(source, seed, run_dir, label, budget)
        remove(run_dir)  # of a driver that was killed
        self.copy_from_cache(k, seed, run_dir)
        cached = results.read(self.entry(k, seed)).families
        evals = tuple(name for name in NAMES if name in cached | set(self.started.evals))
        request = Score(run_dir=run_dir, evals=evals)
        return Job(label=f"{label}, scored again", training=None, request=request, timeout=budget.evaluation_timeout)

    def training(
        self,
        source: str,
        seed: int,
        run_dir: Path,
        label: str,
        budget: Budget,
        strangers: tuple[Path, ...] = (),
        resumes: bool = True,
    ) -> Job:
        """Return the job that trains and scores an experiment outside the study's budget of runs.

        `strangers` are runs with other seeds, whose weights it must not have gone on from. `resumes`: it goes on from a
        saved state as if nothing had happened.
        """
        timeout = budget.training_timeout
        training = Training(source=source, directory=run_dir.name, seed=seed, timeout=timeout, resumes=resumes)
        request = Score(run_dir=run_dir, evals=self.started.evals, strangers=strangers)
        return Job(label=label, training=training, request=request, timeout=budget.evaluation_timeout)

    def take_in(self, k: float, seed: int, outcome: Outcome) -> BaselineMeasured:
        """Return the figures of a baseline whose job has ended, and cache it."""
        run_dir = self._run_dir(k, seed)
        work = outcome.work or self.cached_work(k, seed)
        info = self.results_of(outcome, run_dir, work)
        remove(run_dir / "sae_lens")  # the same tensors again, which nobody asked a baseline for
        if info.verdict.ok:
            self.save_to_cache(run_dir, k, seed)
        return self._measured(k, seed, info, outcome.seconds, digests.of_run(run_dir))

    def results_of(self, outcome: Outcome, run_dir: Path, work: Work | None) -> FinalInfo:
        """Take in a run of which a job was the training, and return its results with what that read and used."""
        info = take_in(outcome, run_dir, self.custody)
        if info.verdict.ok:
            info.work = work
            results.write(run_dir, info)
        return info

    def _measured(
        self, k: float, seed: int, info: FinalInfo, seconds: float, recorded: dict[str, str]
    ) -> BaselineMeasured:
        figures = {name: value for name, value in all_metrics(info).items() if family_of(name) in self.started.evals}
        return BaselineMeasured(
            baseline=Baseline(k=k, seed=seed, figures=figures if info.verdict.ok else {}),
            verdict=info.verdict,
            errors=info.errors if info.verdict.ok else {},
            seconds=seconds,
            digests=recorded,
        )

    def checkout(self, k: float, seed: int) -> Path | None:
        """Return a baseline's directory in the study, copied from the cache if need be; None if it is in neither."""
        run_dir = self._run_dir(k, seed)
        if (run_dir / "final_info.json").exists():  # trained by this study, or scored again
            return run_dir
        remove(run_dir)  # of a driver that was killed
        return run_dir if self.copy_from_cache(k, seed, run_dir) else None

    def _run_dir(self, k: float, seed: int) -> Path:
        """Return the directory of a baseline in the study."""
        return self.study.directory / f"baseline_k{k:g}_seed{seed}"

    def save_to_cache(self, run_dir: Path, k: float, seed: int) -> None:
        """Cache a copy of a baseline, whole or not at all, in the place of one that has figures of fewer families."""
        entry = self.entry(k, seed)
        with self.cache_lock():
            self._write_about()
            if not (self.cached_run(k, seed) and results.read(entry).families >= results.read(run_dir).families):
                with atomic_path(entry) as partial:
                    copy_run(run_dir, partial)
                    digests.seal(partial, digests.RUN_FILES)
                    remove(entry)
        self.custody.artefacts.record(entry / name for name in digests.RUN_FILES)

    def _write_about(self) -> None:
        about = self.started.fixed.model_dump(include={"model", "hook_name", "tokens", "d_sae"})
        write_atomically(self.folder / "about.json", json.dumps(about))

    @contextmanager
    def cache_lock(self) -> Iterator[None]:
        """Keep other studies from writing to the same folder of the cache."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        with waiting_lock(lock, "another study caches the same baselines"):
            yield

    def copy_from_cache(self, k: float, seed: int, run_dir: Path) -> bool:
        """Copy a cached baseline's training into run_dir. Return False if none is cached."""
        cached = self.cached_run(k, seed)
        if cached:
            copy_run(cached, run_dir, "final_info.json", "eval", digests.SEAL)
        return cached is not None


def copy_run(source: Path, target: Path, *left_out: str) -> None:
    """Copy the directory of a run, but for the names in `left_out`; a link is copied as one.

    Tensors are not copied but get a second name, where both directories are on one disk: a checkpoint may have more
    than a gigabyte. What changes them by one name changes them by the other, and the digests of both show it.
    """

    def copy(file: str, to: str) -> None:
        if file.endswith(".safetensors"):
            with suppress(OSError):  # another disk, or one without such names
                os.link(file, to, follow_symlinks=False)
                return
        shutil.copy2(file, to)

    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*left_out), copy_function=copy)
