"""One run, stage by stage: checked, reserved, trained, evaluated, settled. Each step ends with an event."""

import time
from collections.abc import Callable
from pathlib import Path

from agent.comparison.agreement import departure, different_settings
from agent.comparison.baselines import Baselines
from agent.comparison.referee import Referee
from agent.display.approve import approve
from agent.display.formatting import comparison_line, run_line
from agent.lab import results
from agent.lab.evaluation.requests import Score
from agent.lab.files import remove, write_atomically
from agent.lab.results import FinalInfo, Work
from agent.lab.verdicts import Verdict
from agent.running import preflight
from agent.running.run_files import collect_run_files
from agent.running.watchdogs import require_disk
from agent.running.workers import Workers
from agent.study import attempts, digests, events
from agent.study.ledger import Ledger
from agent.study.outcomes import RunFailed, StudyDone
from agent.study.records import Proposal
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

SMOKE_SECONDS = 300.0  # a sound smoke test takes some 15, most of it imports; the machine may be busy


class RunStages:
    """The steps that bring a run of a study from one stage to the next, whichever other runs are open."""

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        workers: Workers,
        baselines: Baselines,
        referee: Referee,
        analysis: Path | None,
        ask_proposer: Callable[[], Proposal],
    ) -> None:
        """`analysis` is the idea's analysis.py; `ask_proposer` raises StudyDone if there is nothing left to try."""
        self.study, self.ledger, self.workers, self.baselines, self.referee = study, ledger, workers, baselines, referee
        self.analysis, self.ask_proposer = analysis, ask_proposer
        self.started, self.display = ledger.state.started, workers.display

    @property
    def state(self) -> State:
        """The study's state, derived from the ledger."""
        return self.ledger.state

    def refresh(self) -> None:
        """Show the runs as they stand."""
        self.display.table(self.study.load_runs(self.state))

    def advance(self, run: int) -> None:
        """Take the one step that brings a run from its stage to another."""
        steps = {
            "proposed": self.check,
            "reserved": self.attempt,
            "training": self.cut_short,
            "evaluating": self.evaluate,
            "judged": self.settle,
        }
        steps[self.state.runs[run].stage](run)

    def check(self, run: int) -> None:
        """Commit the proposal to the study's repository and check it; reserve the run if nothing is wrong with it."""
        state = self.state.runs[run]
        self.study.archive_attempt(run, state.attempt)
        script, proposal = self.study.directory / "experiment.py", state.proposal
        write_atomically(script, proposal.source)
        label = f"run {run}" + (f", attempt {state.attempt + 1}" if state.attempt else "")
        self.study.commit(f"{label}, proposal: {proposal.title}\n\n{proposal.description}\n\n{proposal.why}")
        self.display.say(f"{label}: {proposal.title}")
        start = time.monotonic()
        try:
            self.preflight(run)
        except RunFailed as failure:
            directory = self.study.run_dir(run)
            directory.mkdir(exist_ok=True)
            write_atomically(directory / "experiment.py", proposal.source)
            results.write(directory, FinalInfo(verdict=failure.verdict))
            attempt, seconds = state.attempt + 1, time.monotonic() - start
            self.ledger.append(
                events.PreflightFailed(
                    run=run,
                    attempt=attempt,
                    verdict=failure.verdict,
                    seconds=seconds,
                    digests=digests.of_run(directory),
                )
            )
        else:
            self.ledger.append(events.RunReserved(run=run))

    def preflight(self, run: int) -> None:
        """Raise RunFailed if the code is known to be wrong, a person refuses it, or it fails in its first steps."""
        proposal = self.state.runs[run].proposal
        if proposal.refused:
            raise RunFailed(proposal.refused)
        preflight.check(proposal.source, self.started.fixed, self.earlier_sources(run))
        if run > 0 and self.started.approve:
            self.require_approval(run)
        is_cached_baseline = run == 0 and self.baselines.cached_run(self.baselines.k, self.started.fixed.seed)
        if not is_cached_baseline:
            self.smoke_test(run)

    def require_approval(self, run: int) -> None:
        """Show the change to a person. Raise RunFailed if refused, UserError if there is no terminal to ask on."""
        runs = self.state.runs
        proposal = runs[run].proposal
        with self.display.paused():
            approved = approve(runs[proposal.start].proposal.source, proposal.source, f"run {run}: {proposal.title}")
        if not approved:
            raise RunFailed(Verdict(name="preflight", evidence="not approved by the researcher"))

    def earlier_sources(self, run: int) -> dict[str, str]:
        """Return the code of everything tried before, by run and attempt."""
        sources = {}
        for state in self.state.runs[: run + 1]:
            for attempt, failure in state.failed_attempts.items():
                if failure.verdict.name != "killed":
                    sources[f"run {state.number}, attempt {attempt}"] = failure.proposal.source
            if state.number < run:
                sources[f"run {state.number}"] = state.proposal.source
        return sources

    def smoke_test(self, run: int) -> None:
        """Train a few steps, export, load and score a slice. Raise RunFailed, leaving the trial as the run's."""
        directory = self.study.directory / "smoke"
        remove(directory)
        label = f"run {run}, smoke test"
        timeout = min(SMOKE_SECONDS, self.started.run_timeout or SMOKE_SECONDS)
        try:
            self.train(run, directory.name, label, timeout, smoke=True)
            info = self.workers.score(Score(run_dir=directory, slice=True), label=label, timeout=timeout)
            if info.verdict.ok and (difference := different_settings(self.started.fixed, info.training)):
                info.verdict = Verdict(name="preflight", evidence=difference)
            if not info.verdict.ok:
                raise RunFailed(info.verdict)
        except RunFailed as failure:
            self.study.archive_attempt(run, 0)  # what the experiment may have put under the run's name
            directory.rename(self.study.run_dir(run))
            evidence = f"in the first steps: {failure.verdict.evidence}"
            raise RunFailed(failure.verdict.model_copy(update={"evidence": evidence})) from None
        remove(directory)

    def attempt(self, run: int) -> None:
        """Train once, in a new directory. Raise DiskFull if there is no room for it."""
        require_disk(self.study.directory)
        state, directory = self.state.runs[run], self.study.run_dir(run)
        attempt = state.attempt + 1
        self.study.archive_attempt(run, state.attempt)
        self.ledger.append(events.AttemptStarted(run=run, attempt=attempt))
        self.refresh()
        start, verdict, work = time.monotonic(), None, None
        script, seed = self.study.directory / "experiment.py", self.started.fixed.seed
        write_atomically(script, state.proposal.source)
        if run == 0 and self.baselines.copy_from_cache(self.baselines.k, seed, directory):
            # The same but for SEED, which the lab sets.
            write_atomically(directory / "experiment.py", state.proposal.source)
            seconds, work = (
                results.read_metrics(directory)[-1].seconds,
                self.baselines.cached_work(self.baselines.k, seed),
            )
        else:
            try:
                work = self.train(run, directory.name, f"run {run}", self.ledger.budget.training_timeout)
            except RunFailed as failure:
                verdict = failure.verdict
                results.write(directory, FinalInfo(verdict=verdict))
            seconds = time.monotonic() - start
        self.ledger.append(
            events.AttemptEnded(
                run=run,
                attempt=attempt,
                verdict=verdict,
                seconds=seconds,
                work=work,
                digests=digests.of_run(directory),
            )
        )

    def train(self, run: int, directory: str, label: str, timeout: float, smoke: bool = False) -> Work:
        """Train a run's experiment.py into a directory of the study; return what that took. Raise RunFailed."""
        script, out = self.study.directory / "experiment.py", self.study.directory / directory
        seed, source = self.started.fixed.seed, self.state.runs[run].proposal.source
        try:
            work = self.workers.train(script, out, seed=seed, label=label, timeout=timeout, smoke=smoke)
        except RunFailed:
            write_atomically(script, source)
            raise
        write_atomically(script, source)
        return work

    def cut_short(self, run: int, evidence: str = "the driver ended while training") -> None:
        """Record that an attempt was cut short; what it left is kept."""
        killed = Verdict(name="killed", evidence=evidence)
        state, directory = self.state.runs[run], self.study.run_dir(run)
        collect_run_files(directory, state.proposal.source)
        results.write(directory, FinalInfo(verdict=killed))
        recorded = digests.of_run(directory)
        self.ledger.append(events.AttemptCutShort(run=run, attempt=state.attempt, verdict=killed, digests=recorded))

    def evaluate(self, run: int) -> None:
        """Have the checkpoint scored, and judge whether the run is comparable and differs from earlier ones."""
        start, directory = time.monotonic(), self.study.run_dir(run)
        request = Score(run_dir=directory, evals=self.started.evals, analysis=self.analysis)
        info = self.workers.score(request, label=f"run {run}", timeout=self.ledger.budget.evaluation_timeout)
        info.work = self.state.runs[run].work
        stepped = results.rows_stepped(directory)
        difference = departure(self.started.fixed, info, stepped, self.state.runs[0].work)
        if info.verdict.ok and difference:
            info.verdict = Verdict(name="not_comparable", evidence=difference, warnings=info.verdict.warnings)
        if info.verdict.ok and (twin := self.same_checkpoint(run, info)):
            info.verdict = Verdict(name="no_effect", evidence=f"its checkpoint equals that of run {twin.number}")
        results.write(directory, info)
        attempt, seconds = self.state.runs[run].attempt, time.monotonic() - start
        self.ledger.append(
            events.EvaluationEnded(
                run=run,
                attempt=attempt,
                verdict=info.verdict,
                seconds=seconds,
                digests=digests.of_run(directory),
            )
        )

    def same_checkpoint(self, run: int, info: FinalInfo) -> Run | None:
        """Return an earlier run whose checkpoint has the same content, or None."""
        content = info.environment["checkpoint"]
        for other in self.study.load_runs(self.state):
            if other.info and other.number < run and other.info.environment.get("checkpoint") == content:
                return other
        return None

    def settle(self, run: int) -> None:
        """Compare the run with the baseline and commit its results, or try again if another proposal may mend it."""
        directory, state, proposal = self.study.run_dir(run), self.state.runs[run], self.another_proposal(run)
        label = f"run {run}, attempt {state.attempt}" if proposal else f"run {run}"
        info = self.compared(run)
        self.study.commit(f"{label}, result: {info.verdict.name}\n\n{info.verdict.evidence}")
        self.display.say(f"{label}: {run_line(info)}")
        if line := comparison_line(info, self.started.primary_metric):
            self.display.say(f"{label}: {line}")
        if proposal:
            self.ledger.append(events.ProposalMade(run=run, proposal=proposal))
            return
        if run == 0 and info.verdict.ok:
            self.baselines.save_to_cache(directory, self.baselines.k, self.started.fixed.seed)
        recorded = digests.of_run(directory)
        self.ledger.append(events.RunCommitted(run=run, verdict=info.verdict, digests=recorded))

    def compared(self, run: int) -> FinalInfo:
        """Return the results of a run, with its comparison if it counts, and write them."""
        directory = self.study.run_dir(run)
        try:
            self.workers.custody.require_untouched()
            info = results.read(directory)
            if not info.verdict.ok or run == 0:
                return info
            info.comparison = self.referee.compare(info)
        except RunFailed as failure:
            info = FinalInfo(verdict=failure.verdict)
        results.write(directory, info)
        return info

    def another_proposal(self, run: int) -> Proposal | None:
        """Return another proposal for a run that an edit could have saved, or None."""
        failed = self.state.runs[run]
        assert failed.verdict
        if run == 0 or failed.by_hand or not attempts.allows_another_proposal(failed.verdict, failed.attempt):
            return None
        try:
            self.ledger.budget.require_hours()
            return self.ask_proposer()
        except StudyDone:
            return None
