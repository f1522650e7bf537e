"""One study, from wherever its ledger says it stands to its end."""

import sys
from collections.abc import Callable

from agent.audit import contradicted
from agent.comparison.baselines import Baselines
from agent.comparison.confirmation import Confirmation
from agent.comparison.feature_keeper import FeatureKeeper
from agent.comparison.front import Front
from agent.comparison.referee import Referee
from agent.comparison.tuning import Tuning
from agent.display.approve import agrees
from agent.display.formatting import comparison_line, remark_line
from agent.lab.files import BadFile
from agent.lab.verdicts import Verdict
from agent.llm.client import LLMError
from agent.llm.replay import NotYet
from agent.proposers import Proposer
from agent.proposers.template import baseline_proposal
from agent.report.idea_analysis import Analysis
from agent.report.notebook import Notebook
from agent.report.track import Tracker
from agent.run_stages import RunStages
from agent.running.job_queue import JobQueue
from agent.study import events, job_names
from agent.study.custody import Custody
from agent.study.ledger import Ledger
from agent.study.outcomes import HoursSpent, StudyDone, StudyOver, StudyPaused, StudyResult
from agent.study.records import Proposal
from agent.study.state import State
from agent.study.workspace import Study


class Loop:
    """Proposes, checks, trains, evaluates, compares and writes notes until a budget is spent or nothing is left to try.

    The next step follows from the ledger alone, so a new study and one whose driver was killed take the same path.
    What does not wait for a result starts as soon as there is room for its job.
    """

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        analysis: Analysis,
        proposer: Proposer,
        queue: JobQueue,
        custody: Custody,
        cancel_jobs: bool = False,
    ) -> None:
        """`cancel_jobs`: an interruption ends those of a cluster too, and nobody is asked."""
        self.ledger, self.proposer = ledger, proposer
        self.queue, self.custody, self.display, self.cancel_jobs = queue, custody, queue.display, cancel_jobs
        self.started = ledger.state.started
        baselines = Baselines(study, self.started, custody, self.display)
        self.referee = Referee(study, ledger, queue, custody, self.display, baselines)
        self.tuning, self.confirmation = Tuning(self.referee), Confirmation(self.referee)
        self.front, self.features = Front(self.referee, self.confirmation), FeatureKeeper(self.referee)
        self.stages = RunStages(
            study, ledger, queue, custody, self.display, baselines, analysis.path, self.ask_proposer
        )
        self.done = ""  # why no more runs are proposed
        self.unreachable: LLMError | None = None  # the language model, and why
        self.over = False  # at once: no run can count
        self.described: list[int] = []  # runs that the proposer has nothing more to say of
        self.left_over = False  # the proposer had no more to try, and the budget of runs was not spent
        self.notebook = Notebook(study, analysis, contradicted)
        self.tracker = Tracker(study, ledger, self.display)

    @property
    def state(self) -> State:
        """The study's state, derived from the ledger."""
        return self.ledger.state

    def run(self) -> StudyResult:
        """Carry the study on to its end, or to an interruption."""
        try:
            self.explore()
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
        result = self.result()
        self.end(result.reason)
        return result

    def explore(self) -> None:
        """Advance open runs and propose new ones until the study is done."""
        self.referee.begin()
        self.queue.resume()
        self.stages.refresh()
        if any(run.stage == "done" for run in self.state.runs):
            self.refresh_notes()  # the last driver may have ended before it did
        self.work(self.start_next)
        self.compare_at_end()

    def work(self, start_next: Callable[[], bool]) -> None:
        """Take in what has ended and start what can start, until nothing runs and nothing is left to start.

        Notes take longer than all else that the driver does: they are written once no other job can be started.
        """
        while True:
            asked = None
            try:
                if self.take_in() or self.advance() or (self.queue.has_room and start_next()):
                    continue
            except HoursSpent as spent:
                self.done, start_next = self.done or spent.reason, self.stages.start_job
                continue
            except StudyOver as over:
                self.done, self.over = over.reason, True
                self.end_runs(over.reason)
                return
            except NotYet as error:
                asked = error
            except LLMError as error:
                if error.kind == "replay":
                    raise
                if self.queue.running and not self.unreachable:
                    self.display.say(f"{error}; what runs is taken in before the study stops")
                self.unreachable = asked = error
            if self.queue.poll(self.outlook()):
                continue
            if self.notebook.is_due:
                self.write_notes(whole=False)
                continue
            if not self.queue.running and asked:
                raise asked
            if not self.queue.names:
                return
            self.queue.wait()

    def outlook(self) -> str:
        """Return about how long the study still takes at most, its fresh seeds left out; empty if nothing was timed."""
        state = self.state
        if not state.jobs_timed or self.done:
            return ""
        waiting = {job_names.baseline(*each) for each in self.referee.missing} - state.jobs.keys()
        jobs = len(state.jobs) + len(waiting) + self.started.max_runs - state.runs_begun
        minutes = jobs * state.job_seconds / state.jobs_timed / self.queue.slots / 60
        return f"the study: {jobs} jobs at most, about {minutes:.0f} min, and those that confirm what looks better"

    def take_in(self) -> bool:
        """Record how a job ended; return False if none has, or none whose turn it is."""
        owners = (self.stages, self.tuning, self.referee, self.confirmation, self.front, self.features)
        for name in self.queue.names:
            if (ended := self.queue.ended(name)) and any(owner.take_in(name, ended) for owner in owners):
                return True
        return False

    def advance(self) -> bool:
        """Take a step that needs no job; return False if there is none to take."""
        done = sum(run.stage == "done" for run in self.state.runs)
        if self.stages.step():
            if sum(run.stage == "done" for run in self.state.runs) > done:
                self.refresh_notes()
            return True
        run = self.referee.compare_next()
        if run is not None:
            self.show_comparison(run)
        return run is not None or self.describe_next()

    def start_next(self) -> bool:
        """Start the most urgent job that can start; return False if there is none. Raise HoursSpent, StudyOver.

        The baseline's learning rate is tuned before all else. Then run 0 and run 1 come first, so that the first
        comparison comes early, then what comparisons need, then runs. The sentinels come before run 1 where that could
        not start beside run 0. Last are features, and only beside other jobs, so that no comparison waits for them.
        """
        self.require_sound_study()
        if self.tuning.is_due:
            return self.tuning.start_next()
        if self.stages.start_job():
            return True
        run_0_is_through = self.referee.baseline_counts and self.state.sentinels is None
        if len(self.state.runs) < 2 and not run_0_is_through and self.propose_run():
            return True
        if self.referee.start_next() or self.propose_run():
            return True
        return bool(self.queue.running) and self.features.start_next()

    def propose_run(self) -> bool:
        """Open the next run with a proposal; return False if there is none, or none yet."""
        number = len(self.state.runs)
        if self.done:
            return False
        try:
            self.ledger.budget.require_run()
            self.left_over = True
            rate = self.state.learning_rate
            proposal = self.ask_proposer(number) if number else baseline_proposal(self.started.fixed, rate)
        except HoursSpent:
            raise
        except StudyDone as done:
            self.done = done.reason
            return False
        self.left_over = False
        if proposal:
            self.ledger.append(events.ProposalMade(run=number, proposal=proposal))
            self.stages.refresh()
        return proposal is not None

    def require_sound_study(self) -> None:
        """Raise StudyOver if the baseline failed or the evaluation is broken."""
        baseline = next(iter(self.state.runs), None)
        if baseline and baseline.stage == "done" and baseline.verdict and not baseline.verdict.ok:
            raise StudyOver(f"the baseline failed ({baseline.verdict.name}: {baseline.verdict.evidence})")
        self.referee.require_sound_evaluation()

    def require_same_code(self) -> None:
        """Raise StudyOver if the code that judges runs is not what it was when the driver started."""
        if changed := self.custody.code.changed():
            was = "was" if len(changed) == 1 else "were"
            raise StudyOver(
                f"{', '.join(changed)} {was} changed while the study ran: runs before and after would not compare"
            )

    def ask_proposer(self, run: int) -> Proposal | None:
        """Return the proposer's proposal for a run, recording its remarks on the way; None if it waits for results.

        Raise StudyDone if nothing more is tried, StudyOver if the code that judges runs was changed.
        """
        self.require_same_code()
        self.require_reachable()
        while True:
            answer = self.proposer.propose(self.state, self.referee.observed_direction, run)
            self.custody.note_transcript()
            if answer is None or isinstance(answer, Proposal):
                return answer
            self.record(answer)

    def require_reachable(self) -> None:
        """Raise LLMError if the language model could not be reached a while ago."""
        if self.unreachable:
            raise self.unreachable

    def record(self, remark: events.Remark) -> None:
        """Record and show a proposer's plan, description or refused answer."""
        self.ledger.append(remark)
        self.display.say(remark_line(remark))

    def show_comparison(self, run: int) -> None:
        """Show how a run compares, and have the notes tell it."""
        state, info = self.state.runs[run], self.referee.runs[run].info
        if info and (line := comparison_line(info, self.started.primary_metric)):
            self.display.say(f"run {run}: {'provisional: ' * state.provisional}{line}")
        self.refresh_notes()

    def describe_next(self) -> bool:
        """Have the next run that is through described by the proposer; return False if none is left to describe."""
        for run in self.state.runs[len(self.described) :]:
            if run.stage != "done" or run.awaits_comparison:
                return False
            self.require_reachable()
            before = len(self.ledger.events)
            while remark := self.proposer.describe(self.state, run.number):
                self.record(remark)
            self.custody.note_transcript()
            self.described.append(run.number)
            if len(self.ledger.events) > before:
                self.refresh_notes()
                return True
        return False

    def conclude(self) -> None:
        """Confirm winners, train their front and keep features, unless what judges them has changed; conclude."""
        if not self.custody.code.changed():
            last = (self.confirmation, self.front, self.features)
            self.work(lambda: any(owner.start_next() for owner in last))
        self.ask_for_conclusion()

    def ask_for_conclusion(self) -> None:
        """Record what the proposer concludes; a language model that cannot be reached any more concludes nothing."""
        try:
            while remark := self.proposer.conclude(self.state):
                self.record(remark)
        except LLMError as error:
            if error.kind == "replay":
                raise
            self.display.say(f"the language model draws no conclusion: {error}")
        self.custody.note_transcript()

    def end(self, reason: str) -> None:
        """Record the end of the study."""
        self.ledger.append(events.StudyEnded(why=reason))
        self.write_notes()

    def result(self) -> StudyResult:
        """Return exit code 0 if any run but the baseline counts, else 1."""
        reason, used, most = self.done, self.state.runs_used, self.started.max_runs
        if self.left_over:
            reason = f"{reason} after {used} of at most {most} runs"
        first, *others = [run.verdict for run in self.state.runs] or [None]
        if any(verdict and verdict.ok for verdict in others):
            return StudyResult(reason, int(self.over))
        return StudyResult(f"{reason}; no run but the baseline counts" if first and first.ok else reason, 1)

    def end_runs(self, reason: str) -> None:
        """End the jobs and the runs of a study that is over."""
        self.queue.cancel()
        self.give_up_jobs(Verdict(name="killed", evidence=f"the study ended: {reason}"))
        for run in self.state.open_runs:
            self.stages.give_up(run.number, f"the study ended: {reason}")
        self.write_notes()

    def interrupt(self, reason: str = "") -> StudyResult:
        """Leave the study resumable, with notes that say so. An empty reason means a person did it."""
        try:
            self.ledger.reload()
        except BadFile:  # an experiment had just changed it
            self.ledger.restore()
        if changed := self.custody.restore():
            self.display.say(f"what was interrupted had changed {', '.join(changed)}: put back")
        if not self.queue.executor.jobs_outlive_driver or (not reason and self.wants_jobs_cancelled()):
            self.queue.cancel()
            self.give_up_jobs(Verdict(name="killed", evidence="interrupted while training"))
        self.ledger.append(events.StudyInterrupted(why=reason))
        self.write_notes()
        if reason:
            return StudyResult(f"interrupted: {reason}; agent resume continues", 1)
        return StudyResult("interrupted; agent resume continues", 130)

    def wants_jobs_cancelled(self) -> bool:
        """Return True if the jobs of a cluster are to end with an interruption; a person at a terminal is asked."""
        if self.cancel_jobs or not self.queue.running or not sys.stdin.isatty():
            return self.cancel_jobs
        with self.display.paused():
            return agrees(f"cancel {', '.join(self.queue.running)} on the cluster too?")

    def give_up_jobs(self, verdict: Verdict) -> None:
        """Record that the jobs that had not ended were ended."""
        for run in self.state.runs:
            name = job_names.attempt(run.number, run.attempt)
            if run.stage == "training" and self.queue.ended(name) is None:
                self.stages.lose_attempt(run, verdict)
        for name in self.queue.running:
            if not self.queue.goes_on(name, verdict):
                self.ledger.append(events.JobLost(job=name, why=verdict.evidence))
                self.queue.forget(name)

    def add_hand_run(self, event: events.HandRunAdded) -> StudyResult:
        """Take in a run made by hand, from its evaluation on. A study that had ended ends again after it."""
        reason = self.state.ended
        self.referee.begin()
        self.queue.resume()
        self.ledger.append(event)
        try:
            self.work(self.start_comparison)
            self.compare_at_end()
            if reason:
                self.conclude()
        except KeyboardInterrupt:
            return self.interrupt()
        except StudyPaused as paused:
            return self.interrupt(paused.reason)
        if reason:
            self.end(reason)
        else:
            self.write_notes()
        return StudyResult(f"run {event.run} was added", 0)

    def start_comparison(self) -> bool:
        """Start what the comparison of a run by hand needs; return False if nothing is missing that can start."""
        return self.stages.start_job() or (self.referee.baseline_counts and self.referee.start_next())

    def compare_at_end(self) -> None:
        """Make the comparisons final that wait for what there will not be."""
        while (run := self.referee.compare_next(at_end=True)) is not None:
            self.show_comparison(run)
        while self.describe_next():
            pass

    def refresh_notes(self) -> None:
        """Have the notes written when no job can be started, or at once if somebody is asked next."""
        self.notebook.refresh()
        if self.started.approve or self.started.language_model:
            self.write_notes()

    def write_notes(self, whole: bool = True) -> None:
        """Write notes and figures, log what the tracker lacks, and record that they are up to date. Unless it is to be
        the `whole`, figures may be left for later."""
        state = self.state
        skipped = self.proposer.skipped(state, self.referee.observed_direction)
        self.notebook.write(state, skipped, whole)
        self.tracker.log()
        self.ledger.append(events.NotesWritten(after_run=len(state.runs) - 1))
