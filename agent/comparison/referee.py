"""A study's comparisons: the sentinels, the baselines they need, fresh seeds for winners, and the test text."""

import os
import time

from agent.comparison import judgement, matching
from agent.comparison.baselines import Baselines, wanted
from agent.comparison.judgement import FRESH_SEEDS, judgements
from agent.comparison.matching import all_metrics
from agent.ideas import Direction
from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.evaluation.requests import Score, TrySentinels
from agent.lab.results import Comparison, FinalInfo, Sentinels
from agent.running.workers import Workers
from agent.study import budget, events
from agent.study.ledger import Ledger
from agent.study.runs import Run
from agent.study.workspace import Study

NOT_THE_RUNS = {"killed", "disk_full"}  # what happened to a training says nothing of the run
ON_TEST = {"core", "synthetic"}  # the families that have text, or samples, of their own for it
FRESH = 1000  # from a study's seed to the first of those that confirm a winner


class NoSentinels(UserError):
    """The evaluator did not answer about the sentinels: nothing is known of it, and the study waits."""


class Referee:
    """Has made what a comparison needs, within the study's budgets, and records it in the ledger."""

    def __init__(self, study: Study, ledger: Ledger, baselines: Baselines, workers: Workers) -> None:
        assert ledger.state.started
        self.study, self.ledger, self.baselines, self.workers = study, ledger, baselines, workers
        self.started = ledger.state.started

    def prepare(self) -> str | None:
        """Once the baseline has its scores: try the evaluation on sentinels, and measure the noise. Returns why the
        study cannot go on, if it cannot."""
        if self.ledger.state.sentinels is None and (why := self.try_sentinels()):
            return why
        if broken := self.ledger.state.broken:
            first = broken[0]
            return (
                f"the evaluation is broken: {first.metric} of the sentinel {first.sentinel} should be {first.expected} "
                f"and is {first.found}"
            )
        for k, seed in wanted(self.started.fixed):
            if (k, seed) not in self.ledger.state.baselines_tried and (why := self.measure(k, seed)):
                return why
        return None

    def try_sentinels(self) -> str | None:
        """The evaluator on SAEs whose scores are known; once for every model, hook and version of the lab. Returns why
        there is no answer, if there is none."""
        cached = self.baselines.folder / "sentinels.json"
        if not cached.exists():
            if why := budget.hours_spent(self.ledger.state, self.ledger.seconds):
                return why
            request = TrySentinels(run_dir=self.study.run_dir(0), out="sentinels.json")
            if failure := self.workers.evaluate(request, label="sentinels", timeout=self.seconds(evaluating=True)):
                raise NoSentinels(f"sentinels got no scores ({failure.evidence}): agent resume tries them again")
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{cached.name}.{os.getpid()}.partial")
            partial.write_bytes((request.run_dir / request.out).read_bytes())
            partial.replace(cached)
        sentinels = Sentinels.model_validate_json(cached.read_bytes())
        self.ledger.append(events.SentinelsScored(expectations=sentinels.expectations))
        return None

    def measure(self, k: float, seed: int) -> str | None:
        """Train and score a baseline, or find it in the cache; why not, where the hours do not allow it."""
        if not self.baselines.scored(k, seed) and (why := budget.hours_spent(self.ledger.state, self.ledger.seconds)):
            return why
        event = self.baselines.measure(k, seed, self.seconds(evaluating=False), self.seconds(evaluating=True))
        self.ledger.append(event)
        l0, ev = (event.baseline.figures.get(name) for name in ("l0", "explained_variance_centered"))
        said = f"L0 {l0:.2f}, explained variance {ev:.4f}" if event.verdict.ok else event.verdict.name
        self.workers.display.say(f"baseline with K {k:g}, seed {seed}: {said} ({event.seconds:.0f} s)")
        return None

    def seconds(self, evaluating: bool) -> float:
        return budget.timeout(self.ledger.state, self.ledger.seconds, evaluating)

    def compare(self, info: FinalInfo) -> Comparison:
        """A run beside the baseline at its own L0; the baselines for it are trained where they are missing."""
        baseline = self.ledger.state.runs[0].verdict
        if baseline and baseline.ok:
            self.prepare()  # a run by hand may come before anything was compared
        l0, seed = info.metric("l0"), self.started.fixed.seed
        assert l0 is not None
        while len(self.ledger.state.baselines) > 1:
            k = matching.missing_k(l0, self.ledger.state.baselines)
            if k is None or (k, seed) in self.ledger.state.baselines_tried or self.measure(k, seed):
                break
        return matching.compare(info, self.ledger.state.baselines)

    def came_out(self, step: str, metric: str) -> Direction | None:
        """Which way a metric went in the run of a step of the plan; None without a comparison."""
        for run in self.runs:
            if run.state.proposal.name == step and run.counts and run.info and run.info.comparison:
                compared = run.info.comparison.metrics.get(metric)
                return judgement.observed_direction(compared) if compared else None
        return None

    @property
    def runs(self) -> list[Run]:
        return self.study.load_runs(self.ledger.state)

    def conclude(self) -> None:
        """Confirm what looks better than the baseline by fresh seeds, then score the test text once."""
        for run in self.of_outcome("unconfirmed"):
            for number in range(FRESH_SEEDS):
                seed = self.started.fixed.seed + FRESH + number
                if seed not in self.ledger.state.replicates.get(run.number, {}) and not self.replicate(run, seed):
                    break
        baseline = self.runs[:1]
        if baseline and baseline[0].counts and not self.ledger.state.broken:
            for run in [*baseline, *self.of_outcome("better")[:1]]:
                if run.number not in self.ledger.state.tested:
                    self.score_test(run)

    def of_outcome(self, outcome: judgement.Outcome) -> list[Run]:
        """The runs that were judged so, the greatest gain first."""
        primary = self.started.primary_metric
        judged = judgements(self.runs, self.ledger.state)

        def gain(run: Run) -> float:
            assert run.info
            assert run.info.comparison
            return judgement.improvement(primary, run.info.comparison.metrics[primary])

        found = [run for run in self.runs if run.number in judged and judged[run.number].outcome == outcome]
        return sorted(found, key=gain, reverse=True)

    def replicate(self, run: Run, seed: int) -> bool:
        """Train and score a run again with another seed; whether hours and machine allowed it."""
        if budget.hours_spent(self.ledger.state, self.ledger.seconds):
            return False
        start, label = time.monotonic(), f"run {run.number} with fresh seed {seed}"
        run_dir = self.study.directory / f"run_{run.number}_seed_{seed}"
        info = self.baselines.train(
            run.state.proposal.source, seed, run_dir, label, self.seconds(False), self.seconds(True)
        )
        assert run.info
        if info.verdict.name in NOT_THE_RUNS:
            return False
        if not info.verdict.ok:
            compared = matching.not_comparable(f"{info.verdict.name}: {info.verdict.evidence}")
        elif info.environment["checkpoint"] == run.info.environment["checkpoint"]:
            compared = matching.not_comparable("its checkpoint equals the run's own: the seed changes nothing")
        else:
            compared = self.compare(info)
        self.ledger.append(
            events.ReplicateEnded(run=run.number, seed=seed, comparison=compared, seconds=time.monotonic() - start)
        )
        self.workers.display.say(f"{label}: {info.verdict.name} ({time.monotonic() - start:.0f} s)")
        return True

    def score_test(self, run: Run) -> None:
        """Core's figures of a run on the text that no choice was made on."""
        evals = tuple(family for family in self.started.evals if family in ON_TEST)
        request = Score(run_dir=run.directory, out="test_info.json", split="test", evals=evals)
        label = f"run {run.number} on the test text"
        failure = self.workers.evaluate(request, label=label, timeout=self.seconds(evaluating=True))
        info = FinalInfo(verdict=failure) if failure else results.read(run.directory, request.out)
        scored, why = (
            (all_metrics(info), "") if info.verdict.ok else ({}, f"{info.verdict.name}: {info.verdict.evidence}")
        )
        self.ledger.append(events.ScoredOnTest(run=run.number, figures=scored, why_not=why))
