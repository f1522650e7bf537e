"""python start.py agent.running.slot SETUP FOLDER [TRY]: carry out jobs, one after another, under the guards.

With TRY, FOLDER is the directory of one job, after which it ends: so it runs on a cluster. Without, FOLDER is for the
logs of a slot of the driver's machine: it reads the directories of jobs from its standard input, a line each, keeps the
evaluator and the server of activations between them, and ends when the driver does. A job's files are in try_TRY of its
directory; outcome.json is written when it is through, and progress on the way.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.display.formatting import training_progress
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.defaults import SMOKE_TOKENS, SOCKET_VARIABLE
from agent.lab.errors import UserError
from agent.lab.evaluation.requests import AnyRequest, Score
from agent.lab.files import MIB, BadFile, empty_folder, remove
from agent.lab.machine import memory_limit
from agent.lab.results import Work
from agent.lab.verdicts import Verdict, judge_metrics
from agent.lab.visible import one_line
from agent.running import kept_state, process, views
from agent.running.activation_server import ActivationServer, ServedTraining, machine
from agent.running.evaluator import INTERRUPTED, Evaluator
from agent.running.jobs import JOB, OUTCOME, PROGRESS, SUBMISSION, TRAINED, Job, Outcome, Setup, Training, noted
from agent.running.kept_state import StateKeeper
from agent.running.lab_processes import lab_settings
from agent.running.run_files import collect_run_files
from agent.running.sandbox import Sandbox, settle
from agent.running.training_process import TrainingProcess
from agent.running.watchdogs import (
    SHARED_MEMORY,
    START_SECONDS,
    Disk,
    Files,
    FirstSteps,
    LogCap,
    Memory,
    Processes,
    SharedMemory,
    Stall,
    Watchdog,
)
from agent.study import digests
from agent.study.agreement import different_settings
from agent.study.artefacts import EvaluatorFiles
from agent.study.first_steps import goes_on_otherwise, like_the_baselines
from agent.study.outcomes import EvaluationStopped, RunFailed

BAD_STATE = 2  # exit code of a training that cannot go on from its saved state
REMARKABLE_BYTES = 64 * MIB  # in the machine's shared memory, where a run that is not confined may leave them
PROGRESS_SECONDS = 0.5  # at least, between two writes of the file that the driver shows


class Slot:
    """The place of one job at a time: a training beside an evaluator that waits for requests."""

    def __init__(self, setup: Setup, sandbox: Sandbox, logs: Path, watch: Callable[[], None] = lambda: None) -> None:
        """`watch` is called while a job is carried out, and raises if nobody wants it any more."""
        self.setup, self.sandbox, self.logs, self.watch = setup, sandbox, logs, watch
        self.settings = lab_settings(setup.fixed, setup.device)
        self._activations = ActivationServer(
            setup.fixed, self.settings, logs / "stream.log", self.sandbox, setup.sealed
        )
        self._evaluator = Evaluator(setup, self.settings, sandbox, logs / "evaluator.log")
        self._progress: Path | None = None  # of the job that is carried out
        self._shown, self._shown_at = "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._evaluator.end()
        self._activations.end()

    def carry_out(self, directory: Path, number: int | None = None) -> None:
        """Carry out the job of a directory, and leave its outcome there. `number` is that of the try.

        A training that was cut short in an earlier try goes on from what it had saved there.
        """
        job, submission = Job.read(directory / JOB), noted(directory / SUBMISSION)
        self._progress = directory / PROGRESS
        attempt = empty_folder(_new_try(directory) if number is None else directory / f"try_{number}")
        outcome = self._outcome(job, attempt)
        if noted(directory / SUBMISSION) == submission:  # else a node that was given up has outlived it
            outcome.write(directory / OUTCOME)

    def _outcome(self, job: Job, attempt: Path) -> Outcome:
        training, request, label = job.training, job.request, job.label
        if training:
            run_dir = attempt / training.directory
        else:
            assert request
            run_dir = request.run_dir
        found, remarks = Outcome(run_dir=run_dir), []
        if training:
            found = self._train_whole(training, attempt, found, label, remarks)
            if found.failure is None:
                recorded = {"digests": digests.of_files(run_dir, digests.RUN_FILES)}
                found.model_copy(update=recorded).write(attempt.with_name(TRAINED))
        start = time.monotonic()
        if request and found.failure is None:
            try:
                self.evaluate(request.model_copy(update={"run_dir": run_dir}), job.label, job.timeout)
            except RunFailed as failure:
                stopped = isinstance(failure, EvaluationStopped)
                found = found.model_copy(update={"evaluation": failure.verdict, "stopped": stopped})
        seconds = {"evaluation_seconds": time.monotonic() - start, "remarks": remarks}
        return found.model_copy(update=seconds | {"digests": digests.of_files(run_dir, digests.RUN_FILES)})

    def _train_whole(
        self, training: Training, attempt: Path, found: Outcome, label: str, remarks: list[str]
    ) -> Outcome:
        """Train a run, after a few steps of it or from the state that an earlier try has saved; return what came of it
        in what was `found`."""
        start, before = time.monotonic(), kept_state.usable(attempt.parent, training)
        if before:
            found = found.model_copy(update={"smoke": before[1].smoke, "resumes": True})
        else:
            found = found.model_copy(update={"resumes": training.resumes})
        if training.smoke_timeout and not before:
            found = self._smoke_test(training, found, label, remarks)
            if found.preflight:
                return found.model_copy(update={"training_seconds": time.monotonic() - start})
        if warning := like_the_baselines(found.smoke, training.baseline_smoke, self.setup.fixed.tokens):
            label = f"{label} ({warning})"
        smoke_seconds, keeper = time.monotonic() - start, StateKeeper(attempt, training, before, found.smoke)
        try:
            work = self.train(TrainingProcess(training, found.run_dir, label, keeper, remarks, saves=found.resumes))
            update: dict[str, Any] = {"work": work.model_copy(update={"smoke_seconds": round(smoke_seconds, 2)})}
        except RunFailed as failure:
            update = {"training": failure.verdict}
        keeper.discard()
        return found.model_copy(update=update | {"training_seconds": keeper.seconds})

    def _smoke_test(self, training: Training, found: Outcome, label: str, remarks: list[str]) -> Outcome:
        """Train a few steps, export, load and score a slice; then cut them short and have them go on. Return what was
        `found` with the hash of the checkpoint, or with what went wrong: then the trial is left as the run's."""
        trial, states = found.run_dir.with_name("smoke"), found.run_dir.with_name("smoke_state")
        keeper = StateKeeper(empty_folder(states), training)
        steps = TrainingProcess(training, trial, f"{label}, smoke test", keeper, remarks, smoke=True)
        try:
            info = self.first_steps(steps)
        except RunFailed as failure:
            remove(found.run_dir)  # what the experiment may have put under the run's name
            trial.rename(found.run_dir)
            evidence = f"in the first steps: {failure.verdict.evidence}"
            return found.model_copy(update={"preflight": failure.verdict.model_copy(update={"evidence": evidence})})
        if why_not := self._goes_on_otherwise(steps):
            remarks.append(f"cut short, it would start over: {why_not}")
        remove(trial)
        return found.model_copy(update={"smoke": info.environment.get("checkpoint", ""), "resumes": not why_not})

    def first_steps(self, steps: TrainingProcess, analysis: Path | None = None) -> results.FinalInfo:
        """Train a few steps, and return the scores on a slice of text, with the figures of an `analysis`. Raise
        RunFailed."""
        self.train(steps)
        loading = 0.0 if self._evaluator.is_started else START_SECONDS
        request = Score(run_dir=steps.run_dir, slice=True, analysis=analysis)
        self.evaluate(request, steps.label, (steps.training.smoke_timeout or 0.0) + loading)
        info = results.read(steps.run_dir)
        if not info.verdict.ok:
            raise RunFailed(info.verdict)
        if difference := different_settings(self.setup.fixed, info.training):
            raise RunFailed(Verdict(name="preflight", evidence=difference))
        return info

    def _goes_on_otherwise(self, steps: TrainingProcess) -> str:
        """Return why the first steps, gone on with from the state that was saved half-way, differ from those that were
        not cut short; "" if they do not."""
        half, again = steps.keeper.taken(), steps.run_dir.with_name("smoke_again")
        if half is None:
            return "it saved no state (guard.resumes declares what changes)"
        keeper = StateKeeper(steps.keeper.folder, steps.training, half)
        try:
            self.train(replace(steps, run_dir=again, keeper=keeper))
            return goes_on_otherwise(steps.run_dir, again, self.setup.exact)
        except (RunFailed, BadFile) as failure:
            return failure.verdict.evidence if isinstance(failure, RunFailed) else str(failure)
        finally:
            remove(again)
            steps.keeper.discard()

    def train(self, this: TrainingProcess) -> Work:
        """Carry out a training, and return what it read and used. Raise RunFailed unless it trained to its end."""
        keeper, run_dir, fixed = this.keeper, this.run_dir, this.fixed(self.setup.fixed)
        shared_memory = SharedMemory(memory_limit())
        total = min(fixed.tokens, SMOKE_TOKENS) if this.smoke else fixed.tokens
        this.begin()
        with self._watched_cache(this.remarks) as changed, self._activations.training(total, keeper.skip) as served:
            ended = self._run(this, fixed, served, shared_memory)
            keeper.take(run_dir, served.saved_rows(), ended.cpu_seconds)
            rows, damage = served.report()
        if self.sandbox.kind == "none" and shared_memory.left > REMARKABLE_BYTES:
            this.remarks.append(f"{shared_memory.left / MIB:.0f} MiB more lie in {SHARED_MEMORY} than before it")
        tampered = collect_run_files(run_dir, this.training.source) or (changed[0] if changed else None)
        if this.saves and keeper.before and ended.exit_code == BAD_STATE:
            this.remarks.append("its saved state did not fit: it started over")
            keeper.discard()
            return self.train(replace(this, keeper=StateKeeper(keeper.folder, this.training, smoke=keeper.smoke)))
        if tampered:
            self._evaluator.end()  # it may have read what was changed
        verdict = tampered or self._judge(this, fixed) or process.exit_verdict(ended, run_dir / "stderr.log")
        if verdict := verdict or damage:
            raise RunFailed(self._shortened(verdict, run_dir.parent))
        used = ended.cpu_seconds + (keeper.before.cpu_seconds if keeper.before else 0.0)
        return Work(rows=rows, cpu_seconds=round(used, 2), machine=machine(self.setup.fixed.threads))

    def _run(
        self, this: TrainingProcess, fixed: Fixed, served: ServedTraining, shared_memory: SharedMemory
    ) -> process.ProcessResult:
        """Run the experiment in its view, under the watchdogs, and keep the states that it saves."""
        metrics, stdout, stderr = this.run_dir / "metrics.jsonl", *this.logs
        timeout, watchdogs = this.training.timeout - this.keeper.seconds, []
        if this.smoke:
            timeout, seconds = None, this.training.smoke_timeout or 0.0
            watchdogs = [FirstSteps(metrics, seconds, this.training.start_timeout)]
        settings = this.settings(fixed) | {SOCKET_VARIABLE: str(served.descriptor)}
        env = process.child_environment(self.settings | settings)
        return process.run(
            [*process.START, this.script.name, f"--out_dir={this.run_dir.name}"],
            cwd=this.script.parent,
            env=env,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            watchdogs=[
                *watchdogs,
                lambda: self._judge(this, fixed),
                *(Stall([metrics, stdout, stderr]), Processes(), Files(self.setup.study), shared_memory),
                *self._watchdogs(stdout, stderr),
            ],
            observer=lambda cpu_seconds: this.keeper.take(this.run_dir, served.saved_rows(), cpu_seconds),
            pass_fds=[served.descriptor],
            sandbox=self.sandbox,
            view=views.for_training(this.script, this.run_dir, env),
        )

    @contextmanager
    def _watched_cache(self, remarks: list[str]) -> Iterator[list[Verdict]]:
        """Have files removed that an experiment, if it is not confined, changes in the evaluator's folder or adds to
        it. Yield a list that then holds a verdict if it changed any; those that were added are remarked on."""
        found: list[Verdict] = []
        if self.sandbox.kind != "none":
            yield found
            return
        files = EvaluatorFiles(self.setup.artefacts)
        before = files.digests()
        try:
            yield found
        finally:
            changed, came = files.discard_what_came(before)
            remarks += [f"{name} appeared in the cache meanwhile: made again when it is needed" for name in came]
            if changed:
                names = ", ".join(f"{name} in the cache" for name in changed)
                evidence = f"the experiment changed {names}; put back, and what lies in the cache made again"
                found.append(Verdict(name="tampered", evidence=evidence))

    def evaluate(self, request: AnyRequest, label: str, timeout: float) -> None:
        """Have the evaluator write the file that the request names. Raise RunFailed if it is not there in the end."""

        def show_progress() -> None:
            self._show(f"{label}: {''.join(process.last_lines(self._evaluator.log, 1)) or 'evaluating'}")

        try:
            self._evaluator.answer(request, timeout, [show_progress, *self._watchdogs(self._evaluator.log)])
        except RunFailed as failure:
            raise type(failure)(self._shortened(failure.verdict, request.run_dir.parent)) from None

    def _shortened(self, verdict: Verdict, folder: Path) -> Verdict:
        """Write paths as seen from the study, and those of a job as if it were there."""
        evidence = verdict.evidence.replace(f"{folder}{os.sep}", "").replace(f"{self.setup.study}{os.sep}", "")
        return verdict.model_copy(update={"evidence": evidence})

    def _judge(self, this: TrainingProcess, fixed: Fixed) -> Verdict | None:
        """Judge the training history so far, and show how far it has come."""
        try:
            rows = results.read_metrics(this.run_dir)
        except BadFile as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self._show(training_progress(this.label, rows, fixed.tokens))
        return judge_metrics(rows)

    def _watchdogs(self, *logs: Path) -> list[Watchdog]:
        return [self.watch, LogCap(*logs), Memory(memory_limit()), Disk(self.setup.study)]

    def _show(self, text: str) -> None:
        """Leave a line for the driver to show, of a job."""
        if self._progress and text != self._shown and time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
            self._shown, self._shown_at = text, time.monotonic()
            partial = self._progress.with_name("progress.partial")
            partial.write_text(text)
            partial.replace(self._progress)


def _new_try(job: Path) -> Path:
    """Return the folder of the next try at a job on this machine."""
    return next(path for number in count() if not os.path.lexists(path := job / f"try_{number}"))


def settle_here(setup: Setup) -> Sandbox:
    """Return the confinement of a study's jobs on this machine. Raise UserError if it is weaker than the study's."""
    sandbox = settle("off" if setup.kind == "none" else "required")
    if sandbox.is_weaker(setup.kind):
        raise UserError(f"the study is confined by {setup.kind}, and here runs are {sandbox.description}")
    return sandbox


def end_with_driver() -> None:
    """Raise KeyboardInterrupt if the driver, at the other end of the standard input, has ended."""
    if select.select([sys.stdin], [], [], 0)[0]:
        with socket.socket(fileno=os.dup(sys.stdin.fileno())) as driver:
            if not driver.recv(1, socket.MSG_PEEK):
                raise KeyboardInterrupt


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt, so that what was started is ended."""
    raise KeyboardInterrupt


def main() -> None:
    file, *one = sys.argv[1:]
    signal.signal(signal.SIGTERM, interrupt)
    try:
        setup = Setup.read(Path(file))
        with Slot(setup, settle_here(setup), Path(one[0]), (lambda: None) if one[1:] else end_with_driver) as slot:
            if one[1:]:
                slot.carry_out(Path(one[0]), int(one[1]))
            else:
                for line in sys.stdin:
                    slot.carry_out(Path(line.rstrip("\n")))
    except UserError as error:
        sys.exit(f"error: {one_line(str(error))}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
