"""Child processes of a study: guarded training runs and one long-lived evaluator."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.append_log import AppendLog
from agent.display.formatting import training_progress
from agent.display.live import Display
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.defaults import EVALUATION_DATA, SMOKE_TOKENS, SOCKET_VARIABLE
from agent.lab.errors import UserError
from agent.lab.evaluation.requests import Score, TrySentinels
from agent.lab.files import MIB, BadFile, read_plain_text, remove, remove_unless_plain
from agent.lab.results import FinalInfo, Work
from agent.lab.verdicts import Verdict, judge_metrics
from agent.running import process, views
from agent.running.activation_server import ActivationServer, machine
from agent.running.run_files import collect_run_files, log_path
from agent.running.sandbox import Sandbox
from agent.running.watchdogs import (
    SHARED_MEMORY,
    Disk,
    Files,
    LogCap,
    Memory,
    Processes,
    SharedMemory,
    Stall,
    Watchdog,
    memory_limit,
)
from agent.study.custody import Custody
from agent.study.events import StudyStarted
from agent.study.outcomes import EvaluationStopped, RunFailed
from agent.study.workspace import STUDY_VARIABLE, Study

PREPARE = (*process.START, "agent.lab.prepare")
EXAMINE = (*process.START, "agent.lab.evaluation.doctor")
EVALUATE = (*process.START, "agent.lab.evaluation", "--serve")
NOT_ITS_FAULT = (2, 130)  # exit codes of the lab's processes: the user's mistake, and interrupted
REMARKABLE_BYTES = 64 * MIB  # in the machine's shared memory, where a run that is not confined may leave them


def prepare(root: Path, fixed: Fixed, required: str, device: str | None, out: Path) -> int:
    """Harvest the activations of a study in a child process and return its exit code.

    The model, the hook and the evaluations, of which `required` must run, are checked first. `out` receives the
    fingerprint and the evaluations, as JSON.
    """
    options = {"--tokens": str(fixed.tokens), "--evals": fixed.evals, "--needed": required, "--fingerprint": str(out)}
    if fixed.text:
        options["--text"] = fixed.text
    return _run_lab(PREPARE, root, fixed, _computation(fixed, device), options)


def examine(root: Path, fixed: Fixed, evals: str, out: Path) -> int:
    """Write a Report of what can be evaluated to `out`, in a child process, and return its exit code."""
    return _run_lab(EXAMINE, root, fixed, _computation(fixed, None), {"--evals": evals, "--out": str(out)})


def _run_lab(
    command: Sequence[str], root: Path, fixed: Fixed, settings: dict[str, str], options: dict[str, str]
) -> int:
    runs = root / "runs"  # not where the user stands: a directory there must not pass for a model of the same name
    runs.mkdir(exist_ok=True)
    arguments = {"--model": fixed.model, "--hook_name": fixed.hook_name} | options
    env = process.child_environment(settings, process.ALL_VARIABLES)
    command = [*command, *(part for pair in arguments.items() for part in pair)]
    return process.run(command, cwd=runs, env=env, max_file_bytes=0).exit_code  # the weights of a model may be larger


def _computation(fixed: Fixed, device: str | None) -> dict[str, str]:
    """Return the variables that tell the lab where, in which dtype, and to be scored on what, a model is run."""
    settings = {
        "SAE_AGENT_DEVICE": device,
        "SAE_AGENT_DTYPE": fixed.dtype,
        EVALUATION_DATA: fixed.evaluation_data,
    }
    return {name: value for name, value in settings.items() if value}


class StudyMoved(UserError):
    """The directory of the study is gone, or another one lies in its place."""


class Workers:
    """The child processes of one study: one training at a time, beside an evaluator that waits for requests."""

    def __init__(
        self, study: Study, started: StudyStarted, display: Display, custody: Custody, sandbox: Sandbox
    ) -> None:
        self.study, self.fixed, self.display = study, started.fixed, display
        self.custody, self.sandbox = custody, sandbox
        self.evals = started.evals
        self.settings = _computation(self.fixed, started.device) | {STUDY_VARIABLE: str(study.directory)}
        self._inode = study.directory.stat().st_ino
        self._activations = ActivationServer(self.fixed, self.settings, study.directory / "stream.log", sandbox)
        self._evaluator: process.Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_evaluator()
        self._activations.end()

    def train(self, script: Path, run_dir: Path, *, seed: int, label: str, timeout: float, smoke: bool = False) -> Work:
        """Run an experiment into `run_dir` beside it, which is made, and return what it read and used.

        `timeout` is in seconds; `smoke` cuts the training to a few steps. Raise RunFailed unless it trained to its end
        and changed nothing outside that directory.
        """
        try:
            with self.custody.guard(run_dir.name, confined=self.sandbox.kind != "none"):
                return self._train(script, run_dir, seed, label, timeout, smoke)
        except RunFailed as failure:
            if failure.verdict.name == "tampered":
                self._end_evaluator()  # it may have read what was changed
            raise

    def _train(self, script: Path, run_dir: Path, seed: int, label: str, timeout: float, smoke: bool) -> Work:
        stdout, stderr, source = log_path(run_dir, "stdout"), log_path(run_dir, "stderr"), read_plain_text(script)
        for leftover in (stdout, stderr):  # of a training that ended with its driver
            remove(leftover)
        settings = {
            "SAE_AGENT_DRIVEN": "1",
            "SAE_AGENT_FIXED": self.fixed.model_dump_json(),
            "SAE_AGENT_SEED": str(seed),
            **({"SAE_AGENT_SMOKE": "1"} if smoke else {}),
        }
        transcript = AppendLog(self.study.transcript)
        progress = [run_dir / "metrics.jsonl", stdout, stderr]
        total = min(self.fixed.tokens, SMOKE_TOKENS) if smoke else self.fixed.tokens
        shared_memory = SharedMemory(memory_limit())
        run_dir.mkdir()
        with self._activations.training(total) as served:
            settings[SOCKET_VARIABLE] = str(served.descriptor)
            env = process.child_environment(self.settings | settings)
            ended = process.run(
                [*process.START, script.name, f"--out_dir={run_dir.name}"],
                cwd=script.parent,
                env=env,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                watchdogs=[
                    self._require_study,
                    lambda: self._judge(run_dir, label),
                    *(Stall(progress), Processes(), Files(self.study.directory), shared_memory),
                    *self._watchdogs(stdout, stderr),
                ],
                pass_fds=[served.descriptor],
                sandbox=self.sandbox,
                view=views.for_training(script, run_dir, env),
            )
            rows, damage = served.report()
        self._require_study()
        if self.sandbox.kind == "none" and shared_memory.left > REMARKABLE_BYTES:
            self.display.say(f"{label}: {shared_memory.left / MIB:.0f} MiB more lie in {SHARED_MEMORY} than before it")
        tampered = collect_run_files(run_dir, source)
        if transcript.restore():  # the limits of a language model are summed over it
            evidence = "the experiment changed the transcript; put back as it was"
            tampered = tampered or Verdict(name="tampered", evidence=evidence)
        verdict = tampered or self._judge(run_dir, label) or process.exit_verdict(ended, run_dir / "stderr.log")
        if verdict := verdict or damage:
            raise RunFailed(self._shortened(verdict))
        return Work(rows=rows, cpu_seconds=round(ended.cpu_seconds, 2), machine=machine())

    def score(self, request: Score, *, label: str, timeout: float) -> FinalInfo:
        """Return the results that the evaluator has written for a run, or `not_evaluated` if it wrote none."""
        try:
            self.evaluate(request, label=label, timeout=timeout)
        except RunFailed as failure:
            return FinalInfo(verdict=failure.verdict)
        return results.read(request.run_dir, request.out)

    def evaluate(self, request: Score | TrySentinels, *, label: str, timeout: float) -> None:
        """Have the evaluator write the file that the request names.

        Raise RunFailed if it is not there in the end, or if something was changed that runs are judged by; it is
        EvaluationStopped where another try may succeed. A checkpoint of another model or hook than the study's is not
        loaded.
        """
        self.custody.require_untouched()
        self.custody.require_present(request.run_dir)
        answer, evaluator_log = request.run_dir / request.out, self.study.directory / "evaluator.log"
        remove(answer)
        if self._evaluator is None or self._evaluator.exited:
            self._end_evaluator()
            remove_unless_plain(evaluator_log)
            secrets = "" if views.NETWORKED.isdisjoint(self.evals) else process.JUDGE_VARIABLES
            env = process.child_environment(self.settings | views.folders(), secrets)
            self._evaluator = process.Child(
                EVALUATE,
                cwd=self.study.directory,
                env=env,
                stdin=True,
                stdout=evaluator_log,
                stderr=evaluator_log,
                sandbox=self.sandbox,
                view=views.for_evaluator(self.study, self.fixed, self.evals, env),
            )
        subject = self.fixed.model_dump(include={"model", "hook_name", "text"})
        self._evaluator.write_line(request.model_copy(update=subject).model_dump_json())

        def show_progress() -> None:
            self.display.progress(f"{label}: {''.join(process.last_lines(evaluator_log, 1)) or 'evaluating'}")

        watchdogs: list[Watchdog] = [show_progress, *self._watchdogs(evaluator_log)]
        stopped = self._evaluator.wait(until=answer.exists, timeout=timeout, watchdogs=watchdogs)
        if stopped is None and answer.exists():
            self.custody.artefacts.record()
            return
        ended = process.ProcessResult(self._end_evaluator(), 0.0, stopped)
        failure = process.exit_verdict(ended, evaluator_log) or Verdict(
            name="crashed", evidence="the evaluator gave no answer"
        )
        by_itself = failure.name == "crashed" and ended.exit_code not in NOT_ITS_FAULT
        verdict = self._shortened(Verdict(name="not_evaluated", evidence=failure.evidence))
        raise RunFailed(verdict) if by_itself else EvaluationStopped(verdict)

    def _shortened(self, verdict: Verdict) -> Verdict:
        """Write paths as seen from the study."""
        evidence = verdict.evidence.replace(f"{self.study.directory}{os.sep}", "")
        return verdict.model_copy(update={"evidence": evidence})

    def _end_evaluator(self) -> int:
        child, self._evaluator = self._evaluator, None
        return child.end() if child else 0

    def _require_study(self) -> None:
        """Raise StudyMoved if the directory of the study is not where it was."""
        directory = self.study.directory
        if not directory.is_dir() or directory.stat().st_ino != self._inode:
            raise StudyMoved(f"{directory} was moved while the study ran: move it back, then agent resume continues")

    def _judge(self, run_dir: Path, label: str) -> Verdict | None:
        """Judge the training history so far, and show how far it has come."""
        try:
            rows = results.read_metrics(run_dir)
        except BadFile as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self.display.progress(training_progress(label, rows, self.fixed.tokens))
        return judge_metrics(rows)

    def _watchdogs(self, *logs: Path) -> list[Watchdog]:
        return [LogCap(*logs), Memory(memory_limit()), Disk(self.study.directory)]
