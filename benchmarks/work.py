"""Measure the work of a row in each idea's steps, in the baseline's: CPU seconds of whole trainings on tiny-lm.

    python benchmarks/work.py [TOKENS] [STEPS]

TOKENS are 300,000 by default, STEPS the last so many steps of each plan, by default 2. Loading what a training needs
takes some 5 CPU seconds of each, so the ratios of longer trainings lie further from 1.
"""

import sys
import tempfile
from pathlib import Path

from training import prepared, slot_of, train_in

from agent import ideas
from agent.ideas import Fixed
from agent.running.sandbox import settle
from agent.study import workspace
from agent.study.agreement import work_ratio

ROOT = Path(__file__).resolve().parent.parent


def main(tokens: int, steps: int) -> None:
    fixed = Fixed(tokens=tokens, evals="core")
    sources = {"baseline": ideas.render_baseline(fixed)}
    for path in sorted((ROOT / "templates/ideas").glob("*/idea.yaml")):
        idea = ideas.load(path.parent.name)
        sources |= {f"{idea.name} {step.name}": ideas.render_step(idea, step, fixed) for step in idea.plan[-steps:]}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        lab = prepared(root, fixed)
        study = workspace.create_study(root, "work")
        baseline = None
        with slot_of(study, fixed, lab, settle("auto")) as slot:
            for number, (name, source) in enumerate(sources.items()):
                work = train_in(slot, source, study.directory / f"run_{number}", timeout=1800)
                baseline = baseline or work
                print(f"{name}: {work.cpu_seconds:.1f} CPU s, {work_ratio(work, baseline):.2f}", flush=True)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [300_000, 2][len(arguments) :]))
