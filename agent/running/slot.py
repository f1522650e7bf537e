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
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.display.formatting import training_progress
from agent.lab import results
from agent.lab.defaults import SMOKE_TOKENS, SOCKET_VARIABLE
from agent.lab.errors import UserError
from agent.lab.evaluation.requests import AnyRequest, Score
from agent.lab.files import MIB, BadFile, empty_folder, remove, remove_unless_plain, write_atomically
from agent.lab.machine import memory_limit
from agent.lab.results import Work
from agent.lab.verdicts import Verdict, judge_metrics
from agent.lab.visible import one_line
from agent.running import process, views
from agent.running.activation_server import ActivationServer, machine
from agent.running.jobs import JOB, OUTCOME, PROGRESS, SUBMISSION, TRAINED, Job, Outcome, Setup, Training, noted
from agent.running.lab_processes import lab_settings
from agent.running.run_files import collect_run_files, log_path
from agent.running.sandbox import Sandbox, settle
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
from agent.study.first_steps import like_the_baselines
from agent.study.outcomes import EvaluationStopped, RunFailed

EVALUATE = (*process.START, "agent.lab.evaluation", "--serve")
INTERRUPTED = 130
NOT_ITS_FAULT = (2, INTERRUPTED)  # exit codes of the lab's processes: the user's mistake, and interrupted
REMARKABLE_BYTES = 64 * MIB  # in the machine's shared memory, where a run that is not confined may leave them
PROGRESS_SECONDS = 0.5  # at least, between two writes of the file that the driver shows


class Slot:
    """The place of one job at a time: a training beside an evaluator that waits for requests."""

    def __init__(self, setup: Setup, sandbox: Sandbox, logs: Path, watch: Callable[[], None] = lambda: None) -> None:
        """`watch` is called while a job is carried out, and raises if nobody wants it any more."""
        self.setup, self.sandbox, self.logs, self.watch = setup, sandbox, logs, watch
        self.settings = lab_settings(setup.fixed, setup.device)
        self._activations = ActivationServer(setup.fixed, self.settings, logs / "stream.log", self.sandbox)
        self._evaluator: process.Child | None = None
        self._progress, self._shown, self._shown_at = Path(os.devnull), "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_evaluator()
        self._activations.end()

    def carry_out(self, directory: Path, number: int) -> None:
        """Carry out the job of a directory, and leave its outcome there."""
        job, submission = Job.read(directory / JOB), noted(directory / SUBMISSION)
        self._progress = directory / PROGRESS
        attempt = empty_folder(directory / f"try_{number}")
        outcome = self._outcome(job, attempt)
        if noted(directory / SUBMISSION) == submission:  # else a node that was given up has outlived it
            outcome.write(directory / OUTCOME)

    def _outcome(self, job: Job, attempt: Path) -> Outcome:
        training, label = job.training, job.label
        run_dir = attempt / training.directory if training else job.request.run_dir
        found, remarks, start = Outcome(run_dir=run_dir), [], time.monotonic()
        if training:
            script = attempt / "experiment.py"
            tried = self._smoke_test(training, script, label, remarks) if training.smoke_timeout else ""
            if isinstance(tried, Verdict):
                found = found.model_copy(update={"preflight": tried})
            else:
                smoke_seconds, start = time.monotonic() - start, time.monotonic()
                found = found.model_copy(update={"smoke": tried})
                if warning := like_the_baselines(tried, training.baseline_smoke, self.setup.fixed.tokens):
                    label = f"{label} ({warning})"
                try:
                    work = self.train(training, script, run_dir, label, training.timeout, remarks)
                    work = work.model_copy(update={"smoke_seconds": round(smoke_seconds, 2)})
                    found = found.model_copy(update={"work": work})
                except RunFailed as failure:
                    found = found.model_copy(update={"training": failure.verdict})
            found = found.model_copy(update={"training_seconds": time.monotonic() - start})
            if found.failure is None:
                recorded = {"digests": digests.of_files(run_dir, digests.RUN_FILES)}
                found.model_copy(update=recorded).write(attempt.with_name(TRAINED))
        start = time.monotonic()
        if found.failure is None:
            try:
                self.evaluate(job.request.model_copy(update={"run_dir": run_dir}), job.label, job.timeout)
            except RunFailed as failure:
                stopped = isinstance(failure, EvaluationStopped)
                found = found.model_copy(update={"evaluation": failure.verdict, "stopped": stopped})
        seconds = {"evaluation_seconds": time.monotonic() - start, "remarks": remarks}
        return found.model_copy(update=seconds | {"digests": digests.of_files(run_dir, digests.RUN_FILES)})

    def _smoke_test(self, training: Training, script: Path, label: str, remarks: list[str]) -> Verdict | str:
        """Train a few steps, export, load and score a slice. Return the hash of the checkpoint, or what went wrong,
        leaving the trial as the run's."""
        label, timeout, trial = f"{label}, smoke test", training.smoke_timeout or 0.0, script.with_name("smoke")
        content = ""
        try:
            self.train(training, script, trial, label, timeout, remarks, smoke=True)
            loading = START_SECONDS if self._evaluator is None else 0.0
            self.evaluate(Score(run_dir=trial, slice=True), label, timeout + loading)
            info = results.read(trial)
            content = info.environment.get("checkpoint", "")
            verdict = None if info.verdict.ok else info.verdict
            if verdict is None and (difference := different_settings(self.setup.fixed, info.training)):
                verdict = Verdict(name="preflight", evidence=difference)
        except RunFailed as failure:
            verdict = failure.verdict
        if verdict is None:
            remove(trial)
            return content
        remove(script.with_name(training.directory))  # what the experiment may have put under the run's name
        trial.rename(script.with_name(training.directory))
        return verdict.model_copy(update={"evidence": f"in the first steps: {verdict.evidence}"})

    def train(
        self,
        training: Training,
        script: Path,
        run_dir: Path,
        label: str,
        timeout: float,
        remarks: list[str],
        smoke: bool = False,
    ) -> Work:
        """Run an experiment into `run_dir` beside its script, which are made, and return what it read and used.

        What the researcher should know is added to `remarks`. `timeout` is in seconds; `smoke` cuts the training to a
        few steps, and counts them from the first. Raise RunFailed unless it trained to its end.
        """
        stdout, stderr = log_path(run_dir, "stdout"), log_path(run_dir, "stderr")
        remove(script)  # which a smoke test may have put a link in the place of
        write_atomically(script, training.source)
        settings = {
            "SAE_AGENT_DRIVEN": "1",
            "SAE_AGENT_FIXED": self.setup.fixed.model_dump_json(),
            "SAE_AGENT_SEED": str(training.seed),
            **({"SAE_AGENT_SMOKE": "1"} if smoke else {}),
        }
        progress, shared_memory = [run_dir / "metrics.jsonl", stdout, stderr], SharedMemory(memory_limit())
        total = min(self.setup.fixed.tokens, SMOKE_TOKENS) if smoke else self.setup.fixed.tokens
        remove(run_dir)
        run_dir.mkdir()
        with self._watched_cache(remarks) as changed, self._activations.training(total) as served:
            settings[SOCKET_VARIABLE] = str(served.descriptor)
            env = process.child_environment(self.settings | settings)
            ended = process.run(
                [*process.START, script.name, f"--out_dir={run_dir.name}"],
                cwd=script.parent,
                env=env,
                stdout=stdout,
                stderr=stderr,
                timeout=None if smoke else timeout,
                watchdogs=[
                    *([FirstSteps(run_dir / "metrics.jsonl", timeout)] if smoke else []),
                    lambda: self._judge(run_dir, label),
                    *(Stall(progress), Processes(), Files(self.setup.study), shared_memory),
                    *self._watchdogs(stdout, stderr),
                ],
                pass_fds=[served.descriptor],
                sandbox=self.sandbox,
                view=views.for_training(script, run_dir, env),
            )
            rows, damage = served.report()
        if self.sandbox.kind == "none" and shared_memory.left > REMARKABLE_BYTES:
            remarks.append(f"{shared_memory.left / MIB:.0f} MiB more lie in {SHARED_MEMORY} than before it")
        tampered = collect_run_files(run_dir, training.source) or (changed[0] if changed else None)
        if tampered:
            self._end_evaluator()  # it may have read what was changed
        verdict = tampered or self._judge(run_dir, label) or process.exit_verdict(ended, run_dir / "stderr.log")
        if verdict := verdict or damage:
            raise RunFailed(self._shortened(verdict, script.parent))
        return Work(rows=rows, cpu_seconds=round(ended.cpu_seconds, 2), machine=machine(self.setup.fixed.threads))

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
        """Have the evaluator write the file that the request names.

        Raise RunFailed if it is not there in the end; it is EvaluationStopped where another try may succeed. A
        checkpoint of another model or hook than the study's is not loaded.
        """
        answer, log = request.run_dir / request.out, self.logs / "evaluator.log"
        remove(answer)
        if self._evaluator is None or self._evaluator.exited:
            self._end_evaluator()
            remove_unless_plain(log)
            self._evaluator = self._start_evaluator(log)
        subject = self.setup.fixed.model_dump(include={"model", "hook_name", "text"})
        self._evaluator.write_line(request.model_copy(update=subject).model_dump_json())

        def show_progress() -> None:
            self._show(f"{label}: {''.join(process.last_lines(log, 1)) or 'evaluating'}")

        watchdogs: list[Watchdog] = [show_progress, *self._watchdogs(log)]
        stopped = self._evaluator.wait(until=answer.exists, timeout=timeout, watchdogs=watchdogs)
        if stopped is None and answer.exists():
            return
        ended = process.ProcessResult(self._end_evaluator(), 0.0, stopped)
        failure = process.exit_verdict(ended, log) or Verdict(name="crashed", evidence="the evaluator gave no answer")
        by_itself = failure.name == "crashed" and ended.exit_code not in NOT_ITS_FAULT
        evidence = Verdict(name="not_evaluated", evidence=failure.evidence)
        verdict = self._shortened(evidence, request.run_dir.parent)
        raise RunFailed(verdict) if by_itself else EvaluationStopped(verdict)

    def _start_evaluator(self, log: Path) -> process.Child:
        secrets = "" if views.NETWORKED.isdisjoint(self.setup.evals) else process.JUDGE_VARIABLES
        env = process.child_environment(self.settings | views.folders(), secrets)
        return process.Child(
            EVALUATE,
            cwd=self.setup.study,
            env=env,
            stdin=True,
            stdout=log,
            stderr=log,
            sandbox=self.sandbox,
            view=views.for_evaluator(self.setup.study, self.setup.fixed, self.setup.evals, env),
        )

    def _end_evaluator(self) -> int:
        child, self._evaluator = self._evaluator, None
        return child.end() if child else 0

    def _shortened(self, verdict: Verdict, folder: Path) -> Verdict:
        """Write paths as seen from the study, and those of a job as if it were there."""
        evidence = verdict.evidence.replace(f"{folder}{os.sep}", "").replace(f"{self.setup.study}{os.sep}", "")
        return verdict.model_copy(update={"evidence": evidence})

    def _judge(self, run_dir: Path, label: str) -> Verdict | None:
        """Judge the training history so far, and show how far it has come."""
        try:
            rows = results.read_metrics(run_dir)
        except BadFile as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self._show(training_progress(label, rows, self.setup.fixed.tokens))
        return judge_metrics(rows)

    def _watchdogs(self, *logs: Path) -> list[Watchdog]:
        return [self.watch, LogCap(*logs), Memory(memory_limit()), Disk(self.setup.study)]

    def _show(self, text: str) -> None:
        """Leave a line for the driver to show."""
        if text != self._shown and time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
            self._shown, self._shown_at = text, time.monotonic()
            partial = self._progress.with_name("progress.partial")
            partial.write_text(text)
            partial.replace(self._progress)


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
                    slot.carry_out(Path(line.rstrip("\n")), 0)
    except UserError as error:
        sys.exit(f"error: {one_line(str(error))}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
