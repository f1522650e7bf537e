"""The evaluator as a program: by hand for the run directories given, or for a driver that asks on stdin.

python -P -m agent.lab.evaluation RUN_DIR [RUN_DIR ...]    score checkpoints, write each run's final_info.json
python -P -m agent.lab.evaluation --serve                  answer requests (see requests.py), a line each, until EOF
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue, requests
from agent.lab.evaluation.requests import Score, TrySentinels
from agent.lab.exits import one_line_errors
from agent.lab.metrics import METRICS
from agent.lab.progress import notify, stage_progress
from agent.lab.results import FinalInfo, Sentinels, headline, write

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator

STAGES = 3  # libraries, model, checkpoint; then what is scored
SENTINELS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -P -m agent.lab.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR", help="a run with a checkpoint in it")
    parser.add_argument("--serve", action="store_true", help="read requests from stdin")
    parser.add_argument("--evals", default="quick", help="with RUN_DIR: families, or quick, standard, full")
    args = parser.parse_args()
    if args.serve == bool(args.run_dirs):
        parser.error("give run directories, or --serve and none")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if args.serve:
        with one_line_errors("the request under way has no answer"):
            answer(map(requests.parse_request, sys.stdin))
    else:
        run_dirs: list[Path] = [path.absolute() for path in args.run_dirs]
        with one_line_errors(f"evaluate again with python -P -m agent.lab.evaluation {' '.join(map(str, run_dirs))}"):
            catalogue.parse_evals(args.evals)  # refused at once where it names none
            answer(Score(run_dir=run_dir, evals=_settled(run_dir, args.evals)) for run_dir in run_dirs)


def answer(asked: Iterable[Score | TrySentinels]) -> None:
    """Answer each request with the file that it names. Evaluators are kept from one to the next. Raises UserError."""
    evaluators: dict[tuple[str, str], Evaluator] = {}
    for request in asked:
        if not request.run_dir.is_dir():
            raise UserError(f"{request.run_dir} is no run directory")
        result = one(request, evaluators)
        write(request.run_dir, result, request.out)
        if isinstance(result, FinalInfo):
            summarise(result)


def one(asked: Score | TrySentinels, evaluators: "dict[tuple[str, str], Evaluator]") -> FinalInfo | Sentinels:
    """One answer; an evaluator already made for the run's model and hook is used again. Raises UserError."""
    with stage_progress("evaluating", STAGES + (_count(asked) if isinstance(asked, Score) else SENTINELS)) as done:
        from agent.lab import checkpoint
        from agent.lab.evaluation import scoring, sentinels
        from agent.lab.evaluation.evaluator import Evaluator
        from agent.lab.evaluation.scoring import bad_checkpoint
        from agent.lab.evaluation.world_evaluator import WorldEvaluator

        done("libraries")
        try:
            header = checkpoint.read_header(asked.run_dir / "checkpoint")
        except checkpoint.CheckpointError as error:
            if isinstance(asked, TrySentinels):
                raise
            return bad_checkpoint(error, asked.split)
        if isinstance(asked, Score) and not asked.slice:
            done.count -= sum(not catalogue.suits(family, is_world(header.model)) for family in asked.evals)
        key = (header.model, header.hook_name)
        if key not in evaluators:
            evaluators[key] = (WorldEvaluator if is_world(header.model) else Evaluator)(*key)
        done("model")
        if isinstance(asked, Score):
            return scoring.score(evaluators[key], asked, done)
        return sentinels.check_evaluator(evaluators[key], asked.run_dir, done)


def _settled(run_dir: Path, asked: str) -> tuple[str, ...]:
    """The families that can score a run by hand; those of a tier that cannot are said. Raises UserError."""
    from agent.lab import checkpoint
    from agent.lab.evaluation import doctor

    try:
        header = checkpoint.read_header(run_dir / "checkpoint")
    except checkpoint.CheckpointError:
        return requests.QUICK  # its verdict says it all
    evals, left_out = doctor.resolve_families(doctor.eval_target(header.model, header.hook_name), asked)
    for name, why in left_out.items():
        notify(f"left out of {asked}: {name}: {why}")
    return evals


def _count(asked: Score) -> int:
    """What is scored: the families, the floor, the idea's own measures."""
    return (1 if asked.slice else len(asked.evals) + 1) + bool(asked.analysis)


def summarise(info: FinalInfo) -> None:
    """The headline as greppable lines."""
    print(f"verdict: {info.verdict.name}")
    if not info.verdict.ok:
        print(f"evidence: {info.verdict.evidence}")
    for name in headline([info]):
        if (value := info.metric(name)) is not None:
            print(f"{name}: {value:.{METRICS[name].digits}f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
