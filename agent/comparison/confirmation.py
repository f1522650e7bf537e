"""The end of a study: fresh seeds for runs that look better than the baseline, then the test split for these."""

import time
from contextlib import suppress
from pathlib import Path

from agent.comparison import arbiter, judgement, matching
from agent.comparison.agreement import departure
from agent.comparison.judgement import FRESH_SEEDS, judgements
from agent.comparison.referee import Referee
from agent.lab import results
from agent.lab.evaluation.requests import Score
from agent.lab.results import Comparison, FinalInfo
from agent.study import digests, events
from agent.study.outcomes import StudyDone
from agent.study.runs import Run

FIRST_FRESH_SEED = 1000  # counted from the study's own seed
SAYS_NOTHING = {"killed", "disk_full"}  # verdicts on the machine: the seed is tried again on resume


class Confirmation:
    """Confirms a study's winners with fresh seeds and on the test split."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee
        self.study, self.ledger, self.workers = referee.study, referee.ledger, referee.workers
        self.started = referee.started

    def conclude(self) -> None:
        """Confirm the runs that look better, as far as the hours allow: with fresh seeds, then on the test split."""
        for run in self._runs_with_outcome("unconfirmed"):
            with suppress(StudyDone):
                self._confirm(run)
        baseline = self.referee.runs[:1]
        if baseline and baseline[0].counts and not self.ledger.state.broken:
            with suppress(StudyDone):
                self._score_test_split(baseline[0])
                for run in [*self._runs_with_outcome("untested"), *self._runs_with_outcome("better")]:
                    self._score_test_split(run)
                    if arbiter.has_test_split(self.started.primary_metric):
                        self._score_what_decides(run)

    def _runs_with_outcome(self, outcome: judgement.Outcome) -> list[Run]:
        """Return the runs that were judged so, the greatest improvement first."""
        primary, runs = self.started.primary_metric, self.referee.runs
        judged = judgements(runs, self.ledger.state)

        def improvement(run: Run) -> float:
            assert run.info
            assert run.info.comparison
            return judgement.improvement(primary, run.info.comparison.metrics[primary])

        matches = [run for run in runs if run.number in judged and judged[run.number].outcome == outcome]
        return sorted(matches, key=improvement, reverse=True)

    def _confirm(self, run: Run) -> None:
        """Replicate a run with each fresh seed that is missing. Raise StudyDone if hours or machine do not allow it."""
        for number in range(FRESH_SEEDS):
            seed = self.started.fixed.seed + FIRST_FRESH_SEED + number
            if seed not in self.ledger.state.replicates.get(run.number, {}):
                self._replicate(run, seed)

    def _replicate(self, run: Run, seed: int) -> None:
        budget = self.ledger.budget
        budget.require_hours()
        start, label = time.monotonic(), f"run {run.number} with fresh seed {seed}"
        run_dir = self._seed_dir(run, seed)
        source, strangers = run.state.proposal.source, self._trained_with_other_seeds(seed)
        info = self.referee.baselines.train(source, seed, run_dir, label, budget, strangers)
        if info.verdict.name in SAYS_NOTHING:
            raise StudyDone(f"{label} did not end: {info.verdict.evidence}")
        comparison = self._compare_replicate(run, info, run_dir)
        seconds, recorded = time.monotonic() - start, digests.of_run(run_dir)
        self.ledger.append(
            events.ReplicateEnded(run=run.number, seed=seed, comparison=comparison, seconds=seconds, digests=recorded)
        )
        self.workers.display.say(f"{label}: {info.verdict.name} ({seconds:.0f} s)")

    def _trained_with_other_seeds(self, seed: int) -> tuple[Path, ...]:
        """Return the directories of the runs that count, and of all fresh seeds but this one."""
        runs = [run.directory for run in self.referee.runs if run.counts]
        fresh = [path for path in self.study.directory.glob("run_*_seed_*") if not path.name.endswith(f"_seed_{seed}")]
        return (*runs, *sorted(fresh))

    def _seed_dir(self, run: Run, seed: int) -> Path:
        return self.study.directory / f"run_{run.number}_seed_{seed}"

    def _compare_replicate(self, run: Run, info: FinalInfo, run_dir: Path) -> Comparison:
        assert run.info
        if not info.verdict.ok:
            return matching.not_comparable(f"{info.verdict.name}: {info.verdict.evidence}")
        if difference := departure(self.started.fixed, info, results.rows_stepped(run_dir), self.referee.baseline_work):
            return matching.not_comparable(difference)
        if info.environment["checkpoint"] == run.info.environment["checkpoint"]:
            return matching.not_comparable("its checkpoint equals the run's own: the seed changes nothing")
        return self.referee.compare(info)

    def _score_what_decides(self, run: Run) -> None:
        """Score on the test split a run's fresh seeds, and the baselines between which these were compared."""
        seeds = self.ledger.state.replicates[run.number]
        for seed in seeds:
            if seed not in self.ledger.state.tested_seeds.get(run.number, {}):
                self._score(self._seed_dir(run, seed), events.ScoredOnTest(run=run.number, seed=seed, figures={}))
        state = self.ledger.state
        for each in arbiter.baselines_to_score(list(seeds.values()), state.baselines):
            if arbiter.score_of_baseline(each, state) is None:
                event = events.ScoredOnTest(run=0, k=each.k, seed=each.seed, figures={})
                if run_dir := self.referee.baselines.checkout(each.k, each.seed):
                    self._score(run_dir, event)
                else:
                    why_not = "its checkpoint is no longer in the cache"
                    self.ledger.append(event.model_copy(update={"why_not": why_not}))

    def _score_test_split(self, run: Run) -> None:
        if run.number not in self.ledger.state.tested:
            self._score(run.directory, events.ScoredOnTest(run=run.number, figures={}))

    def _score(self, run_dir: Path, event: events.ScoredOnTest) -> None:
        """Record the figures of a checkpoint on the test split. Raise StudyDone if the hours do not allow it."""
        budget = self.ledger.budget
        budget.require_evaluation()
        evals = tuple(family for family in self.started.evals if family in arbiter.TEST_FAMILIES)
        request = Score(run_dir=run_dir, out="test_info.json", split="test", evals=evals)
        info = self.workers.score(request, label=f"{event.name} on the test split", timeout=budget.evaluation_timeout)
        if info.verdict.ok:
            found = {"figures": matching.all_metrics(info)}
        else:
            found = {"why_not": f"{info.verdict.name}: {info.verdict.evidence}"}
        self.ledger.append(event.model_copy(update=found))
