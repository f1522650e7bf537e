"""What every comparison of a study needs: sentinels that prove the evaluation, and baselines at the right L0."""

from collections.abc import Mapping
from contextlib import suppress

from agent.comparison import judgement, matching
from agent.comparison.agreement import work_ratio
from agent.comparison.baselines import Baselines, required_baselines
from agent.display.formatting import error_lines
from agent.ideas import Direction
from agent.lab.evaluation.requests import TrySentinels
from agent.lab.files import MIB, read_plain
from agent.lab.metrics import family_of
from agent.lab.results import Comparison, FinalInfo, Sentinels, Work
from agent.running.workers import Workers
from agent.study import events
from agent.study.ledger import Ledger
from agent.study.outcomes import EvaluationStopped, RunFailed, StudyDone, StudyPaused
from agent.study.runs import Run
from agent.study.workspace import Study


class Referee:
    """Provides the sentinels and baselines of a study within its budget, records them, and compares runs."""

    def __init__(self, study: Study, ledger: Ledger, baselines: Baselines, workers: Workers) -> None:
        self.study, self.ledger, self.baselines, self.workers = study, ledger, baselines, workers
        self.started = ledger.state.started

    @property
    def runs(self) -> list[Run]:
        """The study's runs as they stand now."""
        return self.study.load_runs(self.ledger.state)

    def begin(self) -> None:
        """Record what is in the cache that runs will be judged by, before one of them can change it."""
        self.workers.custody.artefacts.begin(self.baselines.sealed_files())

    def prepare(self) -> None:
        """Score the sentinels and measure the noise, once the baseline has its scores.

        Raise StudyDone if the evaluation is broken or the budget is spent, StudyPaused if the sentinels have no scores
        and another try may give them.
        """
        if self.ledger.state.sentinels is None:
            self._score_sentinels()
        self.require_measured(self.ledger.state.sentinel_errors, "the sentinels")
        if broken := self.ledger.state.broken:
            first = broken[0]
            raise StudyDone(
                f"the evaluation is broken: {first.metric} of the sentinel {first.sentinel} should be {first.expected} "
                f"and is {first.found}"
            )
        for k, seed in required_baselines(self.started.fixed):
            if (k, seed) not in self.ledger.state.baselines_tried:
                self._measure_baseline(k, seed)

    def compare(self, info: FinalInfo) -> Comparison:
        """Compare a run with the baseline at its own L0, training the baselines that bracket it if they are missing."""
        baseline = self.ledger.state.runs[0].verdict
        if baseline and baseline.ok:
            with suppress(StudyDone):
                self.prepare()  # a run by hand may come before anything was compared
        l0, seed = info.metric("l0"), self.started.fixed.seed
        assert l0 is not None
        while len(self.ledger.state.baselines) > 1:
            k = matching.missing_k(l0, self.ledger.state.baselines)
            if k is None or (k, seed) in self.ledger.state.baselines_tried:
                break
            try:
                self._measure_baseline(k, seed)
            except StudyDone:
                break
        comparison = matching.compare(info, self.ledger.state.baselines)
        return comparison.model_copy(update={"work_ratio": work_ratio(info.work, self.baseline_work)})

    def require_measured(self, errors: Mapping[str, str], sae: str) -> None:
        """Raise StudyDone if `errors`, by evaluation family, has one without which no run can be judged."""
        for family in ("core", family_of(self.started.primary_metric)):
            if family in errors:
                raise StudyDone(f"the evaluation is broken: {family} gave no result on {sae}: {errors[family]}")

    @property
    def baseline_work(self) -> Work | None:
        """What the training of run 0 read and used."""
        return self.ledger.state.runs[0].work

    def observed_direction(self, step: str, metric: str) -> Direction | None:
        """Return which way a metric went in the run of a plan's step, or None if that run was not compared."""
        for run in self.runs:
            if run.state.proposal.name == step and run.counts and run.info and run.info.comparison:
                compared = run.info.comparison.metrics.get(metric)
                return judgement.observed_direction(compared) if compared else None
        return None

    def _score_sentinels(self) -> None:
        """Run the evaluator on SAEs whose scores are known; once for every model, hook and version of the lab."""
        cached = self.baselines.sentinels
        if not self.workers.custody.artefacts.are_recorded(cached.parent, [cached.name]):
            budget = self.ledger.budget
            budget.require_hours()
            request = TrySentinels(run_dir=self.study.run_dir(0), out="sentinels.json")
            try:
                self.workers.evaluate(request, label="sentinels", timeout=budget.evaluation_timeout)
            except EvaluationStopped as failure:
                raise StudyPaused(f"the evaluator returned no sentinel scores ({failure.verdict.evidence})") from None
            except RunFailed as failure:
                reason = f"the evaluator returned no sentinel scores ({failure.verdict.evidence})"
                raise StudyDone(f"the evaluation is broken: {reason}") from None
            content = read_plain(request.run_dir / request.out, MIB)
            if not Sentinels.model_validate_json(content).errors:
                self.baselines.save_sentinels(content)
        else:
            content = read_plain(cached, MIB)
        sentinels = Sentinels.model_validate_json(content)
        self.ledger.append(events.SentinelsScored(expectations=sentinels.expectations, errors=sentinels.errors))
        for line in error_lines(sentinels.errors):
            self.workers.display.say(f"sentinels: {line}")

    def _measure_baseline(self, k: float, seed: int) -> None:
        """Train and score a baseline, or find it in the cache. Raise StudyDone if the hours do not allow it."""
        budget = self.ledger.budget
        if not self.baselines.cached_results(k, seed):
            budget.require_hours()
        event = self.baselines.measure(k, seed, budget)
        self.ledger.append(event)
        l0, ev = (event.baseline.figures.get(name) for name in ("l0", "explained_variance_centered"))
        result = f"L0 {l0:.2f}, explained variance {ev:.4f}" if event.verdict.ok else event.verdict.name
        result = "; ".join([result, *error_lines(event.errors)])
        self.workers.display.say(f"baseline with K {k:g}, seed {seed}: {result} ({event.seconds:.0f} s)")
