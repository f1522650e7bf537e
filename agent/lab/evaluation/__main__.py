"""python -P -m agent.lab.evaluation RUN_DIR [RUN_DIR ...]: score checkpoints, write each run's final_info.json."""

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.ending import one_line
from agent.lab.errors import UserError
from agent.lab.progress import stages
from agent.lab.results import HEADLINE, METRICS, FinalInfo, write

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator

STAGES = 6  # import, model, checkpoint, core, floor, probing


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.evaluation", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="a run with a checkpoint in it")
    run_dirs: list[Path] = [path.absolute() for path in parser.parse_args().run_dirs]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    evaluators: dict[tuple[str, str], Evaluator] = {}
    again = f"evaluate again with python -P -m agent.lab.evaluation {' '.join(map(str, run_dirs))}"
    with one_line(again):
        for run_dir in run_dirs:
            info = evaluate(run_dir, evaluators)
            write(run_dir, info)
            summarise(info)


def evaluate(run_dir: Path, evaluators: "dict[tuple[str, str], Evaluator]") -> FinalInfo:
    """Score one run; evaluators already made for its model and hook are used again. Raises UserError."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is no run directory")
    with stages("evaluating", STAGES) as done:
        from agent.lab import checkpoint
        from agent.lab.evaluation.evaluator import Evaluator, bad_checkpoint

        done("libraries")
        try:
            header = checkpoint.read_header(run_dir / "checkpoint")
        except checkpoint.CheckpointError as error:
            return bad_checkpoint(error)
        key = (header.model, header.hook_name)
        if key not in evaluators:
            evaluators[key] = Evaluator(*key)
        done("model")
        return evaluators[key].evaluate(run_dir, done)


def summarise(info: FinalInfo) -> None:
    """The headline as greppable lines."""
    print(f"verdict: {info.verdict.name}")
    if not info.verdict.ok:
        print(f"evidence: {info.verdict.evidence}")
    for name in HEADLINE:
        if (value := info.metric(name)) is not None:
            print(f"{name}: {value:.{METRICS[name].digits}f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
