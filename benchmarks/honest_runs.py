"""Train and score small honest experiments that differ in many ways, and count those that the guards wrongly refuse.

    python benchmarks/honest_runs.py [RUNS]

Each run is a step of a shipped idea's plan, or the baseline, with constants drawn at random, on a small language model.
In every other pair of runs two busy processes take the cores, as jobs beside it would. Refused by mistake are runs that
are `implausible` or `not_comparable`; the work of a row is printed too. 200 runs take about an hour on two cores; exits
with 1 if any was refused.
"""

import multiprocessing
import random
import re
import runpy
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from training import prepared, slot_of, train_in

from agent import ideas
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.evaluation.requests import Score
from agent.lab.results import Work
from agent.running.sandbox import settle
from agent.running.slot import Slot
from agent.study import workspace
from agent.study.agreement import departure, work_ratio
from agent.study.outcomes import RunFailed
from agent.study.workspace import Study

ROOT = Path(__file__).resolve().parent.parent
HOOK, TOKENS, D_SAE = "blocks.1.hook_resid_post", 150_000, 128
IDEAS = sorted(path.parent.name for path in (ROOT / "templates/ideas").glob("*/idea.yaml"))
DRAWN = {  # constants of the baseline, as a proposer might change them
    "K": (6, 8, 10, 12),
    "BATCH": (256, 512, 1024, 2048),
    "LEARNING_RATE": (5e-4, 1e-3, 2e-3, 4e-3),
    "AUX_COEFFICIENT": (0.0, 1 / 64, 1 / 32, 1 / 8),
    "WARMUP": (0.01, 0.05, 0.2),
    "DECAY": (0.05, 0.2, 0.5),
}
REFUSALS = ("implausible", "not_comparable")


def main(runs: int) -> int:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = runpy.run_path(str(ROOT / "tests/small_lab.py"))["make_model"](root / "model")
        fixed = Fixed(model=str(model), hook_name=HOOK, tokens=TOKENS, d_sae=D_SAE, evals="core")
        lab = prepared(root, fixed)
        study = workspace.create_study(root, "honest")
        with slot_of(study, fixed, lab, settle("auto")) as slot:
            baseline = _run(study, slot, ideas.render_baseline(fixed), fixed, None, "baseline")
            outcomes = [
                _run(study, slot, _source(draw, fixed), fixed, baseline[1], f"run {number}", number % 4 > 1)
                for number in range(runs)
            ]
    counts = Counter(name for name, _, _ in outcomes)
    ratios = sorted(ratio for _, work, _ in outcomes if (ratio := work_ratio(work, baseline[1])))
    print("verdicts: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    quantiles = [f"{share:.0%} at most {ratios[int(share * (len(ratios) - 1))]:.2f}" for share in (0.5, 0.95, 1)]
    print(f"work of a row, in the baseline's: {', '.join(quantiles)}")
    for name, _, evidence in outcomes:
        if name in REFUSALS:
            print(f"refused: {name}: {evidence}")
    return int(any(counts[name] for name in REFUSALS))


def _source(draw: random.Random, fixed: Fixed) -> str:
    """Return a step of a plan, or the baseline, with some of the constants drawn anew."""
    if draw.random() < 0.4:
        source = ideas.render_baseline(fixed)
    else:
        idea = ideas.load(draw.choice(IDEAS))
        source = ideas.render_step(idea, draw.choice(idea.plan), fixed)
    for name in draw.sample(sorted(DRAWN), 3):
        source = re.sub(rf"(?m)^{name} = .*$", f"{name} = {draw.choice(DRAWN[name])!r}", source)
    return source


def _run(
    study: Study, slot: Slot, source: str, fixed: Fixed, baseline: Work | None, label: str, busy: bool = False
) -> tuple[str, Work | None, str]:
    """Train and score an experiment as a study does; print and return its verdict, its work and the evidence."""
    run_dir = study.directory / label.replace(" ", "_")
    try:
        with _busy_cores() if busy else nullcontext():
            work = train_in(slot, source, run_dir, timeout=600)
        slot.evaluate(Score(run_dir=run_dir, evals=("core",)), label, timeout=600)
    except RunFailed as failure:
        return _reported(label, failure.verdict.name, None, failure.verdict.evidence)
    info = results.read(run_dir)
    info.work = work
    if info.verdict.ok and (difference := departure(fixed, info, results.rows_stepped(run_dir), baseline)):
        return _reported(label, "not_comparable", work, difference)
    return _reported(label, info.verdict.name, work, info.verdict.evidence)


def _reported(label: str, name: str, work: Work | None, evidence: str) -> tuple[str, Work | None, str]:
    print(f"{label}: {name}: {evidence}", flush=True)
    return name, work, evidence


@contextmanager
def _busy_cores() -> Iterator[None]:
    burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(2)]
    for burner in burners:
        burner.start()
    yield
    for burner in burners:
        burner.kill()
        burner.join()


def _burn() -> None:
    while True:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
