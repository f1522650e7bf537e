"""One study, from wherever its ledger says it stands to its end."""

import shutil
import time
from dataclasses import dataclass
from typing import Any

from agent.comparison.baselines import Baselines
from agent.comparison.referee import Referee
from agent.display.formatting import comparison_line, remark_line, run_line
from agent.ideas import Fixed, Idea, goal
from agent.lab import results
from agent.lab.code_hash import lab_hash
from agent.lab.evaluation.requests import Score
from agent.lab.results import FinalInfo, Training
from agent.lab.verdicts import NOT_RETRYABLE, Verdict
from agent.llm.client import LLMError
from agent.proposers import Proposer
from agent.proposers.template import baseline as baseline_proposal
from agent.report import notes
from agent.report.idea_analysis import Analysis
from agent.running import preflight
from agent.running.run_files import keep
from agent.running.watchdogs import require_disk
from agent.running.workers import Workers
from agent.study import budget, events
from agent.study.attempts import ATTEMPTS
from agent.study.ledger import BadLedger, Ledger
from agent.study.records import Proposal
from agent.study.runs import Run
from agent.study.workspace import Study

TOKENS_TOLERANCE = 0.01  # the stream ends with a whole batch
SMOKE_SECONDS = 120.0  # of which a good one takes some 15, most of it imports


@dataclass(frozen=True)
class StudyResult:
    """Why a study ended, and the exit code that says it."""

    why: str
    code: int


def started(
    idea: Idea, fixed: Fixed, found: dict[str, Any], device: str | None, limits: dict[str, Any]
) -> events.StudyStarted:
    """A study's first event: everything about it that will not change; `found` is what the lab found of the machine."""
    primary_metric, smallest_effect = goal(idea, fixed.model)
    return events.StudyStarted(
        idea=idea.name,
        title=idea.title,
        description=idea.description.strip(),
        hypothesis=idea.hypothesis.strip(),
        primary_metric=primary_metric,
        smallest_effect=smallest_effect,
        fixed=fixed,
        evals=found["evals"],
        left_out=found["left_out"],
        ground=found["ground"],
        device=device,
        **limits,
    )


class Loop:
    """Proposes, checks, trains, evaluates, compares and writes notes until a budget is spent or nothing is left to try.

    What to do next is read from the ledger alone, so a new study and one whose driver was killed at any moment
    are the same thing here.
    """

    def __init__(self, study: Study, ledger: Ledger, analysis: Analysis, proposer: Proposer, workers: Workers) -> None:
        """`ledger` holds the study's study_started."""
        assert ledger.state.started
        self.study, self.ledger, self.analysis, self.proposer, self.workers = study, ledger, analysis, proposer, workers
        self.started, self.display = ledger.state.started, workers.display
        self.baselines = Baselines(study, self.started, workers)
        self.referee = Referee(study, ledger, self.baselines, workers)
        self.lab = lab_hash()

    def run(self) -> StudyResult:
        """Carry the study on to its end, or to an interruption."""
        try:
            why = self.explore()
            self.conclude()
        except KeyboardInterrupt:
            return self.interrupt()
        except LLMError as error:
            if error.kind != "replay":
                return self.interrupt(str(error))
            self.end(str(error))  # resumed, it would come to the same question
            return StudyResult(str(error), 1)
        ending = self.ending(why)
        self.end(ending.why)
        return ending

    def explore(self) -> str:
        """Finish the run that the ledger has open, then propose and carry out until there is a reason to stop."""
        if newest := self.ledger.state.runs[-1:]:
            self.carry_out(newest[0].number)
        while not isinstance(proposal := self.next(), str):
            run = len(self.ledger.state.runs)
            self.ledger.append(events.ProposalMade(run=run, proposal=proposal))
            self.carry_out(run)
        return proposal

    def next(self) -> Proposal | str:
        """What to try next, or why nothing more is tried."""
        state = self.ledger.state
        if not state.runs:
            return baseline_proposal(self.started.fixed)
        baseline = state.runs[0].verdict
        if baseline and not baseline.ok:
            return f"the baseline failed ({baseline.name}: {baseline.evidence})"
        if lab_hash() != self.lab:
            return "agent/lab was changed while the study ran: runs before and after would not compare"
        if why := self.referee.prepare() or budget.spent(self.ledger.state, self.ledger.seconds):
            return why
        proposal = self.propose()
        if isinstance(proposal, str):
            return f"{proposal} after {state.runs_used} of at most {self.started.max_runs} runs"
        return proposal

    def propose(self) -> Proposal | str:
        """What the proposer comes to, with what it has to remember recorded on the way."""
        while not isinstance(found := self.proposer.propose(self.ledger.state, self.referee.came_out), Proposal | str):
            self.ledger.append(found)
            self.display.say(remark_line(found))
        return found

    def take_in(self, event: events.HandRunAdded) -> StudyResult:
        """A researcher's own run, like any other from its evaluation on. A study that had ended ends again after it."""
        why = self.ledger.state.ended
        self.ledger.append(event)
        try:
            self.carry_out(event.run)
            if why:
                self.conclude()
        except KeyboardInterrupt:
            return self.interrupt()
        if why:
            self.end(why)
        return StudyResult(f"run {event.run} is taken in", 0)

    def conclude(self) -> None:
        """What is left to do when nothing more is tried; nothing that a changed lab would measure otherwise."""
        if lab_hash() == self.lab:
            self.referee.conclude()

    def end(self, why: str) -> None:
        self.ledger.append(events.StudyEnded(why=why))
        self.write_notes()

    def ending(self, why: str) -> StudyResult:
        baseline, *others = [run.verdict for run in self.ledger.state.runs]
        if any(verdict and verdict.ok for verdict in others):
            return StudyResult(why, 0)
        return StudyResult(f"{why}; no run but the baseline counts" if baseline and baseline.ok else why, 1)

    def carry_out(self, run: int) -> None:
        """One run, from the stage it has reached to its notes. Each step brings it to another stage."""
        steps = {
            "proposed": self.check,
            "reserved": self.attempt,
            "training": self.cut_short,
            "evaluating": self.evaluate,
            "judged": self.settle,
        }
        self.refresh()
        while (stage := self.ledger.state.runs[run].stage) != "done":
            steps[stage](run)
            self.refresh()
        while remark := self.proposer.describe(self.ledger.state, run):
            self.ledger.append(remark)
            self.display.say(remark_line(remark))
        self.write_notes()

    def check(self, run: int) -> None:
        """Commit the proposal to the story; find what is known wrong with it; if nothing is, reserve the run."""
        state = self.ledger.state.runs[run]
        self.study.archive_attempt(run, state.attempt)
        script, proposal = self.study.directory / "experiment.py", state.proposal
        script.write_text(proposal.source)
        again = f", attempt {state.attempt + 1}" if state.attempt else ""
        self.study.commit(f"run {run}{again}, proposal: {proposal.title}\n\n{proposal.description}\n\n{proposal.why}")
        self.display.say(f"run {run}{again}: {proposal.title}")
        start = time.monotonic()
        verdict = proposal.refused or preflight.check(proposal.source, self.started.fixed, self.earlier(run))
        if verdict := verdict or self.disapproved(run) or self.smoke(run):
            directory = self.study.run_dir(run)
            directory.mkdir(exist_ok=True)
            (directory / "experiment.py").write_text(proposal.source)
            results.write(directory, FinalInfo(verdict=verdict))
            seconds = time.monotonic() - start
            self.ledger.append(
                events.PreflightFailed(run=run, attempt=state.attempt + 1, verdict=verdict, seconds=seconds)
            )
        else:
            self.ledger.append(events.RunReserved(run=run))

    def disapproved(self, run: int) -> Verdict | None:
        """What a person who is asked says of a change. Raises UserError where nobody can be asked."""
        runs = self.ledger.state.runs
        if run == 0 or not self.started.approve:
            return None
        from agent.display.approve import approve  # here because rich takes a while to import

        proposal = runs[run].proposal
        with self.display.paused():
            approved = approve(runs[proposal.start].proposal.source, proposal.source, f"run {run}: {proposal.title}")
        return None if approved else Verdict(name="preflight", evidence="not approved by the researcher")

    def earlier(self, run: int) -> dict[str, str]:
        """The code of everything that was tried before."""
        tried = {}
        for state in self.ledger.state.runs[: run + 1]:
            for attempt, failure in state.failed_attempts.items():
                if failure.verdict.name != "killed":
                    tried[f"run {state.number}, attempt {attempt}"] = failure.proposal.source
            if state.number < run:
                tried[f"run {state.number}"] = state.proposal.source
        return tried

    def smoke(self, run: int) -> Verdict | None:
        """Train a few steps, export, load and score a slice; what failed, if anything did."""
        if run == 0 and self.baselines.stored(self.baselines.k, self.started.fixed.seed):
            return None
        directory = self.study.directory / "smoke"
        if directory.exists():
            shutil.rmtree(directory)
        script, label = self.study.directory / "experiment.py", f"run {run}, tried for a few steps"
        seed, timeout = self.started.fixed.seed, min(SMOKE_SECONDS, self.started.run_timeout or SMOKE_SECONDS)
        failure = self.workers.train(script, directory, seed=seed, label=label, timeout=timeout, smoke=True)
        failure = self.tampered(run) or failure
        failure = failure or self.workers.evaluate(Score(run_dir=directory, slice=True), label=label, timeout=timeout)
        info = None if failure else results.read(directory)
        if (
            info
            and info.verdict.ok
            and (different := different_settings(self.started.fixed, info.training, smoke=True))
        ):
            failure = Verdict(name="preflight", evidence=different)
        failure = failure or (None if info is None or info.verdict.ok else info.verdict)
        if failure:
            directory.rename(self.study.run_dir(run))
            return failure.model_copy(update={"evidence": f"in the first steps: {failure.evidence}"})
        shutil.rmtree(directory)
        return None

    def attempt(self, run: int) -> None:
        """Train once, in a new directory. Raises DiskFull where there is no room for it."""
        require_disk(self.study.directory)
        state = self.ledger.state.runs[run]
        directory, attempt = self.study.run_dir(run), state.attempt + 1
        self.study.archive_attempt(run, state.attempt)
        self.ledger.append(events.AttemptStarted(run=run, attempt=attempt))
        self.refresh()
        script, start, seed = self.study.directory / "experiment.py", time.monotonic(), self.started.fixed.seed
        script.write_text(state.proposal.source)
        timeout = budget.timeout(self.ledger.state, self.ledger.seconds, evaluating=False)
        if run == 0 and self.baselines.take(self.baselines.k, seed, directory):
            shutil.copyfile(script, directory / "experiment.py")  # the same but for SEED, which the lab sets
            failure, seconds = None, results.read_metrics(directory)[-1].seconds
        else:
            failure = self.workers.train(script, directory, seed=seed, label=f"run {run}", timeout=timeout)
            seconds = time.monotonic() - start
        failure = self.tampered(run) or failure
        if failure:
            results.write(directory, FinalInfo(verdict=failure))
        self.ledger.append(events.AttemptEnded(run=run, attempt=attempt, verdict=failure, seconds=seconds))

    def tampered(self, run: int) -> Verdict | None:
        """What an experiment changed outside its directory; it is as it was again."""
        (self.study.directory / "experiment.py").write_text(self.ledger.state.runs[run].proposal.source)
        changed = self.study.restore_recorded_files(except_for=f"run_{run}")
        if self.ledger.restore():
            changed.append("the ledger")
        if changed:
            return Verdict(name="tampered", evidence=f"the experiment changed {', '.join(changed)}; put back as it was")
        return None

    def cut_short(self, run: int, evidence: str = "the driver ended while training") -> None:
        """Record the end of an attempt that did not come to one; what it left is kept."""
        killed = Verdict(name="killed", evidence=evidence)
        state = self.ledger.state.runs[run]
        keep(self.study.run_dir(run), state.proposal.source)
        results.write(self.study.run_dir(run), FinalInfo(verdict=killed))
        self.ledger.append(events.AttemptCutShort(run=run, attempt=state.attempt, verdict=killed))

    def interrupt(self, why: str = "") -> StudyResult:
        """Leave the study so that it can be resumed, with notes that say so. Empty: by a person."""
        try:
            self.ledger.reload()
        except BadLedger:  # an experiment had just changed it
            self.ledger.restore()
        for run in self.ledger.state.runs:
            if run.stage == "training":
                self.cut_short(run.number, "interrupted while training")
        self.ledger.append(events.StudyInterrupted(why=why))
        self.write_notes()
        if why:
            return StudyResult(f"interrupted: {why}; agent resume continues", 1)
        return StudyResult("interrupted; agent resume continues", 130)

    def evaluate(self, run: int) -> None:
        """Have what training left scored."""
        start, directory = time.monotonic(), self.study.run_dir(run)
        timeout = budget.timeout(self.ledger.state, self.ledger.seconds, evaluating=True)
        request = Score(run_dir=directory, evals=self.started.evals, analysis=self.analysis.path)
        failure = self.workers.evaluate(request, label=f"run {run}", timeout=timeout)
        info = FinalInfo(verdict=failure) if failure else results.read(directory)
        different = different_settings(self.started.fixed, info.training)
        if info.verdict.ok and different:
            info.verdict = Verdict(name="not_comparable", evidence=different, warnings=info.verdict.warnings)
        if info.verdict.ok and (twin := self.same_checkpoint(run, info)):
            info.verdict = Verdict(name="no_effect", evidence=f"its checkpoint equals that of run {twin.number}")
        results.write(directory, info)
        attempt, seconds = self.ledger.state.runs[run].attempt, time.monotonic() - start
        self.ledger.append(events.EvaluationEnded(run=run, attempt=attempt, verdict=info.verdict, seconds=seconds))

    def same_checkpoint(self, run: int, info: FinalInfo) -> Run | None:
        content = info.environment["checkpoint"]
        for other in self.study.load_runs(self.ledger.state):
            if other.info and other.number < run and other.info.environment.get("checkpoint") == content:
                return other
        return None

    def settle(self, run: int) -> None:
        """Compare the run with the baseline and commit its results; or try again, where something else may mend it."""
        info, state = results.read(self.study.run_dir(run)), self.ledger.state.runs[run]
        again = self.again(run)
        said = f"run {run}, attempt {state.attempt}" if again else f"run {run}"
        if info.verdict.ok and run > 0:
            info.comparison = self.referee.compare(info)
            results.write(self.study.run_dir(run), info)
        self.study.commit(f"{said}, result: {info.verdict.name}\n\n{info.verdict.evidence}")
        self.display.say(f"{said}: {run_line(info)}")
        if compared := comparison_line(info, self.started.primary_metric):
            self.display.say(f"{said}: {compared}")
        if again:
            self.ledger.append(events.ProposalMade(run=run, proposal=again))
            return
        if run == 0 and info.verdict.ok:
            self.baselines.store(self.study.run_dir(0), self.baselines.k, self.started.fixed.seed)
        self.ledger.append(events.RunCommitted(run=run, verdict=info.verdict))

    def again(self, run: int) -> Proposal | None:
        """Another proposal for a run that an edit could have saved, while it has attempts left."""
        state = self.ledger.state
        failed = state.runs[run]
        assert failed.verdict
        hopeless = failed.verdict.name in NOT_RETRYABLE or failed.attempt >= ATTEMPTS or failed.by_hand or run == 0
        if hopeless or budget.hours_spent(state, self.ledger.seconds):
            return None
        proposal = self.propose()
        return proposal if isinstance(proposal, Proposal) else None

    def refresh(self) -> None:
        self.display.table(self.study.load_runs(self.ledger.state))

    def write_notes(self) -> None:
        state = self.ledger.state
        skipped = self.proposer.skipped(state, self.referee.came_out)
        notes.write(self.study, state, skipped, self.analysis)
        self.ledger.append(events.NotesWritten(after_run=len(state.runs) - 1))


def different_settings(fixed: Fixed, training: Training | None, smoke: bool = False) -> str:
    """How a run departed from the study's fixed settings; empty where it did not."""
    if training is None:
        return "the results do not say what was trained"
    differences = [
        f"{name} is {getattr(training, name)}, the study's is {getattr(fixed, name)}"
        for name in ("model", "hook_name", "d_sae")
        if getattr(training, name) != getattr(fixed, name)
    ]
    if not smoke and abs(training.tokens - fixed.tokens) > TOKENS_TOLERANCE * fixed.tokens:
        differences.append(f"trained on {training.tokens} tokens, the study's are {fixed.tokens}")
    return "; ".join(differences)
