"""One run, stage by stage: checked, reserved, trained, evaluated, settled. Each step ends with an event."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.comparison.baselines import Baselines
from agent.comparison.judgement import judgements
from agent.display.approve import refusal
from agent.display.formatting import run_line
from agent.display.live import Display
from agent.lab import results
from agent.lab.evaluation.requests import Score
from agent.lab.files import remove, write_atomically
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.report.run_section import run_texts
from agent.running import preflight
from agent.running.job_queue import Ended, JobQueue
from agent.running.jobs import Job, Outcome, Training
from agent.running.run_files import collect_run_files
from agent.running.taking_in import move_in, take_in
from agent.running.watchdogs import require_disk
from agent.study import attempts, digests, events, first_steps, job_names
from agent.study.agreement import departure
from agent.study.custody import Custody
from agent.study.ledger import Ledger
from agent.study.outcomes import RunFailed, StudyDone
from agent.study.records import Proposal
from agent.study.run_state import RunState
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import Study

DRIVER_ENDED = Verdict(name="killed", evidence="the driver ended while training")


class RunStages:
    """The steps that bring the runs of a study from one stage to the next.

    Any number of runs may be trained at once. What they led to is taken in, and settled, in the order of the runs, so
    that the story of a study does not depend on which of them was faster.
    """

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        queue: JobQueue,
        custody: Custody,
        display: Display,
        baselines: Baselines,
        analysis: Path | None,
        ask_proposer: Callable[[int], Proposal | None],
    ) -> None:
        """`analysis` is the idea's analysis.py; `ask_proposer` returns a proposal for a run, or None to wait,
        and raises StudyDone if there is nothing left to try."""
        self.study, self.ledger, self.queue, self.custody, self.display = study, ledger, queue, custody, display
        self.baselines, self.analysis, self.ask_proposer = baselines, analysis, ask_proposer
        self.started = ledger.state.started

    @property
    def state(self) -> State:
        """The study's state, derived from the ledger."""
        return self.ledger.state

    def refresh(self) -> None:
        """Show the runs as they stand."""
        self.display.table(lambda: self.study.load_runs(self.state))

    def step(self) -> bool:
        """Take one step that needs no job; return False if there is none to take."""
        for run in self.state.open_runs:
            if run.stage == "proposed":
                self.check(run.number)
                return True
            if run.stage == "training" and job_names.attempt(run.number, run.attempt) not in self.state.jobs:
                self.cut_short(run.number, DRIVER_ENDED)  # the driver was killed before it had submitted the job
                return True
        first = next(iter(self.state.open_runs), None)
        if first and first.stage == "judged":
            return self.settle(first.number)
        return False

    def start_job(self) -> bool:
        """Submit the next job that a run waits for; return False if no run waits for one, or the queue is full."""
        for run in self.state.open_runs:
            if run.stage == "reserved":
                return self.attempt(run.number)
            if run.stage == "evaluating" and job_names.evaluation(run.number) not in self.state.jobs:
                return self.start_evaluation(run.number)
        return False

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record how the job of a run ended; return False if it is none of a run whose turn it is."""
        first = next(iter(self.state.open_runs), None)
        if first and first.stage == "training" and name == job_names.attempt(first.number, first.attempt):
            self.take_in_attempt(first, ended)
        elif first and first.stage == "evaluating" and name == job_names.evaluation(first.number):
            self.take_in_evaluation(first, ended)
        else:
            return False
        self.queue.forget(name)
        self.refresh()
        return True

    def check(self, run: int) -> None:
        """Commit the proposal to the study's repository and check it; reserve the run if nothing is wrong with it."""
        state = self.state.runs[run]
        self.study.archive_attempt(run, state.attempt)
        script, proposal = self.study.directory / "experiment.py", state.proposal
        remove(script)
        write_atomically(script, proposal.source)
        label = f"run {run}" + (f", attempt {state.attempt + 1}" if state.attempt else "")
        self.custody.commit(f"{label}, proposal: {proposal.title}\n\n{proposal.description}\n\n{proposal.why}")
        self.display.say(f"{label}: {proposal.title}")
        start = time.monotonic()
        try:
            self.preflight(run)
        except RunFailed as failure:
            directory = self.study.run_dir(run)
            directory.mkdir(exist_ok=True)
            write_atomically(directory / "experiment.py", proposal.source)
            self.fail_preflight(run, state.attempt + 1, failure.verdict, time.monotonic() - start)
        else:
            self.ledger.append(events.RunReserved(run=run))
        self.refresh()

    def fail_preflight(self, run: int, attempt: int, verdict: Verdict, seconds: float) -> None:
        """Record why an attempt was not trained to its end."""
        directory = self.study.run_dir(run)
        results.write(directory, FinalInfo(verdict=verdict))
        recorded = digests.of_run(directory)
        self.ledger.append(
            events.PreflightFailed(run=run, attempt=attempt, verdict=verdict, seconds=seconds, digests=recorded)
        )

    def preflight(self, run: int) -> None:
        """Raise RunFailed if the code is known to be wrong, or a person refuses it."""
        proposal = self.state.runs[run].proposal
        if proposal.refused:
            raise RunFailed(proposal.refused)
        preflight.check(proposal.source, self.started.fixed, self.earlier_sources(run))
        if run > 0 and self.started.approve:
            self.require_approval(run)

    def require_approval(self, run: int) -> None:
        """Show the change to a person. Raise RunFailed if refused, UserError if there is no terminal to ask on."""
        proposal, runs = self.state.runs[run].proposal, self.study.load_runs(self.state)
        written = run_texts(runs[run], self.state, runs, judgements(runs, self.state))
        predictions = ", ".join(f"{METRICS[name].title} {way}" for name, way in proposal.predictions.items())
        texts = {"Description": written["description"], "Reasons": written["why"], "Predictions": predictions}
        before = self.state.runs[proposal.start].proposal.source
        with self.display.paused():
            reason = refusal(before, proposal.source, f"run {run}: {written['title']}", texts)
        if reason is not None:
            raise RunFailed(attempts.refusal(reason))

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

    def attempt(self, run: int) -> bool:
        """Start an attempt at a run: first a few steps, then the whole training, then its evaluation.

        Return False if the queue is full. Raise DiskFull if there is no room for it.
        """
        require_disk(self.study.directory)
        state, budget, seed = self.state.runs[run], self.ledger.budget, self.started.fixed.seed
        attempt = state.attempt + 1
        self.study.archive_attempt(run, state.attempt)
        self.ledger.append(events.AttemptStarted(run=run, attempt=attempt))
        self.refresh()
        if run == 0 and self.baselines.cached_run(self.baselines.k, seed):
            self.copy_baseline()
            return True
        training = Training(
            source=state.proposal.source,
            directory=self.study.run_dir(run).name,
            seed=seed,
            timeout=budget.training_timeout,
            smoke_timeout=budget.smoke_timeout,
            start_timeout=budget.start_timeout,
            baseline_smoke=self.state.runs[0].smoke,
        )
        return self.queue.submit(
            job_names.attempt(run, attempt), self.job(f"run {run}", training, self.study.run_dir(run))
        )

    def job(self, label: str, training: Training | None, run_dir: Path) -> Job:
        """Return a job that scores a run, once it is trained."""
        request = Score(run_dir=run_dir, evals=self.started.evals, analysis=self.analysis)
        return Job(label=label, training=training, request=request, timeout=self.ledger.budget.evaluation_timeout)

    def copy_baseline(self) -> None:
        """Take the training of run 0 from the cache: the same but for SEED, which the lab sets."""
        k, seed, directory = self.baselines.k, self.started.fixed.seed, self.study.run_dir(0)
        self.baselines.copy_from_cache(k, seed, directory)
        write_atomically(directory / "experiment.py", self.state.runs[0].proposal.source)
        work, smoke = self.baselines.cached_work(k, seed), self.baselines.cached_smoke(k, seed)
        seconds = results.read_metrics(directory)[-1].seconds
        copied = Outcome(run_dir=directory, training_seconds=seconds, work=work, smoke=smoke)
        self.end_attempt(self.state.runs[0], None, copied)

    def start_evaluation(self, run: int) -> bool:
        """Have a checkpoint scored whose training is not part of a job; return False if the queue is full."""
        directory = self.study.run_dir(run)
        try:
            self.custody.require_untouched()
            self.custody.require_present(directory)
        except RunFailed as failure:
            self.judge(self.state.runs[run], FinalInfo(verdict=failure.verdict), 0.0)
            return True
        return self.queue.submit(job_names.evaluation(run), self.job(f"run {run}", None, directory))

    def take_in_attempt(self, run: RunState, ended: Ended) -> None:
        """Record how the job of an attempt ended. Its results are judged if it was trained to its end."""
        if isinstance(ended, Verdict):
            self.lose_attempt(run, ended)
            return
        for remark in ended.remarks:
            self.display.say(f"run {run.number}: {remark}")
        info = take_in(ended, self.study.run_dir(run.number), self.custody)
        if ended.preflight:
            verdict = info.verdict
            if verdict.name == "tampered":
                verdict = verdict.model_copy(update={"evidence": f"in the first steps: {verdict.evidence}"})
            self.fail_preflight(run.number, run.attempt, verdict, ended.training_seconds)
            return
        trained = ended.training is None and info.verdict.name != "tampered"
        self.end_attempt(run, None if trained else info.verdict, ended)
        if trained:
            self.judge(run, info, ended.evaluation_seconds)

    def end_attempt(self, run: RunState, verdict: Verdict | None, ended: Outcome) -> None:
        """Record the end of a training, with a verdict if it has no results to evaluate."""
        recorded = digests.of_run(self.study.run_dir(run.number))
        self.ledger.append(
            events.AttemptEnded(
                run=run.number,
                attempt=run.attempt,
                verdict=verdict,
                seconds=ended.training_seconds,
                work=ended.work,
                smoke=ended.smoke,
                resumes=ended.resumes,
                digests=recorded,
            )
        )

    def lose_attempt(self, run: RunState, verdict: Verdict) -> None:
        """Record that the job of an attempt left no outcome: its own fault, or that of what it ran on.

        A training that had come to its end is kept, and evaluated anew; one that had saved its state goes on from it,
        as the same attempt.
        """
        name = job_names.attempt(run.number, run.attempt)
        if trained := self.queue.trained(name):
            directory = self.study.run_dir(run.number)
            if tampered := move_in(trained, directory, self.custody):
                results.write(directory, FinalInfo(verdict=tampered))
            self.end_attempt(run, tampered, trained)
            self.queue.forget(name)
        elif self.queue.goes_on(name, verdict):
            return
        elif verdict.name == "killed":
            self.cut_short(run.number, verdict)
        else:
            results.write(self.keep_what_is_left(run), FinalInfo(verdict=verdict))
            self.end_attempt(run, verdict, Outcome(run_dir=self.study.run_dir(run.number)))

    def cut_short(self, run: int, verdict: Verdict) -> None:
        """Record that an attempt was cut short; what it left is kept."""
        state = self.state.runs[run]
        directory = self.keep_what_is_left(state)
        results.write(directory, FinalInfo(verdict=verdict))
        recorded = digests.of_run(directory)
        self.ledger.append(events.AttemptCutShort(run=run, attempt=state.attempt, verdict=verdict, digests=recorded))
        self.queue.forget(job_names.attempt(run, state.attempt))

    def give_up(self, run: int, reason: str) -> None:
        """Commit a run of a study that is over: with its verdict, or that it did not come to its end."""
        state, directory = self.state.runs[run], self.study.run_dir(run)
        verdict = state.verdict if state.stage == "judged" else None
        if verdict is None:
            verdict = Verdict(name="killed", evidence=reason)
            directory.mkdir(exist_ok=True)
            write_atomically(directory / "experiment.py", state.proposal.source)
            results.write(directory, FinalInfo(verdict=verdict))
        self.custody.commit(f"run {run}, result: {verdict.name}\n\n{verdict.evidence}")
        self.ledger.append(events.RunCommitted(run=run, verdict=verdict, digests=digests.of_run(directory)))
        self.refresh()

    def keep_what_is_left(self, run: RunState) -> Path:
        """Move what a job that left no outcome has written to the directory of its run, and return that."""
        directory, source = self.study.run_dir(run.number), run.proposal.source
        if left := self.queue.newest_try(job_names.attempt(run.number, run.attempt)):
            collect_run_files(left / directory.name, source)
            remove(directory)
            (left / directory.name).rename(directory)
        else:
            collect_run_files(directory, source)
        return directory

    def take_in_evaluation(self, run: RunState, ended: Ended) -> None:
        """Record the results of an evaluation alone; one that left no outcome is started again."""
        if isinstance(ended, Verdict):
            self.queue.lose(job_names.evaluation(run.number), ended)
            return
        info = take_in(ended, self.study.run_dir(run.number), self.custody)
        self.judge(run, info, ended.evaluation_seconds)

    def judge(self, run: RunState, info: FinalInfo, seconds: float) -> None:
        """Judge whether a run that was scored is comparable and differs from earlier ones, and record its results."""
        run, directory = self.state.runs[run.number], self.study.run_dir(run.number)
        info.work = run.work
        self.compare_first_steps(run, info)
        if info.verdict.ok and (difference := self.departure(directory, info)):
            info.verdict = Verdict(name="not_comparable", evidence=difference, warnings=info.verdict.warnings)
        if info.verdict.ok and (twin := self.same_checkpoint(run.number, info)):
            info.verdict = Verdict(name="no_effect", evidence=f"its checkpoint equals that of run {twin.number}")
        results.write(directory, info)
        self.ledger.append(
            events.EvaluationEnded(
                run=run.number,
                attempt=run.attempt,
                verdict=info.verdict,
                seconds=seconds,
                digests=digests.of_run(directory),
            )
        )

    def compare_first_steps(self, run: RunState, info: FinalInfo) -> None:
        """Note in a run's results what its first steps led to, with a warning if that is what the baseline's did."""
        if run.smoke:
            info.environment[first_steps.CHECKPOINT] = run.smoke
        tokens, baselines = self.started.fixed.tokens, self.state.runs[0].smoke
        if run.number and (warning := first_steps.like_the_baselines(run.smoke, baselines, tokens)):
            info.verdict = info.verdict.model_copy(update={"warnings": [*info.verdict.warnings, warning]})

    def departure(self, directory: Path, info: FinalInfo) -> str:
        """Return how a run departed from what was agreed, or an empty string."""
        return departure(self.started.fixed, info, results.rows_stepped(directory), self.state.runs[0].work)

    def same_checkpoint(self, run: int, info: FinalInfo) -> Run | None:
        """Return an earlier run whose checkpoint has the same content, or None."""
        content = info.environment["checkpoint"]
        for other in self.study.load_runs(self.state):
            if other.info and other.number < run and other.info.environment.get("checkpoint") == content:
                return other
        return None

    def settle(self, run: int) -> bool:
        """Commit the results of a run, or try again if another proposal may mend it; return False if that must wait."""
        directory, state, proposal = self.study.run_dir(run), self.state.runs[run], None
        if self.may_be_mended(state):
            with suppress(StudyDone):
                if (proposal := self.ask_proposer(run)) is None:
                    return False
        label = f"run {run}, attempt {state.attempt}" if proposal else f"run {run}"
        info = results.read(directory)
        self.custody.commit(f"{label}, result: {info.verdict.name}\n\n{info.verdict.evidence}")
        self.display.say(f"{label}: {run_line(info)}")
        if proposal:
            self.ledger.append(events.ProposalMade(run=run, proposal=proposal))
            return True
        if run == 0 and info.verdict.ok:
            self.baselines.save_to_cache(directory, self.baselines.k, self.started.fixed.seed)
        self.ledger.append(events.RunCommitted(run=run, verdict=info.verdict, digests=digests.of_run(directory)))
        self.refresh()
        return True

    def may_be_mended(self, failed: RunState) -> bool:
        """Return True if another proposal may save a run, and the hours allow it."""
        assert failed.verdict
        if failed.number == 0 or failed.by_hand:
            return False
        if not attempts.allows_another_proposal(failed.verdict, failed.attempt):
            return False
        return self.ledger.budget.allows_hours
