"""The end of a study: fresh seeds for runs that look better than the baseline, then the test split, scored once."""

import time
from contextlib import suppress
from pathlib import Path

from agent.comparison import judgement, matching
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
TEST_FAMILIES = {"core", "synthetic"}  # the families that have a test split


class Confirmation:
    """Confirms a study's winners with fresh seeds and scores the test split."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee
        self.study, self.ledger, self.workers = referee.study, referee.ledger, referee.workers
        self.started = referee.started

    def conclude(self) -> None:
        """Confirm the runs that look better, as far as the hours allow, then score the test split."""
        for run in self._runs_with_outcome("unconfirmed"):
            with suppress(StudyDone):
                self._confirm(run)
        baseline = self.referee.runs[:1]
        if baseline and baseline[0].counts and not self.ledger.state.broken:
            for run in [*baseline, *self._runs_with_outcome("better")[:1]]:
                if run.number not in self.ledger.state.tested:
                    self._score_test_split(run)

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
        run_dir = self.study.directory / f"run_{run.number}_seed_{seed}"
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

    def _compare_replicate(self, run: Run, info: FinalInfo, run_dir: Path) -> Comparison:
        assert run.info
        if not info.verdict.ok:
            return matching.not_comparable(f"{info.verdict.name}: {info.verdict.evidence}")
        if difference := departure(self.started.fixed, info, results.rows_stepped(run_dir), self.referee.baseline_work):
            return matching.not_comparable(difference)
        if info.environment["checkpoint"] == run.info.environment["checkpoint"]:
            return matching.not_comparable("its checkpoint equals the run's own: the seed changes nothing")
        return self.referee.compare(info)

    def _score_test_split(self, run: Run) -> None:
        """Record core's figures of a run on text that no choice was made on."""
        evals = tuple(family for family in self.started.evals if family in TEST_FAMILIES)
        request = Score(run_dir=run.directory, out="test_info.json", split="test", evals=evals)
        label, timeout = f"run {run.number} on the test text", self.ledger.budget.evaluation_timeout
        info = self.workers.score(request, label=label, timeout=timeout)
        if info.verdict.ok:
            event = events.ScoredOnTest(run=run.number, figures=matching.all_metrics(info))
        else:
            why_not = f"{info.verdict.name}: {info.verdict.evidence}"
            event = events.ScoredOnTest(run=run.number, figures={}, why_not=why_not)
        self.ledger.append(event)
