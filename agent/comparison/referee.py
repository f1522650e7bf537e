"""Measure the ground of every comparison: sentinels that prove the evaluation, and baselines at the right L0."""

from collections.abc import Iterator, Mapping

from agent.comparison import judgement, matching
from agent.comparison.baselines import SENTINELS, Baselines
from agent.comparison.curves import beside, curve_of, required_baselines
from agent.comparison.references import References
from agent.display.formatting import error_lines
from agent.display.live import Display
from agent.ideas import Direction
from agent.lab.evaluation.requests import TrySentinels
from agent.lab.files import MIB, read_plain
from agent.lab.metrics import family_of
from agent.lab.results import Comparison, FinalInfo, Sentinels, Work
from agent.lab.verdicts import Verdict
from agent.running.job_queue import Ended, JobQueue
from agent.running.jobs import Job
from agent.study import events, job_names
from agent.study.agreement import work_ratio
from agent.study.custody import Custody
from agent.study.ledger import Ledger
from agent.study.outcomes import StudyOver, StudyPaused
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study


class Referee:
    """Provides the sentinels and baselines of a study within its budget, records them, and compares runs."""

    def __init__(
        self, study: Study, ledger: Ledger, queue: JobQueue, custody: Custody, display: Display, baselines: Baselines
    ) -> None:
        self.study, self.ledger, self.queue, self.custody, self.display = study, ledger, queue, custody, display
        self.baselines, self.started = baselines, ledger.state.started
        self.references = References(study, ledger, queue, custody, display)

    @property
    def runs(self) -> list[Run]:
        """The study's runs as they stand now."""
        return self.study.load_runs(self.ledger.state)

    @property
    def state(self) -> State:
        """The study's state, derived from the ledger."""
        return self.ledger.state

    @property
    def baseline_counts(self) -> bool:
        """True if run 0 is done and counts."""
        return bool(self.state.runs) and self.state.runs[0].counts

    @property
    def is_ready(self) -> bool:
        """True if all is there that every comparison needs."""
        return self.state.sentinels is not None and not self.missing

    @property
    def missing(self) -> list[tuple[float, int]]:
        """Knob and seed of the baselines that every study needs and this one has not tried."""
        return [each for each in required_baselines(self.started.fixed) if each not in self.state.baselines_tried]

    def begin(self) -> None:
        """Record what is in the cache that runs will be judged by, before one of them can change it."""
        self.references.begin()
        self.custody.artefacts.begin([*self.baselines.sealed_files(), *self.references.sealed_files()])

    def start_next(self) -> bool:
        """Start what comparisons need next, or find it in the cache; return False if nothing is missing that can start.

        Raise HoursSpent if the hours do not allow it.
        """
        if self.baseline_counts and self.state.sentinels is None and job_names.SENTINELS not in self.state.jobs:
            return self._start_sentinels()
        if self.baseline_counts and self.references.start_next():
            return True
        for k, seed in self._wanted():
            if (k, seed) not in self.state.baselines_tried and job_names.baseline(k, seed) not in self.state.jobs:
                return self.start_baseline(k, seed)
        return False

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record how a job of the referee's ended; return False if it is another's."""
        baseline = job_names.baseline_of(name)
        if name != job_names.SENTINELS and baseline is None:
            return self.references.take_in(name, ended)
        if isinstance(ended, Verdict):
            self.queue.lose(name, ended)
            return True
        if baseline:
            measured = self.baselines.take_in(*baseline, ended)
            k, seed = baseline
            self.custody.commit(f"{self._named(k, seed)}: {measured.verdict.name}")
            self._record_baseline(measured)
        else:
            if ended.evaluation:
                reason = f"the evaluator returned no sentinel scores ({ended.evaluation.evidence})"
                if not ended.stopped:
                    raise StudyOver(f"the evaluation is broken: {reason}")
                self.queue.lose(name, ended.evaluation)
                raise StudyPaused(reason)
            self.custody.artefacts.record()
            self._record_sentinels(read_plain(ended.run_dir / SENTINELS, MIB))
        self.queue.forget(name)
        return True

    def require_sound_evaluation(self) -> None:
        """Raise StudyOver if sentinels or baseline have shown that the evaluation is broken."""
        self._require_measured(self.state.sentinel_errors, "the sentinels")
        if broken := self.state.broken:
            first = broken[0]
            raise StudyOver(
                f"the evaluation is broken: {first.metric} of the sentinel {first.sentinel} should be {first.expected} "
                f"and is {first.found}"
            )
        if self.baseline_counts and (baseline := self.study.load_runs(self.state, only=0)[0].info):
            self._require_measured(baseline.errors, "the baseline")

    def compare_next(self, at_end: bool = False) -> int | None:
        """Compare a run anew if that says more than before, record it, and return the run; None if there is none.

        A comparison is provisional until all that it needs is there, or will be there: `at_end`.
        """
        for run, info in self._awaiting_comparison():
            final = at_end or (self.is_ready and self._beside(info)[1] is None)
            if run.state.comparison and not final:
                continue
            comparison = self.compare(info)
            if final or comparison.metrics:
                provisional = not final
                self.ledger.append(events.RunCompared(run=run.number, comparison=comparison, provisional=provisional))
                return run.number
        return None

    def compare(self, info: FinalInfo) -> Comparison:
        """Compare a run with the baselines at its own L0 that it needs and that are there."""
        if self.started.fixed.baseline_seeds == 1:
            comparison = matching.not_comparable(matching.ONE_SEED, seeds=1)
        else:
            comparison = matching.compare(info, curve_of(self.started.fixed, self._beside(info)[0]))
        return comparison.model_copy(update={"work_ratio": work_ratio(info.work, self.baseline_work)})

    def start_missing(self, info: FinalInfo) -> bool | None:
        """Start the baseline that the comparison of a run still lacks.

        Return None if it lacks none, False if it waits for one. Raise HoursSpent.
        """
        missing = self._beside(info)[1]
        if missing is None:
            return None
        seed = self.started.fixed.seed
        return job_names.baseline(missing, seed) not in self.state.jobs and self.start_baseline(missing, seed)

    @property
    def baseline_work(self) -> Work | None:
        """Rows and CPU seconds of the training of run 0."""
        return self.state.runs[0].work

    def observed_direction(self, step: str, metric: str) -> Direction | None:
        """Return which way a metric went in the run of a plan's step, or None if it has no final comparison."""
        for run in self.runs:
            if run.state.proposal.name == step and run.counts and run.info and run.info.comparison:
                compared = None if run.state.provisional else run.info.comparison.metrics.get(metric)
                return judgement.observed_direction(compared) if compared else None
        return None

    def _beside(self, info: FinalInfo) -> tuple[list[matching.Baseline], float | None]:
        """Return the baselines that a run is compared with, and the knob of one that is missing, or None."""
        l0, fixed, seed = info.metric("l0"), self.started.fixed, self.started.fixed.seed
        required = set(required_baselines(fixed))
        common = [each for each in self.state.baselines if (each.k, each.seed) in required]
        if l0 is None or not self.is_ready or fixed.baseline_seeds == 1:
            return common, None
        more = {each.k: each for each in self.state.baselines if each.seed == seed and (each.k, seed) not in required}
        tried = {k for k, each in self.state.baselines_tried if each == seed}
        return beside(l0, fixed, common, tried, more)

    def _wanted(self) -> Iterator[tuple[float, int]]:
        """Yield knob and seed of the baselines that comparisons need, the most urgent first.

        Run 0 is one of them. The first comparison needs two seeds, and a neighbour in K on one side at
        least, or a front.
        """
        required = required_baselines(self.started.fixed)
        yield from required if self.baseline_counts else required[1:]
        for _, info in self._awaiting_comparison() if self.is_ready else ():
            missing = self._beside(info)[1]
            if missing is not None:
                yield missing, self.started.fixed.seed

    def _awaiting_comparison(self) -> Iterator[tuple[Run, FinalInfo]]:
        """Yield the runs that count and have no final comparison, with their results."""
        if any(run.awaits_comparison for run in self.state.runs):
            for run in self.runs:
                if run.info and run.state.awaits_comparison:
                    yield run, run.info

    def _require_measured(self, errors: Mapping[str, str], sae: str) -> None:
        """Raise StudyOver if `errors`, by evaluation family, has one without which no run can be judged."""
        for family in ("core", family_of(self.started.primary_metric)):
            if family in errors:
                raise StudyOver(f"the evaluation is broken: {family} gave no result on {sae}: {errors[family]}")

    def _start_sentinels(self) -> bool:
        """Score SAEs whose scores are known; once for every model, hook and version of the lab."""
        if cached := self.baselines.cached_file(SENTINELS):
            self._record_sentinels(cached, cache=False)
            return True
        budget = self.ledger.budget
        budget.require_hours()
        request = TrySentinels(run_dir=self.study.run_dir(0), out=SENTINELS)
        job = Job(label="sentinels", training=None, request=request, timeout=budget.evaluation_timeout)
        return self.queue.submit(job_names.SENTINELS, job)

    def _record_sentinels(self, content: bytes, cache: bool = True) -> None:
        sentinels = Sentinels.model_validate_json(content)
        if cache and not sentinels.errors:
            self.baselines.save_file(SENTINELS, content)
        self.ledger.append(events.SentinelsScored(expectations=sentinels.expectations, errors=sentinels.errors))
        for line in error_lines(sentinels.errors):
            self.display.say(f"sentinels: {line}")

    def start_baseline(self, k: float, seed: int) -> bool:
        """Train and score a baseline, or find it in the cache."""
        if found := self.baselines.found(k, seed):
            self._record_baseline(found)
            return True
        budget = self.ledger.budget
        budget.require_hours()
        return self.queue.submit(job_names.baseline(k, seed), self.baselines.job(k, seed, budget))

    def _named(self, k: float, seed: int) -> str:
        return self.started.fixed.architecture.baseline_with(k, seed)

    def _record_baseline(self, event: events.BaselineMeasured) -> None:
        self.ledger.append(event)
        baseline, figures = event.baseline, event.baseline.figures
        l0, ev = figures.get("l0"), figures.get("explained_variance_centered")
        result = f"L0 {l0:.2f}, explained variance {ev:.4f}" if event.verdict.ok else event.verdict.name
        result = "; ".join([result, *error_lines(event.errors)])
        self.display.say(f"{self._named(baseline.k, baseline.seed)}: {result} ({event.seconds:.0f} s)")
