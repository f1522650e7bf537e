"""Jobs that keep what a person looks at of the runs' latents. No verdict waits for them or depends on them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.comparison.referee import Referee
from agent.lab import features
from agent.lab.evaluation.requests import KeepFeatures
from agent.lab.files import BadFile, remove
from agent.lab.verdicts import Verdict
from agent.running.job_queue import Ended, stopped_by
from agent.running.jobs import Job
from agent.study import digests, events, job_names
from agent.study.outcomes import StudyPaused

MOST_TRIES = 2  # of a job that was ended from outside, or ran out of time
MOST_SECONDS = 240.0  # of looking at text


class FeatureKeeper:
    """Keeps the features of run 0, and then of each run that counts, when nothing else is left to start."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee
        self.study, self.ledger, self.queue = referee.study, referee.ledger, referee.queue

    def start_next(self) -> bool:
        """Start the next job; return False if none is missing that can start, or the hours do not allow it."""
        if not self.referee.is_ready or not self.referee.baseline_counts or not self.ledger.budget.allows_evaluation:
            return False
        run = next(self._missing(), None)
        return run is not None and self._start(run)

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record how a job of the keeper's ended; return False if it is another's."""
        run = job_names.features_of(name)
        if run is None:
            return False
        if self.queue.ask_again(name, stopped_by(ended), MOST_TRIES):
            return True
        failure, seconds = (ended, 0.0) if isinstance(ended, Verdict) else (ended.evaluation, ended.evaluation_seconds)
        self.referee.custody.artefacts.record()
        self._record(run, failure.evidence if failure else self._damage(run), seconds)
        self.queue.forget(name)
        return True

    def _missing(self) -> Iterator[int]:
        """Yield the runs that still lack features; the others need the latents that run 0's are of."""
        state = self.ledger.state
        for run in state.runs:
            if not run.counts or run.number in state.features:
                continue
            is_free = job_names.features(run.number) not in state.jobs
            if is_free and self.referee.custody.has_recorded_files(self.study.run_dir(run.number)):
                yield run.number
            if run.number == 0:
                return

    def _start(self, run: int) -> bool:
        timeout, run_dir = self.ledger.budget.evaluation_timeout, self.study.run_dir(run)
        request = KeepFeatures(
            run_dir=run_dir,
            baseline=self.study.run_dir(0) if run else None,
            reseeded=None if run else self._reseeded(),
            seconds=min(MOST_SECONDS, timeout / 2),
        )
        job = Job(label=f"run {run}, features", training=None, request=request, timeout=timeout)
        try:
            return self.queue.submit(job_names.features(run), job)
        except StudyPaused as refused:
            self._record(run, refused.reason)
            return True

    def _reseeded(self) -> Path | None:
        """Return the directory of a baseline with the knob of run 0 and another seed, or None if there is none."""
        baselines, seed = self.referee.baselines, self.referee.started.fixed.seed
        others = [each for each in self.ledger.state.baselines if each.k == baselines.k and each.seed != seed]
        return baselines.checkout(others[0].k, others[0].seed) if others else None

    def _damage(self, run: int) -> str:
        """Return what is wrong with the features that a job left, or an empty string."""
        try:
            return "" if features.read(self.study.run_dir(run)) else "it left none"
        except BadFile as damage:
            return str(damage)

    def _record(self, run: int, error: str, seconds: float = 0.0) -> None:
        name = f"{self.study.run_dir(run).name}/{features.FILE}"
        if error:
            with suppress(OSError):
                remove(self.study.directory / name)
            self.referee.display.say(f"run {run}: no features are kept: {error}")
        recorded = {} if error else digests.of_files(self.study.directory, [name])
        self.ledger.append(events.FeaturesKept(run=run, error=error, seconds=seconds, digests=recorded))
