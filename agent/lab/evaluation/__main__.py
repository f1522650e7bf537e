"""The evaluator as a program: by hand for the run directories given, or for a driver that sends requests on stdin.

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

from agent.lab import features, memory
from agent.lab.defaults import is_world
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue, requests
from agent.lab.evaluation.requests import AnyRequest, KeepFeatures, Score, TrySentinels
from agent.lab.exits import one_line_errors
from agent.lab.features import Features
from agent.lab.metrics import METRICS
from agent.lab.progress import notify, stage_progress
from agent.lab.results import FinalInfo, Sentinels, headline, write
from agent.lab.verdicts import Verdict

if TYPE_CHECKING:
    from agent.lab.checkpoint import Header
    from agent.lab.evaluation.evaluator import Evaluator

LOADING_STAGES = 3  # libraries, model, checkpoint
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
        with one_line_errors("the current request has no result"):
            handle_requests(map(requests.parse_request, sys.stdin))
    else:
        run_dirs: list[Path] = [path.absolute() for path in args.run_dirs]
        with one_line_errors(f"evaluate again with python -P -m agent.lab.evaluation {' '.join(map(str, run_dirs))}"):
            catalogue.parse_evals(args.evals)  # an unknown name is refused before anything is scored
            handle_requests(Score(run_dir=path, evals=_resolve_evals(path, args.evals)) for path in run_dirs)


def handle_requests(stream: Iterable[AnyRequest]) -> None:
    """Write the result file of each request. Evaluators are reused. Raises UserError."""
    evaluators: dict[tuple[str, str, str], Evaluator] = {}
    for request in stream:
        if not request.run_dir.is_dir():
            raise UserError(f"{request.run_dir} is not a run directory")
        answer(request, evaluators)
        memory.give_back()  # until the next request a training needs it


def answer(request: AnyRequest, evaluators: "dict[tuple[str, str, str], Evaluator]") -> None:
    """Write the result file of a request. Raises UserError."""
    result = handle_request(request, evaluators)
    if isinstance(result, Features):
        features.write(request.run_dir, result)
        return
    write(request.run_dir, result, request.out)
    if isinstance(result, FinalInfo):
        print_headline(result)


def handle_request(
    request: AnyRequest, evaluators: "dict[tuple[str, str, str], Evaluator]"
) -> FinalInfo | Sentinels | Features:
    """Return the result of a request, by the evaluator of the run's (model, hook, text), loaded if need be.

    Raises UserError.
    """
    with stage_progress("evaluating", LOADING_STAGES + _scoring_stages(request)) as progress:
        from agent.lab import checkpoint
        from agent.lab.evaluation import keep_features, scoring, sentinels
        from agent.lab.evaluation.evaluator import Evaluator
        from agent.lab.evaluation.world_evaluator import WorldEvaluator

        progress("libraries")
        try:
            header = checkpoint.read_header(request.run_dir / "checkpoint")
        except checkpoint.CheckpointError as error:
            if not isinstance(request, Score):
                raise
            return scoring.bad_checkpoint(error, request.split)
        if difference := _another_subject(header, request):
            if not isinstance(request, Score):
                raise UserError(f"{request.run_dir}: {difference}")
            return FinalInfo(verdict=Verdict(name="not_comparable", evidence=difference), split=request.split)
        if isinstance(request, Score) and not request.slice:
            progress.count -= sum(not catalogue.suits(family, is_world(header.model)) for family in request.evals)
        # An SAE that was trained elsewhere is scored on whatever text is asked for.
        key = (header.model, header.hook_name, header.text if header.training else request.text or "")
        if key not in evaluators:
            evaluators[key] = (WorldEvaluator if is_world(header.model) else Evaluator)(*key)
        progress("model")
        if isinstance(request, Score):
            return scoring.score(evaluators[key], request, progress)
        if isinstance(request, KeepFeatures):
            return keep_features.keep(evaluators[key], request, progress)
        return sentinels.check_evaluator(evaluators[key], request.run_dir, progress)


def _another_subject(header: "Header", request: AnyRequest) -> str:
    """Return how a header's model, hook or text differs from the request's, or "". None is loaded or looked for."""
    from agent.lab import models

    if request.model is not None and header.model not in (request.model, models.canonical_name(request.model)):
        return f"its header names the model {header.model[:100]}, the study's is {request.model}"
    if request.hook_name is not None and header.hook_name != request.hook_name:
        return f"its header names the hook {header.hook_name[:100]}, the study's is {request.hook_name}"
    if request.text is not None and header.training and header.text != request.text:
        return f"its header names the text {header.text[:100]!r}, the study's is {request.text!r}"
    return ""


def _scoring_stages(request: AnyRequest) -> int:
    """Count the families, the random floor and the idea's own figures, or the sentinels, or the text."""
    if isinstance(request, KeepFeatures):
        return 1
    if isinstance(request, TrySentinels):
        return SENTINELS
    return (1 if request.slice else len(request.evals) + 1) + bool(request.analysis)


def _resolve_evals(run_dir: Path, evals: str) -> tuple[str, ...]:
    """Return the families that can score a run, and print those of a tier that cannot. Raises UserError."""
    from agent.lab import checkpoint
    from agent.lab.evaluation import doctor

    try:
        header = checkpoint.read_header(run_dir / "checkpoint")
    except checkpoint.CheckpointError:
        return requests.QUICK  # nothing is scored: the verdict is bad_checkpoint
    names, left_out = doctor.resolve_families(doctor.eval_target(header.model, header.hook_name, header.text), evals)
    for name, reason in left_out.items():
        notify(f"left out of {evals}: {name}: {reason}")
    return names


def print_headline(info: FinalInfo) -> None:
    """Print the verdict and the headline metrics as greppable lines."""
    print(f"verdict: {info.verdict.name}")
    if not info.verdict.ok:
        print(f"evidence: {info.verdict.evidence}")
    for name in headline([info]):
        if (value := info.metric(name)) is not None:
            print(f"{name}: {value:.{METRICS[name].digits}f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
