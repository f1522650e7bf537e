"""One study, from wherever its ledger says it stands to its end."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import budgets, notes, process
from agent import ledger as events
from agent.display import Display, evaluation_progress, run_line, training_progress
from agent.ideas import Fixed, Idea
from agent.lab import results
from agent.lab.results import FinalInfo, Training
from agent.lab.verdicts import Verdict, judge_metrics
from agent.ledger import Ledger, State
from agent.process_tree import MARK
from agent.proposers import Proposal, Proposer
from agent.study import Study
from agent.watchdogs import Disk, LogCap, Memory, Stall, Watchdog, memory_limit, require_disk

PREPARE = (sys.executable, "-P", "-m", "agent.lab.prepare")
EXPERIMENT = (sys.executable, "experiment.py")
EVALUATE = (sys.executable, "-P", "-m", "agent.lab.evaluation")
TOKENS_TOLERANCE = 0.01  # the stream ends with a whole batch


@dataclass(frozen=True)
class Ending:
    """Why a study ended, and the exit code that says it."""

    why: str
    code: int


def prepare(root: Path, fixed: Fixed, settings: dict[str, str]) -> int:
    """Check the model and the hook and harvest the activations; the exit code of the process that did it."""
    options = ["--model", fixed.model, "--hook_name", fixed.hook_name, "--tokens", str(fixed.tokens)]
    runs = root / "runs"  # not where the user stands: a directory there must not pass for a model of the same name
    runs.mkdir(exist_ok=True)
    return process.run([*PREPARE, *options], cwd=runs, env=process.environment(settings, trusted=True)).code


def started(idea: Idea, fixed: Fixed, device: str | None, limits: dict[str, Any]) -> events.StudyStarted:
    """A study's first event: everything about it that will not change."""
    return events.StudyStarted(
        idea=idea.name,
        title=idea.title,
        description=idea.description.strip(),
        hypothesis=idea.hypothesis.strip(),
        primary_metric=idea.primary_metric,
        smallest_effect=idea.smallest_effect,
        fixed=fixed,
        device=device,
        **limits,
    )


def environment_settings(device: str | None) -> dict[str, str]:
    """What the environment of every child process says beside what it inherits."""
    return {"SAE_AGENT_DEVICE": device} if device else {}


@dataclass
class Loop:
    """Proposes, trains, evaluates and writes notes until a budget is spent or there is nothing left to try.

    What to do next is read from the ledger alone, so a new study and one whose driver was killed at any moment
    are the same thing here.
    """

    study: Study
    ledger: Ledger  # with its study_started
    baseline: Proposal
    proposer: Proposer
    display: Display

    def __post_init__(self) -> None:
        assert self.ledger.state.started
        self.started = self.ledger.state.started
        self.settings = environment_settings(self.started.device) | {MARK: str(self.study.directory)}

    def run(self) -> Ending:
        """Carry the study on to its end, or to an interruption."""
        try:
            ending = self.explore()
        except KeyboardInterrupt:
            self.interrupt()
            return Ending("interrupted; agent resume continues", 130)
        self.ledger.append(events.StudyEnded(why=ending.why))
        self.write_notes()
        return ending

    def explore(self) -> Ending:
        """Finish the run that the ledger has open, then propose and carry out until there is a reason to stop."""
        if newest := self.ledger.state.runs[-1:]:
            self.carry_out(newest[0].number)
        while not isinstance(proposal := self.next(self.ledger.state), str):
            run = len(self.ledger.state.runs)
            self.ledger.append(events.ProposalMade(run=run, proposal=proposal))
            self.carry_out(run)
        return self.ending(why=proposal)

    def next(self, state: State) -> Proposal | str:
        """What to try next, or why nothing more is tried."""
        if not state.runs:
            return self.baseline
        baseline = state.runs[0].verdict
        if baseline and not baseline.ok:
            return f"the baseline failed ({baseline.name}: {baseline.evidence})"
        if why := budgets.spent(state, self.ledger.seconds):
            return why
        ended = f"the plan ended after {state.runs_used} of at most {self.started.max_runs} runs"
        return self.proposer.propose(state) or ended

    def ending(self, why: str) -> Ending:
        baseline, *others = [run.verdict for run in self.ledger.state.runs]
        if any(verdict and verdict.ok for verdict in others):
            return Ending(why, 0)
        return Ending(f"{why}; no run but the baseline counts" if baseline and baseline.ok else why, 1)

    def carry_out(self, run: int) -> None:
        """One run, from the stage it has reached to its notes. Each step brings it to a later stage."""
        steps = {
            "proposed": self.reserve,
            "reserved": self.attempt,
            "training": self.cut_short,
            "evaluating": self.evaluate,
            "judged": self.settle,
        }
        self.refresh()
        while (stage := self.ledger.state.runs[run].stage) != "done":
            steps[stage](run)
            self.refresh()
        self.write_notes()

    def reserve(self, run: int) -> None:
        """Commit the proposal to the story, and take the run out of the budget."""
        proposal = self.ledger.state.runs[run].proposal
        (self.study.directory / "experiment.py").write_text(proposal.source)
        self.study.commit(f"run {run}, proposal: {proposal.title}\n\n{proposal.description}\n\n{proposal.why}")
        self.ledger.append(events.RunReserved(run=run))

    def attempt(self, run: int) -> None:
        """Train once, in a new directory. Raises DiskFull where there is no room for it."""
        require_disk(self.study.directory)
        state = self.ledger.state.runs[run]
        if os.path.lexists(self.study.run_dir(run)):
            self.study.run_dir(run).rename(self.study.attempt_dir(run, state.attempt))
        attempt = state.attempt + 1
        self.ledger.append(events.AttemptStarted(run=run, attempt=attempt))
        self.refresh()
        self.display.say(f"run {run}: {state.proposal.title}" + (f", attempt {attempt}" if attempt > 1 else ""))
        start = time.monotonic()
        failure = self.train(run)
        seconds = time.monotonic() - start
        if failure:
            results.write(self.study.run_dir(run), FinalInfo(verdict=failure))
        self.ledger.append(events.AttemptEnded(run=run, attempt=attempt, verdict=failure, seconds=seconds))

    def cut_short(self, run: int, evidence: str = "the driver ended while training") -> None:
        """Record the end of an attempt that did not come to one; what it left is kept."""
        killed = Verdict(name="killed", evidence=evidence)
        self.study.keep(run)
        results.write(self.study.run_dir(run), FinalInfo(verdict=killed))
        attempt = self.ledger.state.runs[run].attempt
        self.ledger.append(events.AttemptCutShort(run=run, attempt=attempt, verdict=killed))

    def interrupt(self) -> None:
        """Leave the study so that it can be resumed, with notes that say so."""
        self.ledger.reload()
        for run in self.ledger.state.runs:
            if run.stage == "training":
                self.cut_short(run.number, "interrupted while training")
        self.ledger.append(events.StudyInterrupted())
        self.write_notes()

    def train(self, run: int) -> Verdict | None:
        """Run experiment.py under guard; None when it trained to its end."""
        directory, state = self.study.run_dir(run), self.ledger.state
        stdout, stderr = self.study.log(run, "stdout"), self.study.log(run, "stderr")
        (self.study.directory / "experiment.py").write_text(state.runs[run].proposal.source)
        ended = process.run(
            [*EXPERIMENT, f"--out_dir=run_{run}"],
            cwd=self.study.directory,
            env=process.environment(self.settings | {"SAE_AGENT_DRIVEN": "1"}, trusted=False),
            stdout=stdout,
            stderr=stderr,
            timeout=budgets.timeout(state, self.ledger.seconds, evaluating=False),
            watch=[
                lambda: self.judge(run),
                Stall([directory / "metrics.jsonl", stdout, stderr]),
                *self.watchdogs(stdout, stderr),
            ],
        )
        tampered = self.study.keep(run)
        return tampered or self.judge(run) or process.verdict_of_end(ended, directory / "stderr.log")

    def judge(self, run: int) -> Verdict | None:
        """What the training history so far says, shown on the way."""
        try:
            rows = results.read_metrics(self.study.run_dir(run))
        except results.BadResults as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self.display.progress(training_progress(run, rows, self.started.fixed.tokens))
        return judge_metrics(rows)

    def watchdogs(self, *logs: Path) -> list[Watchdog]:
        return [LogCap(*logs), Memory(memory_limit()), Disk(self.study.directory)]

    def evaluate(self, run: int) -> None:
        """Have what training left scored."""
        start = time.monotonic()
        info = self.score(run)
        results.write(self.study.run_dir(run), info)
        attempt, seconds = self.ledger.state.runs[run].attempt, time.monotonic() - start
        self.ledger.append(events.EvaluationEnded(run=run, attempt=attempt, verdict=info.verdict, seconds=seconds))

    def score(self, run: int) -> FinalInfo:
        """The figures of the checkpoint, from a process that runs none of the experiment's code."""
        directory = self.study.run_dir(run)
        log = directory / "eval.log"
        (directory / "final_info.json").unlink(missing_ok=True)  # of an evaluation that was cut short
        ended = process.run(
            [*EVALUATE, str(directory)],
            cwd=self.study.directory,
            env=process.environment(self.settings, trusted=True),
            stdout=log,
            stderr=log,
            timeout=budgets.timeout(self.ledger.state, self.ledger.seconds, evaluating=True),
            watch=[lambda: self.display.progress(evaluation_progress(run, log)), *self.watchdogs(log)],
        )
        try:
            info = results.read(directory)
        except results.BadResults as error:
            failure = process.verdict_of_end(ended, log)
            return FinalInfo(
                verdict=Verdict(name="not_evaluated", evidence=failure.evidence if failure else str(error))
            )
        different = different_settings(self.started.fixed, info.training)
        if info.verdict.ok and different:
            info.verdict = Verdict(name="not_comparable", evidence=different, warnings=info.verdict.warnings)
        return info

    def settle(self, run: int) -> None:
        """Commit the run's results, or why it has none."""
        info = results.read(self.study.run_dir(run))
        self.study.commit(f"run {run}, result: {info.verdict.name}\n\n{info.verdict.evidence}")
        self.ledger.append(events.RunCommitted(run=run, verdict=info.verdict))
        self.display.say(f"run {run}: " + run_line(info))

    def refresh(self) -> None:
        self.display.table(self.study.runs(self.ledger.state))

    def write_notes(self) -> None:
        state = self.ledger.state
        notes.write(self.study, state)
        self.ledger.append(events.NotesWritten(after_run=len(state.runs) - 1))


def different_settings(fixed: Fixed, training: Training | None) -> str:
    """How a run departed from the study's fixed settings; empty where it did not."""
    if training is None:
        return "the results do not say what was trained"
    differences = [
        f"{name} is {getattr(training, name)}, the study's is {getattr(fixed, name)}"
        for name in ("model", "hook_name", "d_sae")
        if getattr(training, name) != getattr(fixed, name)
    ]
    if abs(training.tokens - fixed.tokens) > TOKENS_TOLERANCE * fixed.tokens:
        differences.append(f"trained on {training.tokens} tokens, the study's are {fixed.tokens}")
    return "; ".join(differences)
