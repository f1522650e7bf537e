"""One study, from wherever its ledger says it stands to its end."""

from dataclasses import dataclass

from agent.comparison.baselines import Baselines
from agent.comparison.confirmation import Confirmation
from agent.comparison.referee import Referee
from agent.display.formatting import remark_line
from agent.lab.files import BadFile
from agent.llm.client import LLMError
from agent.proposers import Proposer
from agent.proposers.template import baseline_proposal
from agent.report import notes
from agent.report.idea_analysis import Analysis
from agent.run_stages import RunStages
from agent.running.workers import Workers
from agent.study import events
from agent.study.ledger import Ledger
from agent.study.outcomes import StudyDone, StudyPaused
from agent.study.records import Proposal
from agent.study.state import RunState, State
from agent.study.workspace import Study


@dataclass(frozen=True)
class StudyResult:
    """How a study ended, and the exit code that says so."""

    reason: str
    exit_code: int


class Loop:
    """Proposes, checks, trains, evaluates, compares and writes notes until a budget is spent or nothing is left to try.

    The next step follows from the ledger alone, so a new study and one whose driver was killed take the same path.
    Each run advances by itself, one stage at a time, so that several can be open at once.
    """

    def __init__(self, study: Study, ledger: Ledger, analysis: Analysis, proposer: Proposer, workers: Workers) -> None:
        self.study, self.ledger, self.analysis, self.proposer, self.workers = study, ledger, analysis, proposer, workers
        self.started, self.display = ledger.state.started, workers.display
        baselines = Baselines(study, self.started, workers)
        self.referee = Referee(study, ledger, baselines, workers)
        self.stages = RunStages(study, ledger, workers, baselines, self.referee, analysis.path, self.ask_proposer)
        self.code = workers.custody.code

    @property
    def state(self) -> State:
        """The study's state, derived from the ledger."""
        return self.ledger.state

    def run(self) -> StudyResult:
        """Carry the study on to its end, or to an interruption."""
        try:
            reason = self.explore()
            self.conclude()
        except KeyboardInterrupt:
            return self.interrupt()
        except StudyPaused as paused:
            return self.interrupt(paused.reason)
        except LLMError as error:
            if error.kind != "replay":
                return self.interrupt(str(error))
            self.end(str(error))  # resumed, it would come to the same question
            return StudyResult(str(error), 1)
        result = self.result(reason)
        self.end(result.reason)
        return result

    def explore(self) -> str:
        """Advance open runs and propose new ones until the study is done; return the reason."""
        self.referee.begin()
        try:
            self.stages.refresh()
            if done := [run.number for run in self.state.runs if run.stage == "done"]:
                self.write_up(*done)  # the last driver may have ended before it did
            while True:
                for run in self.state.open_runs or [self.propose_run()]:
                    self.advance(run.number)
        except StudyDone as done:
            return done.reason

    def propose_run(self) -> RunState:
        """Open the next run with a proposal, and return it. Raise StudyDone if nothing more is tried."""
        number = len(self.state.runs)
        proposal = self.next_proposal() if number else baseline_proposal(self.started.fixed)
        self.ledger.append(events.ProposalMade(run=number, proposal=proposal))
        self.stages.refresh()
        return self.state.runs[number]

    def advance(self, run: int) -> None:
        """Take a run one stage further, and write it up once it is done."""
        self.stages.advance(run)
        self.stages.refresh()
        if self.state.runs[run].stage == "done":
            self.write_up(run)

    def next_proposal(self) -> Proposal:
        """Return what to try next. Raise StudyDone if nothing more is tried."""
        verdict = self.state.runs[0].verdict
        if verdict and not verdict.ok:
            raise StudyDone(f"the baseline failed ({verdict.name}: {verdict.evidence})")
        baseline = self.study.load_runs(self.state)[0].info
        self.referee.require_measured(baseline.errors if baseline else {}, "the baseline")
        self.require_same_code()
        self.referee.prepare()
        self.ledger.budget.require_run()
        try:
            return self.ask_proposer()
        except StudyDone as done:
            used, most = self.state.runs_used, self.started.max_runs
            raise StudyDone(f"{done.reason} after {used} of at most {most} runs") from None

    def require_same_code(self) -> None:
        """Raise StudyDone if the code that judges runs is not what it was when the driver started."""
        if changed := self.code.changed():
            was = "was" if len(changed) == 1 else "were"
            raise StudyDone(
                f"{', '.join(changed)} {was} changed while the study ran: runs before and after would not compare"
            )

    def ask_proposer(self) -> Proposal:
        """Return the proposer's next proposal, recording its remarks on the way. Raise StudyDone."""
        self.require_same_code()
        while True:
            answer = self.proposer.propose(self.state, self.referee.observed_direction)
            if isinstance(answer, Proposal):
                return answer
            self.record(answer)

    def record(self, remark: events.Remark) -> None:
        """Record and show a proposer's plan, description or refused answer."""
        self.ledger.append(remark)
        self.display.say(remark_line(remark))

    def write_up(self, *runs: int) -> None:
        """Have runs that are done described by the proposer, and write the notes."""
        for run in runs:
            while remark := self.proposer.describe(self.state, run):
                self.record(remark)
        self.write_notes()

    def conclude(self) -> None:
        """Confirm winners and score the test split, unless what judges them has changed."""
        if not self.code.changed():
            Confirmation(self.referee).conclude()

    def end(self, reason: str) -> None:
        """Record the end of the study."""
        self.ledger.append(events.StudyEnded(why=reason))
        self.write_notes()

    def result(self, reason: str) -> StudyResult:
        """Return exit code 0 if any run but the baseline counts, else 1."""
        first, *others = [run.verdict for run in self.state.runs]
        if any(verdict and verdict.ok for verdict in others):
            return StudyResult(reason, 0)
        return StudyResult(f"{reason}; no run but the baseline counts" if first and first.ok else reason, 1)

    def interrupt(self, reason: str = "") -> StudyResult:
        """Leave the study resumable, with notes that say so. An empty reason means a person did it."""
        try:
            self.ledger.reload()
        except BadFile:  # an experiment had just changed it
            self.ledger.restore()
        if changed := self.workers.custody.restore():
            self.display.say(f"what was interrupted had changed {', '.join(changed)}: put back")
        for run in self.state.runs:
            if run.stage == "training":
                self.stages.cut_short(run.number, "interrupted while training")
        self.ledger.append(events.StudyInterrupted(why=reason))
        self.write_notes()
        if reason:
            return StudyResult(f"interrupted: {reason}; agent resume continues", 1)
        return StudyResult("interrupted; agent resume continues", 130)

    def add_hand_run(self, event: events.HandRunAdded) -> StudyResult:
        """Take in a run made by hand, from its evaluation on. A study that had ended ends again after it."""
        reason = self.state.ended
        self.referee.begin()
        self.ledger.append(event)
        try:
            while self.state.open_runs:
                self.advance(event.run)
            if reason:
                self.conclude()
        except KeyboardInterrupt:
            return self.interrupt()
        except StudyPaused as paused:
            return self.interrupt(paused.reason)
        if reason:
            self.end(reason)
        return StudyResult(f"run {event.run} was added", 0)

    def write_notes(self) -> None:
        """Write notes and plots, and record that they are up to date."""
        state = self.state
        skipped = self.proposer.skipped(state, self.referee.observed_direction)
        notes.write(self.study, state, skipped, self.analysis)
        self.ledger.append(events.NotesWritten(after_run=len(state.runs) - 1))
