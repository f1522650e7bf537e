"""What a study has done by child processes: trainings under guard, and evaluations by one evaluator that stays."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.display.formatting import training_progress
from agent.display.live import Display
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.evaluation.requests import Score, TrySentinels
from agent.lab.verdicts import Verdict, judge_metrics
from agent.running import process
from agent.running.run_files import keep, log
from agent.running.watchdogs import Disk, LogCap, Memory, Stall, Watchdog, memory_limit
from agent.study.events import StudyStarted
from agent.study.workspace import STUDY_VARIABLE, Study

PREPARE = (sys.executable, "-P", "-m", "agent.lab.prepare")
EXAMINE = (sys.executable, "-P", "-m", "agent.lab.evaluation.doctor")
EVALUATE = (sys.executable, "-P", "-m", "agent.lab.evaluation", "--serve")


def prepare(root: Path, fixed: Fixed, needed: str, device: str | None, ground: Path) -> int:
    """Check the model, the hook and the evaluations, of which `needed` must run, harvest the activations, and write
    what was found to `ground`; the exit code of the process that did it."""
    options = {"--tokens": str(fixed.tokens), "--evals": fixed.evals, "--needed": needed, "--ground": str(ground)}
    return _in_lab(PREPARE, root, fixed.model, fixed.hook_name, device, options)


def examine(root: Path, model: str, hook_name: str, evals: str, out: Path) -> int:
    """Write what can be evaluated, a Report of the evaluation families, to `out`; the exit code of the process."""
    return _in_lab(EXAMINE, root, model, hook_name, None, {"--evals": evals, "--out": str(out)})


def _in_lab(
    command: Sequence[str], root: Path, model: str, hook_name: str, device: str | None, options: dict[str, str]
) -> int:
    runs = root / "runs"  # not where the user stands: a directory there must not pass for a model of the same name
    runs.mkdir(exist_ok=True)
    given = {"--model": model, "--hook_name": hook_name} | options
    env = process.environment(device_setting(device), trusted=True)
    return process.run([*command, *(part for pair in given.items() for part in pair)], cwd=runs, env=env).code


def device_setting(device: str | None) -> dict[str, str]:
    return {"SAE_AGENT_DEVICE": device} if device else {}


class Workers:
    """The processes of one study, one at a time beside the evaluator that waits."""

    def __init__(self, study: Study, started: StudyStarted, display: Display) -> None:
        self.study, self.fixed, self.display = study, started.fixed, display
        self.settings = device_setting(started.device) | {STUDY_VARIABLE: str(study.directory)}
        self._evaluator: process.Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_evaluator()

    def train(
        self, script: Path, run_dir: Path, *, seed: int, label: str, timeout: float, smoke: bool = False
    ) -> Verdict | None:
        """Run an experiment into the new directory `run_dir` beside it; None when it trained to its end."""
        stdout, stderr, source = log(run_dir, "stdout"), log(run_dir, "stderr"), script.read_text()
        for left in (stdout, stderr):  # by a training that ended with its driver
            left.unlink(missing_ok=True)
        settings = {
            "SAE_AGENT_DRIVEN": "1",
            "SAE_AGENT_FIXED": self.fixed.model_dump_json(),
            "SAE_AGENT_SEED": str(seed),
        }
        transcript = _content(self.study.transcript)
        watched = [run_dir / "metrics.jsonl", stdout, stderr]
        ended = process.run(
            [sys.executable, script.name, f"--out_dir={run_dir.name}"],
            cwd=script.parent,
            env=process.environment(
                self.settings | settings | ({"SAE_AGENT_SMOKE": "1"} if smoke else {}), trusted=False
            ),
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            watch=[lambda: self._judge(run_dir, label), Stall(watched), *self._watchdogs(stdout, stderr)],
        )
        replaced = keep(run_dir, source) or self._put_back(transcript)
        verdict = replaced or self._judge(run_dir, label) or process.verdict_of_end(ended, run_dir / "stderr.log")
        return verdict and self._shortened(verdict)

    def evaluate(self, request: Score | TrySentinels, *, label: str, timeout: float) -> Verdict | None:
        """Have the evaluator answer; None when its answer is there, else why it is not."""
        answer, said = request.run_dir / request.out, self.study.directory / "evaluator.log"
        if os.path.lexists(answer):
            answer.unlink()
        if self._evaluator is None or self._evaluator.exited:
            self._end_evaluator()
            env = process.environment(self.settings, trusted=True)
            self._evaluator = process.Child(
                EVALUATE, cwd=self.study.directory, env=env, stdin=True, stdout=said, stderr=said
            )
        self._evaluator.tell(request.model_dump_json())
        watch: list[Watchdog] = [
            lambda: self.display.progress(f"{label}: {''.join(process.tail(said, 1)) or 'evaluating'}"),
            *self._watchdogs(said),
        ]
        stopped = self._evaluator.wait(until=answer.exists, timeout=timeout, watch=watch)
        if stopped is None and answer.exists():
            return None
        ended = process.ProcessResult(self._end_evaluator(), 0.0, stopped)
        failure = process.verdict_of_end(ended, said)
        return self._shortened(
            Verdict(name="not_evaluated", evidence=failure.evidence if failure else "no answer came")
        )

    def _shortened(self, verdict: Verdict) -> Verdict:
        """Paths as seen from the study."""
        evidence = verdict.evidence.replace(f"{self.study.directory}{os.sep}", "")
        return verdict.model_copy(update={"evidence": evidence})

    def _put_back(self, transcript: bytes | None) -> Verdict | None:
        """The transcript as it was before a training: limits are summed over it."""
        path = self.study.transcript
        if _content(path) == transcript:
            return None
        path.unlink(missing_ok=True)
        if transcript is not None:
            path.write_bytes(transcript)
        return Verdict(name="tampered", evidence="the experiment changed the transcript; put back as it was")

    def _end_evaluator(self) -> int:
        child, self._evaluator = self._evaluator, None
        return child.end() if child else 0

    def _judge(self, run_dir: Path, label: str) -> Verdict | None:
        """What the training history so far says, shown on the way."""
        try:
            rows = results.read_metrics(run_dir)
        except results.BadResults as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self.display.progress(training_progress(label, rows, self.fixed.tokens))
        return judge_metrics(rows)

    def _watchdogs(self, *logs: Path) -> list[Watchdog]:
        return [LogCap(*logs), Memory(memory_limit()), Disk(self.study.directory)]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None
