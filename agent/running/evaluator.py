"""The evaluator of a slot: a process of the lab that is started when it is first needed, and waits for requests."""

from pathlib import Path

from agent.lab.evaluation.requests import AnyRequest
from agent.lab.files import remove, remove_unless_plain
from agent.lab.verdicts import Verdict
from agent.running import process, views
from agent.running.jobs import Setup
from agent.running.sandbox import Sandbox
from agent.running.watchdogs import Watchdog
from agent.study.outcomes import EvaluationStopped, RunFailed

EVALUATE = (*process.START, "agent.lab.evaluation", "--serve")
INTERRUPTED = 130
NOT_ITS_FAULT = (2, INTERRUPTED)  # exit codes of the lab's processes: the user's mistake, and interrupted


class Evaluator:
    """Has requests answered, and starts the process again if it has ended. `log` receives its output."""

    def __init__(self, setup: Setup, settings: dict[str, str], sandbox: Sandbox, log: Path) -> None:
        self.setup, self.settings, self.sandbox, self.log = setup, settings, sandbox, log
        self._child: process.Child | None = None

    @property
    def is_started(self) -> bool:
        return self._child is not None

    def answer(self, request: AnyRequest, timeout: float, watchdogs: list[Watchdog]) -> None:
        """Have the file written that the request names. `timeout` is in seconds.

        Raise RunFailed if it is not there in the end; it is EvaluationStopped where another try may succeed. A
        checkpoint of another model or hook than the study's is not loaded.
        """
        answer = request.run_dir / request.out
        remove(answer)
        if self._child is None or self._child.exited:
            self.end()
            remove_unless_plain(self.log)
            self._child = self._start()
        subject = self.setup.fixed.model_dump(include={"model", "hook_name", "text"})
        self._child.write_line(request.model_copy(update=subject).model_dump_json())
        stopped = self._child.wait(until=answer.exists, timeout=timeout, watchdogs=watchdogs)
        if stopped is None and answer.exists():
            return
        ended = process.ProcessResult(self.end(), 0.0, stopped)
        failure = process.exit_verdict(ended, self.log) or Verdict(
            name="crashed", evidence="the evaluator gave no answer"
        )
        by_itself = failure.name == "crashed" and ended.exit_code not in NOT_ITS_FAULT
        verdict = Verdict(name="not_evaluated", evidence=failure.evidence)
        raise RunFailed(verdict) if by_itself else EvaluationStopped(verdict)

    def end(self) -> int:
        """End the process, if there is one, and return its exit code."""
        child, self._child = self._child, None
        return child.end() if child else 0

    def _start(self) -> process.Child:
        secrets = "" if views.NETWORKED.isdisjoint(self.setup.evals) else process.JUDGE_VARIABLES
        env = process.child_environment(self.settings | views.folders(), secrets)
        return process.Child(
            EVALUATE,
            cwd=self.setup.study,
            env=env,
            stdin=True,
            stdout=self.log,
            stderr=self.log,
            sandbox=self.sandbox,
            view=views.for_evaluator(self.setup.study, self.setup.fixed, self.setup.evals, env),
        )
