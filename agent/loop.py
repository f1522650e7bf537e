"""One study, from its baseline to its end."""

import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent import ledger as events
from agent import notes, process, study
from agent.display import Display, evaluation_progress, run_line, training_progress
from agent.ideas import Fixed, Idea
from agent.lab import results
from agent.lab.results import FinalInfo, Training
from agent.lab.verdicts import Verdict, judge_metrics
from agent.ledger import Ledger
from agent.proposers import Proposal, Proposer
from agent.study import Study

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


def start(root: Path, idea: Idea, fixed: Fixed, max_runs: int, run_timeout: float) -> tuple[Study, Ledger]:
    """A new study with its first event."""
    new = study.create(root, idea.name)
    ledger = Ledger(new.ledger)
    ledger.append(
        events.StudyStarted(
            idea=idea.name,
            title=idea.title,
            description=idea.description.strip(),
            hypothesis=idea.hypothesis.strip(),
            primary_metric=idea.primary_metric,
            smallest_effect=idea.smallest_effect,
            fixed=fixed,
            max_runs=max_runs,
            run_timeout=run_timeout,
        )
    )
    return new, ledger


@dataclass
class Loop:
    """Proposes, trains, evaluates and writes notes until the budget is spent or there is nothing left to try."""

    study: Study
    ledger: Ledger
    fixed: Fixed
    baseline: Proposal
    proposer: Proposer
    settings: dict[str, str]  # for the environment of every child process
    max_runs: int
    run_timeout: float  # seconds, for a training and for an evaluation
    display: Display

    def run(self) -> Ending:
        """Carry the study through to its end, which an interruption is too."""
        try:
            ending = self.explore()
        except KeyboardInterrupt:
            ending = Ending("interrupted", 130)
        self.ledger.append(events.StudyEnded(why=ending.why))
        self.write_notes()
        return ending

    def explore(self) -> Ending:
        verdict = self.carry_out(self.baseline)
        if not verdict.ok:
            return Ending(f"the baseline failed ({verdict.name}: {verdict.evidence})", 1)
        why = f"the budget of {self.max_runs} run{'s' * (self.max_runs > 1)} is spent"
        sound = False
        while self.ledger.state.runs_used < self.max_runs:
            proposal = self.proposer.propose(self.ledger.state)
            if proposal is None:
                why = f"the plan ended after {self.ledger.state.runs_used} of at most {self.max_runs} runs"
                break
            sound |= self.carry_out(proposal).ok
        return Ending(why, 0) if sound else Ending(f"{why}; no run but the baseline counts", 1)

    def carry_out(self, proposal: Proposal) -> Verdict:
        """One run, from its proposal to its notes."""
        run = len(self.ledger.state.runs)
        self.ledger.append(events.ProposalMade(run=run, proposal=proposal))
        self.display.say(f"run {run}: {proposal.title}")
        (self.study.directory / "experiment.py").write_text(proposal.source)
        self.study.commit(f"run {run}, proposal: {proposal.title}\n\n{proposal.description}\n\n{proposal.why}")
        self.ledger.append(events.RunReserved(run=run))
        try:
            info = self.attempt(run)
        except KeyboardInterrupt:
            self.settle(run, self.interrupted(run))
            raise
        self.settle(run, info)
        self.write_notes()
        return info.verdict

    def attempt(self, run: int) -> FinalInfo:
        """Train, then evaluate what training left."""
        self.ledger.append(events.AttemptStarted(run=run, attempt=1))
        self.refresh()
        start = time.monotonic()
        failure = self.train(run)
        seconds = time.monotonic() - start
        self.ledger.append(events.AttemptEnded(run=run, attempt=1, verdict=failure, seconds=seconds))
        if failure:
            return FinalInfo(verdict=failure)
        self.refresh()
        start = time.monotonic()
        info = self.evaluate(run)
        seconds = time.monotonic() - start
        self.ledger.append(events.EvaluationEnded(run=run, attempt=1, verdict=info.verdict, seconds=seconds))
        return info

    def interrupted(self, run: int) -> FinalInfo:
        """Record the end of an attempt that was cut short."""
        state = self.ledger.state
        stage = state.runs[run].stage
        killed = Verdict(name="killed", evidence=f"interrupted while {stage}")
        seconds = (datetime.now(UTC) - state.last_time).total_seconds() if state.last_time else 0.0
        if stage == "training":
            self.ledger.append(events.AttemptEnded(run=run, attempt=1, verdict=killed, seconds=seconds))
        elif stage == "evaluating":
            self.ledger.append(events.EvaluationEnded(run=run, attempt=1, verdict=killed, seconds=seconds))
        return FinalInfo(verdict=killed)

    def train(self, run: int) -> Verdict | None:
        """Run experiment.py under guard; None when it trained to its end."""
        try:
            ended = process.run(
                [*EXPERIMENT, f"--out_dir=run_{run}"],
                cwd=self.study.directory,
                env=process.environment(self.settings | {"SAE_AGENT_DRIVEN": "1"}, trusted=False),
                stdout=self.study.log(run, "stdout"),
                stderr=self.study.log(run, "stderr"),
                timeout=self.run_timeout,
                watch=lambda: self.judge(run),
            )
        finally:
            self.keep(run)
        return self.judge(run) or process.verdict_of_end(ended, self.study.run_dir(run) / "stderr.log")

    def judge(self, run: int) -> Verdict | None:
        """What the training history so far says, shown on the way."""
        try:
            rows = results.read_metrics(self.study.run_dir(run))
        except results.BadResults as damage:
            return Verdict(name="crashed", evidence=str(damage))
        self.display.progress(training_progress(run, rows, self.fixed.tokens))
        return judge_metrics(rows)

    def evaluate(self, run: int) -> FinalInfo:
        """Have the checkpoint scored by a process that runs none of the experiment's code."""
        directory = self.study.run_dir(run)
        log = directory / "eval.log"
        (directory / "final_info.json").unlink(missing_ok=True)  # not the evaluator's: forged, or of an earlier attempt
        ended = process.run(
            [*EVALUATE, str(directory)],
            cwd=self.study.directory,
            env=process.environment(self.settings, trusted=True),
            stdout=log,
            stderr=log,
            timeout=self.run_timeout,
            watch=lambda: self.display.progress(evaluation_progress(run, log)),
        )
        try:
            info = results.read(directory)
        except results.BadResults as error:
            failure = process.verdict_of_end(ended, log)
            return FinalInfo(
                verdict=Verdict(name="not_evaluated", evidence=failure.evidence if failure else str(error))
            )
        different = different_settings(self.fixed, info.training)
        if info.verdict.ok and different:
            info.verdict = Verdict(name="not_comparable", evidence=different, warnings=info.verdict.warnings)
        return info

    def keep(self, run: int) -> None:
        """Put the experiment as it ran, and its logs, with the rest of the run."""
        directory = self.study.run_dir(run)
        directory.mkdir(exist_ok=True)
        shutil.copyfile(self.study.directory / "experiment.py", directory / "experiment.py")
        for stream in ("stdout", "stderr"):
            log = self.study.log(run, stream)
            if log.exists():
                log.replace(directory / f"{stream}.log")

    def settle(self, run: int, info: FinalInfo) -> None:
        """Write the run's results, or why it has none, and commit them."""
        verdict, directory = info.verdict, self.study.run_dir(run)
        directory.mkdir(exist_ok=True)
        results.write(directory, info)
        self.ledger.append(events.RunCommitted(run=run, verdict=verdict))
        self.study.commit(f"run {run}, result: {verdict.name}\n\n{verdict.evidence}")
        self.refresh()
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
