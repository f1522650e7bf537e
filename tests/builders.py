"""What tests build studies, runs and results from."""

import math
from pathlib import Path

from agent.ideas import Fixed
from agent.lab.evaluation.requests import QUICK
from agent.lab.results import Core, FinalInfo, Latents, Probing
from agent.lab.verdicts import MetricsRow, Verdict, VerdictName
from agent.study.events import Event, ProposalMade, RunCommitted, RunReserved, StudyStarted
from agent.study.records import Proposal
from agent.study.run_state import RunState
from agent.study.runs import Run

BASELINE = Proposal(name="baseline", title="Baseline", description="d", why="w", predictions={}, source="")
CHANGE = BASELINE.model_copy(
    update={"name": "c", "title": "A change", "predictions": {"ce_loss_score": "up", "l0": "same"}}
)
STARTED = StudyStarted(
    idea="mine",
    title="My idea",
    description="What it is.",
    hypothesis="It helps.",
    primary_metric="ce_loss_score",
    smallest_effect=0.005,
    fixed=Fixed(),
    evals=QUICK,
    ground="0123",
    max_runs=1,
    run_timeout=60,
)
OK = Verdict(name="ok", evidence="sound")
FIRST: list[Event] = [STARTED, ProposalMade(run=0, proposal=BASELINE), RunReserved(run=0)]
SECOND: list[Event] = [
    *FIRST,
    RunCommitted(run=0, verdict=OK),
    ProposalMade(run=1, proposal=CHANGE),
    RunReserved(run=1),
]


PROPOSAL = Proposal(
    name="p", title="A change", description="d", why="w", predictions={"l0": "same"}, source="print()\n"
)


def core(default: float | None = 0.8, **figures: float | None) -> Core:
    """Return core's figures, `default` where they are not given."""
    return Core.model_validate(dict.fromkeys(Core.model_fields, default) | {"tokens": 10} | figures)


def scored(l0: float | None, score: float | None) -> FinalInfo:
    """Return the results of a run with this L0 and CE-loss score."""
    return FinalInfo(verdict=OK, core=core(l0=l0, ce_loss_score=score))


def failed(verdict: VerdictName, evidence: str = "") -> FinalInfo:
    """Return the results of a run that does not count."""
    return FinalInfo(verdict=Verdict(name=verdict, evidence=evidence))


def measured(l0: float, ev: float, score: float, alive: float, auc: float) -> FinalInfo:
    """Return results with the headline figures of a language model."""
    return FinalInfo(
        verdict=OK,
        core=core(0.5, l0=l0, explained_variance_centered=ev, ce_loss_score=score, loss_added=5 * (1 - score)),
        latents=Latents.model_validate(dict.fromkeys(Latents.model_fields, 1.0) | {"alive_fraction": alive}),
        probing=Probing(auc={5: auc}, accuracy={}, random_auc={}, llm_auc=0.8, llm_accuracy=0.8, datasets=[]),
    )


def history(directory: Path, final: FinalInfo, loss: float = 40.0, tiered: bool = False) -> None:
    """Write a training history of 100 rows that ends as `final` says."""
    directory.mkdir(parents=True, exist_ok=True)
    l0, alive = final.metric("l0"), final.metric("alive_fraction")
    assert alive is not None
    rows = [
        MetricsRow(
            step=10 * i,
            tokens=15_000 * i,
            loss=loss / i**0.5,
            l0=l0,
            mse=1.0,
            alive_fraction=alive + (1 - alive) * math.exp(-i / 30),
            learning_rate=1e-3,
            grad_norm=1.0,
            seconds=float(i),
            own={f"tier_{tier}_l0": 8.0 / (tier + 1) - i / 100 for tier in range(3)} if tiered else {},
        )
        for i in range(1, 101)
    ]
    (directory / "metrics.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))


def run(directory: Path, number: int, title: str, info: FinalInfo | None) -> Run:
    """Return a run that is done, in a directory of the study's."""
    proposal = Proposal(name="p", title=title, description="d", why="w", predictions={}, source="")
    return Run(RunState(number=number, proposal=proposal, stage="done"), directory / f"run_{number}", info)
