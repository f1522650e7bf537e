"""A tracker of experiments: what it is given of each run of a study that has ended. Its own code runs elsewhere."""

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agent.comparison.judgement import Judgement, judgements
from agent.display.live import Display
from agent.lab.errors import UserError
from agent.lab.files import MIB, BadFile, read_plain
from agent.lab.metrics import METRICS
from agent.lab.verdicts import MetricsRow
from agent.report.track_program import ANSWER, REQUEST, Answer, Request, Tracked
from agent.running import process
from agent.running.watchdogs import LogCap
from agent.study.events import RunTracked
from agent.study.ledger import Ledger
from agent.study.records import TrackerName
from agent.study.runs import Run
from agent.study.workspace import Study

PROGRAM = (*process.START, "agent.report.track_program")
VARIABLES = rf"WANDB_\w+|{process.NETWORK_VARIABLES}"  # what it reaches its server with, its key among them
SECONDS = 60.0  # for the runs that are logged together; jobs go on meanwhile


def require(name: TrackerName | None) -> None:
    """Raise UserError if a tracker is not installed."""
    if name and find_spec(name) is None:
        raise UserError(f"--track {name}: {name} is not installed: pip install -e '.[track]' in the checkout")


class Tracker:
    """Logs each run of a study once it has ended and been compared, and again if its outcome changes.

    It never fails the study. What could not be logged is tried once more when the study ends.
    """

    def __init__(self, study: Study, ledger: Ledger, display: Display) -> None:
        self.study, self.ledger, self.display = study, ledger, display
        self.failed = False

    def log(self) -> None:
        """Log the runs that are due, and record those that were."""
        state = self.ledger.state
        if state.started.track is None or (self.failed and not state.ended):
            return
        due = self._due()
        if not due:
            return
        answer = _ask(Request(directory=self.study.directory, group=self.study.name, runs=due))
        for run in due:
            if run.number in answer.logged:
                self.ledger.append(RunTracked(run=run.number, outcome=run.outcome))
        self.failed = bool(answer.error)
        if answer.error:
            missing = ", ".join(str(run.number) for run in due if run.number not in answer.logged)
            self.display.say(f"{state.started.track} has not logged run {missing}, the study goes on: {answer.error}")

    def _due(self) -> list[Tracked]:
        """Return the runs that are through, and are not logged with the outcome that they have."""
        state = self.ledger.state
        runs = self.study.load_runs(state)
        judged = judgements(runs, state)
        through = [run for run in runs if run.state.stage == "done" and not run.state.awaits_comparison]
        outcomes = {run.number: outcome_of(run, judged) for run in through}
        due = [run for run in through if state.tracked.get(run.number) != outcomes[run.number]]
        return [self._tracked(run, outcomes[run.number]) for run in due]

    def _tracked(self, run: Run, outcome: str) -> Tracked:
        started, verdict = self.ledger.state.started, run.state.verdict
        assert verdict
        config = {
            **started.fixed.model_dump(mode="json"),
            "idea": started.idea,
            "title": run.state.proposal.title,
            "outcome": outcome,
            "verdict": f"{verdict.name}: {verdict.evidence}",
            "settings": run.info.training.settings if run.info and run.info.training else {},
        }
        return Tracked(
            number=run.number,
            outcome=outcome,
            again=run.number in self.ledger.state.tracked,
            config=config,
            rows=[figures(row) for row in run.metrics()],
            results=results_of(run),
        )


def outcome_of(run: Run, judged: Mapping[int, Judgement]) -> str:
    """Return the word for what came of a run that is through."""
    assert run.state.verdict
    if not run.state.verdict.ok:
        return run.state.verdict.name
    if run.number == 0:
        return "baseline"
    return judged[run.number].outcome if run.number in judged else "not comparable"


def figures(row: MetricsRow) -> dict[str, float]:
    """Return the figures of a line of metrics.jsonl, those of the experiment's own as own/NAME."""
    named = row.model_dump(exclude={"own"}) | {f"own/{name}": value for name, value in row.own.items()}
    return {name: value for name, value in named.items() if value is not None}


def results_of(run: Run) -> dict[str, float]:
    """Return a run's final results by the names of METRICS, its own measures, and differences from the baseline."""
    if run.info is None:
        return {}
    found: dict[str, Any] = {name: run.info.metric(name) for name in METRICS}
    found |= {f"own/{name}": value for name, value in run.info.analysis.items()}
    compared = run.info.comparison.metrics if run.info.comparison else {}
    found |= {f"difference/{name}": metric.difference for name, metric in compared.items()}
    return {name: value for name, value in found.items() if value is not None}


def _ask(request: Request) -> Answer:
    """Have the program log runs. What goes wrong is in its answer."""
    with tempfile.TemporaryDirectory(prefix="sae-agent-") as name:
        folder = Path(name)
        log = folder / "log"
        (folder / REQUEST).write_text(request.model_dump_json())
        ended = process.run(
            [*PROGRAM, str(folder)],
            cwd=folder,
            env=process.child_environment({}, VARIABLES),
            stdout=log,
            stderr=log,
            timeout=SECONDS,
            watchdogs=[LogCap(log)],
        )
        try:
            answer = Answer.model_validate_json(read_plain(folder / ANSWER, MIB))
        except (BadFile, FileNotFoundError, ValueError):
            answer = Answer()
        failure = process.exit_verdict(ended, log)
        return answer.model_copy(update={"error": failure.evidence}) if failure and not answer.error else answer
