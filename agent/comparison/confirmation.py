"""The end of a study: fresh seeds for runs that look better than the baseline, then the test split for these."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.comparison import arbiter, judgement, matching
from agent.comparison.judgement import FRESH_SEEDS, judgements
from agent.comparison.referee import Referee
from agent.lab import results
from agent.lab.evaluation.requests import Score
from agent.lab.results import Comparison, FinalInfo
from agent.lab.verdicts import Verdict
from agent.running.job_queue import Ended, fault_of_machine
from agent.running.jobs import Job
from agent.study import digests, events, job_names
from agent.study.agreement import departure
from agent.study.outcomes import HoursSpent, RunFailed
from agent.study.runs import Run

FIRST_FRESH_SEED = 1000  # counted from the study's own seed


class Confirmation:
    """Confirms a study's winners with fresh seeds and on the test split."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee
        self.study, self.ledger, self.queue = referee.study, referee.ledger, referee.queue
        self.display, self.started, self.allows_seeds = referee.display, referee.started, True
        self._trained: dict[str, FinalInfo] = {}  # results of fresh seeds, by their jobs, whose baselines are awaited

    def start_next(self) -> bool:
        """Start what confirms the runs that look better: fresh seeds, then the test split; return False if nothing is
        left that can start. Raise HoursSpent if the hours do not allow it."""
        if self.allows_seeds and (missing := self._missing_seed()):
            try:
                return self._start_seed(*missing)
            except HoursSpent:
                self.allows_seeds = False  # an evaluation takes less
        if any(job_names.fresh_seed_of(name) for name in self.ledger.state.jobs):
            return False  # what is asked of the test split depends on them
        for event in self._to_score_on_test():
            if job_names.on_test_split(event.run, event.k, event.seed) not in self.ledger.state.jobs:
                return self._start_score(event)
        return False

    @property
    def is_through(self) -> bool:
        """True if all is there that says which runs are better."""
        seeds_run = any(job_names.fresh_seed_of(name) for name in self.ledger.state.jobs)
        return not seeds_run and self._missing_seed() is None and not any(self._to_score_on_test())

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record how a job of the confirmation ended; return False if it is another's, or waits for a baseline."""
        if fresh := job_names.fresh_seed_of(name):
            return self._take_in_seed(*fresh, name, ended)
        for event in self._to_score_on_test():
            if name == job_names.on_test_split(event.run, event.k, event.seed):
                self._take_in_score(event, name, ended)
                return True
        return False

    def _missing_seed(self) -> tuple[Run, int] | None:
        """Return a run that looks better, the best first, and a fresh seed that it was not trained with."""
        for run in self._runs_with_outcome("unconfirmed"):
            known = self.ledger.state.replicates.get(run.number, {})
            for seed in self._fresh_seeds():
                if seed not in known and job_names.fresh_seed(run.number, seed) not in self.ledger.state.jobs:
                    return run, seed
        return None

    def _fresh_seeds(self) -> list[int]:
        return [self.started.fixed.seed + FIRST_FRESH_SEED + number for number in range(FRESH_SEEDS)]

    def _runs_with_outcome(self, outcome: judgement.Outcome) -> list[Run]:
        """Return the runs that were judged so, the greatest improvement first."""
        runs = self.referee.runs
        return judgement.ranked(runs, judgements(runs, self.ledger.state), outcome, self.started.primary_metric)

    def _start_seed(self, run: Run, seed: int) -> bool:
        budget = self.ledger.budget
        budget.require_hours()
        label, source = f"run {run.number} with fresh seed {seed}", run.state.proposal.source
        run_dir, strangers = self._seed_dir(run.number, seed), self._trained_with_other_seeds(seed)
        resumes = run.state.resumes
        job = self.referee.baselines.training(source, seed, run_dir, label, budget, strangers, resumes)
        return self.queue.submit(job_names.fresh_seed(run.number, seed), job)

    def _trained_with_other_seeds(self, seed: int) -> tuple[Path, ...]:
        """Return the directories of the runs that count, and of the fresh seeds that are there, but for this seed of
        other runs, which starts from the same weights. Those that are trained side by side are not among them: they are
        confined, or there is one job at a time."""
        runs = [run.directory for run in self.referee.runs if run.counts]
        known = self.ledger.state.replicates
        others = [(run, other) for run, by_seed in known.items() for other in by_seed if other != seed]
        return (*runs, *(self._seed_dir(run, other) for run, other in others))

    def _seed_dir(self, run: int, seed: int) -> Path:
        return self.study.directory / f"run_{run}_seed_{seed}"

    def _take_in_seed(self, run: int, seed: int, name: str, ended: Ended) -> bool:
        """Record what came of a fresh seed, once the baselines are there that it is compared with."""
        if self.queue.ask_again(name, fault_of_machine(ended)):
            return True
        run_dir = self._seed_dir(run, seed)
        if isinstance(ended, Verdict):
            comparison, seconds = matching.not_comparable(f"{ended.name}: {ended.evidence}"), 0.0
        else:
            if name not in self._trained:
                self._trained[name] = self.referee.baselines.results_of(ended, run_dir, ended.work)
            comparison = self._compare_seed(self.referee.runs[run], self._trained[name], run_dir)
            seconds = ended.seconds
        if comparison is None:
            return False
        recorded = digests.of_run(run_dir)
        self.referee.custody.commit(f"run {run} with fresh seed {seed}: {comparison.not_comparable or 'ok'}")
        self.ledger.append(
            events.ReplicateEnded(run=run, seed=seed, comparison=comparison, seconds=seconds, digests=recorded)
        )
        self.display.say(f"run {run} with fresh seed {seed}: {comparison.not_comparable or 'ok'} ({seconds:.0f} s)")
        self.queue.forget(name)
        return True

    def _compare_seed(self, run: Run, info: FinalInfo, run_dir: Path) -> Comparison | None:
        """Compare a fresh seed with the baseline, or return None while one that it needs is being trained."""
        assert run.info
        if not info.verdict.ok:
            return matching.not_comparable(f"{info.verdict.name}: {info.verdict.evidence}")
        if difference := departure(self.started.fixed, info, results.rows_stepped(run_dir), self.referee.baseline_work):
            return matching.not_comparable(difference)
        if info.environment["checkpoint"] == run.info.environment["checkpoint"]:
            return matching.not_comparable("its checkpoint equals the run's own: the seed changes nothing")
        with suppress(HoursSpent):
            if self.referee.start_missing(info) is not None:
                return None
        return self.referee.compare(info)

    def _to_score_on_test(self) -> Iterator[events.ScoredOnTest]:
        """Yield the events, without figures, of what is to be scored on the test split and was not.

        It is the baseline, every run whose fresh seeds confirmed it, and what decides on that: the fresh seeds, and the
        baselines that these were compared with.
        """
        state, runs = self.ledger.state, self.referee.runs
        if not runs or not runs[0].counts or state.broken:
            return
        winners = [*self._runs_with_outcome("untested"), *self._runs_with_outcome("better")]
        for run in [runs[0], *winners]:
            if run.number not in state.tested:
                yield events.ScoredOnTest(run=run.number, figures={})
        if not arbiter.has_test_split(self.started.primary_metric):
            return
        for run in winners:
            seeds = state.replicates[run.number]
            for seed in seeds:
                if seed not in state.tested_seeds.get(run.number, {}):
                    yield events.ScoredOnTest(run=run.number, seed=seed, figures={})
            for each in arbiter.baselines_to_score(list(seeds.values()), state.baselines):
                if not arbiter.is_run_0(each, state) and arbiter.score_of_baseline(each, state) is None:
                    yield events.ScoredOnTest(run=0, k=each.k, seed=each.seed, figures={})

    def _start_score(self, event: events.ScoredOnTest) -> bool:
        budget, custody = self.ledger.budget, self.referee.custody
        budget.require_evaluation()
        if event.k is not None and event.seed is not None:
            run_dir = self.referee.baselines.checkout(event.k, event.seed)
        else:
            run_dir = self._seed_dir(event.run, event.seed) if event.seed is not None else self.study.run_dir(event.run)
        if run_dir is None:
            why_not = "its checkpoint is no longer in the cache"
            self.ledger.append(event.model_copy(update={"why_not": why_not}))
            return True
        try:
            custody.require_untouched()
            custody.require_present(run_dir)
        except RunFailed as failure:
            self._record_score(event, FinalInfo(verdict=failure.verdict))
            return True
        evals = tuple(family for family in self.started.evals if family in arbiter.TEST_FAMILIES)
        request = Score(run_dir=run_dir, out="test_info.json", split="test", evals=evals)
        label = f"{event.named(self.started.fixed.architecture)} on the test split"
        timeout = budget.evaluation_timeout
        name = job_names.on_test_split(event.run, event.k, event.seed)
        return self.queue.submit(name, Job(label=label, training=None, request=request, timeout=timeout))

    def _take_in_score(self, event: events.ScoredOnTest, name: str, ended: Ended) -> None:
        if isinstance(ended, Verdict):
            self.queue.lose(name, ended)
            return
        self.referee.custody.artefacts.record()
        failure = ended.evaluation
        info = FinalInfo(verdict=failure) if failure else results.read(ended.run_dir, "test_info.json")
        self._record_score(event, info)
        self.queue.forget(name)

    def _record_score(self, event: events.ScoredOnTest, info: FinalInfo) -> None:
        """Record the figures of a checkpoint on the test split, or why there are none."""
        if info.verdict.ok:
            found = {"figures": matching.all_metrics(info)}
        else:
            found = {"why_not": f"{info.verdict.name}: {info.verdict.evidence}"}
        self.ledger.append(event.model_copy(update=found))
