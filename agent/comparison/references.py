"""SAEs that were trained elsewhere, scored once as runs are. They stand beside the baseline; nothing rests on them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.comparison.curves import own_curve
from agent.comparison.matching import all_metrics
from agent.display.formatting import run_line
from agent.display.live import Display
from agent.lab import cache, results
from agent.lab.evaluation.requests import Score
from agent.lab.files import write_atomically
from agent.lab.locks import waiting_lock
from agent.lab.metrics import HEADLINE, family_of
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.running.job_queue import Ended, JobQueue, stopped_by
from agent.running.jobs import Job
from agent.running.taking_in import take_in
from agent.study import digests, imported, job_names
from agent.study.custody import Custody
from agent.study.ledger import Ledger
from agent.study.reference_events import ReferenceImported, ReferenceScored
from agent.study.state import State
from agent.study.workspace import Study

RESULTS = "final_info.json"
CHECKPOINT = tuple(name for name in digests.RUN_FILES if name.startswith("checkpoint/"))


@dataclass(frozen=True)
class Beside:
    """How an SAE from elsewhere differs from the baseline at its L0: by metric, or why it cannot be said.

    Without intervals: nothing says how another training of that SAE would come out.
    """

    differences: Mapping[str, float]
    why_not: str = ""


def beside_baseline(figures: Mapping[str, float | None], state: State) -> Beside:
    """Read the baseline's curve at the L0 of an SAE from elsewhere with these figures."""
    l0, curve = figures.get("l0"), own_curve(state)
    if curve is None or not l0 or l0 < 0:
        return Beside({}, "the baseline is not measured" if l0 else "its L0 was not measured")
    if why_not := curve.why_not(l0):
        return Beside({}, why_not)
    readings = {name: curve.read(name, l0) for name in HEADLINE[1:]}
    return Beside(
        {
            name: value - reading.value
            for name, reading in readings.items()
            if reading is not None and (value := figures.get(name)) is not None
        }
    )


class References:
    """The references of one study: recorded as they were imported, and scored when run 0 counts."""

    def __init__(self, study: Study, ledger: Ledger, queue: JobQueue, custody: Custody, display: Display) -> None:
        self.study, self.ledger, self.queue, self.custody, self.display = study, ledger, queue, custody, display
        self.started = ledger.state.started

    @property
    def _missing(self) -> list[str]:
        """The references without scores, and without a reason why they have none."""
        return [name for name in self.started.references if name not in self.ledger.state.references_scored]

    def begin(self) -> None:
        """Record what was imported, which a driver may have been killed before. Raise BadFile if it is not there."""
        for name in self.started.references:
            if name not in self.ledger.state.references:
                folder = self.study.reference_dir(name)
                recorded = self._digests(name, CHECKPOINT)
                self.ledger.append(ReferenceImported(reference=imported.read(folder, name), digests=recorded))

    def sealed_files(self) -> list[Path]:
        """Return the cached scores of the study's references that are as they were saved."""
        folders = [self._cached(name) for name in self._missing]
        return [folder / RESULTS for folder in folders if digests.is_sealed(folder, [RESULTS])]

    def start_next(self) -> bool:
        """Score a reference, or find its scores in the cache; return False if none is left to start. Raise HoursSpent
        if the hours do not allow it."""
        name = next((name for name in self._missing if job_names.reference(name) not in self.ledger.state.jobs), None)
        if name is None:
            return False
        run_dir = self.study.reference_dir(name)
        if found := self._found(name):
            write_atomically(run_dir / RESULTS, results.as_text(found))
            self._record(name, found, 0.0)
            return True
        if not self.custody.has_recorded_files(run_dir):
            evidence = f"{run_dir.name} was changed after it was recorded"
            self._record(name, FinalInfo(verdict=Verdict(name="not_evaluated", evidence=evidence)), 0.0)
            return True
        self.ledger.budget.require_evaluation()
        request = Score(run_dir=run_dir, evals=self.started.evals)
        timeout = self.ledger.budget.evaluation_timeout
        job = Job(label=f"reference {name}", training=None, request=request, timeout=timeout)
        return self.queue.submit(job_names.reference(name), job)

    def take_in(self, job: str, ended: Ended) -> bool:
        """Record the scores of a reference; return False if it is another's job."""
        name = job_names.reference_of(job)
        if name is None:
            return False
        if self.queue.ask_again(job, stopped_by(ended)):
            return True
        if isinstance(ended, Verdict):
            self._record(name, FinalInfo(verdict=ended), 0.0)
        else:
            info = take_in(ended, self.study.reference_dir(name), self.custody)
            if info.verdict.ok and not info.errors:
                self._save(name, info)
            self._record(name, info, ended.evaluation_seconds)
        self.queue.forget(job)
        return True

    def _record(self, name: str, info: FinalInfo, seconds: float) -> None:
        figures = {each: value for each, value in all_metrics(info).items() if family_of(each) in self.started.evals}
        self.custody.commit(f"reference {name}: {info.verdict.name}")
        self.ledger.append(
            ReferenceScored(
                name=name,
                verdict=info.verdict,
                figures=figures if info.verdict.ok else {},
                errors=info.errors,
                seconds=seconds,
                digests=self._digests(name, [RESULTS]),
            )
        )
        self.display.say(f"reference {name}: {run_line(info)} ({seconds:.0f} s)")

    def _digests(self, name: str, files: tuple[str, ...] | list[str]) -> dict[str, str]:
        return digests.of_files(self.study.directory, [f"{job_names.reference(name)}/{file}" for file in files])

    def _cached(self, name: str) -> Path:
        """Return where the scores of a reference are cached: by its content, and by what scores depend on."""
        recorded = [self.ledger.state.digests.get(f"{job_names.reference(name)}/{file}") for file in CHECKPOINT]
        digest = hashlib.sha256(json.dumps([self.started.fingerprint, *recorded]).encode()).hexdigest()[:12]
        return cache.root() / "references" / f"{name}-{digest}"

    def _found(self, name: str) -> FinalInfo | None:
        """Return the scores of a reference from the cache, or None if they are not all there as the study began."""
        folder = self._cached(name)
        cache.mark_used(folder)
        if not self.custody.artefacts.are_recorded(folder, [RESULTS]):
            return None
        info = results.read(folder)
        return info if info.families >= set(self.started.evals) else None

    def _save(self, name: str, info: FinalInfo) -> None:
        folder = self._cached(name)
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder.with_name(f"{folder.name}.lock"), "another study caches the same scores"):
            write_atomically(folder / RESULTS, results.as_text(info))
            digests.seal(folder, [RESULTS])
        self.custody.artefacts.record([folder / RESULTS])
