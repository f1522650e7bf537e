"""Compare runs of several studies in one table: every headline metric at matched L0, over at least three seeds each.

    python benchmarks/ideas.py OUT_DIR STUDY:RUN [STUDY:RUN ...] [--seeds 3] [--evals core,...]

The studies must have the same fixed settings; a STUDY is a directory under runs/. Each run is trained again with other
seeds (two at a time, one thread each; runs already in OUT_DIR are not repeated), and everything is scored again: core
and the ground truth on the test text, on which no choice was made, the other families on their own data. Prints two
tables in Markdown with 95% intervals: differences from the baseline at the run's own L0 and, if one of the runs is of
matryoshka_sae, differences from that run. Writes OUT_DIR/table.json.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit
from training import train

from agent import TEMPLATES, ideas
from agent.comparison import curves, judgement, matching, significance
from agent.comparison.baselines import Baselines
from agent.comparison.matching import all_metrics
from agent.lab import results
from agent.lab.defaults import is_world
from agent.lab.evaluation import idea_files, scoring
from agent.lab.evaluation.catalogue import parse_evals, suits
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.idea_analysis import ROWS
from agent.lab.evaluation.requests import Score
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo, MetricComparison, headline
from agent.study.events import StudyStarted
from agent.study.records import Baseline
from agent.study.state import State
from agent.study.workspace import Study, find_study

if TYPE_CHECKING:
    import numpy as np

EVALS = "core,sparse_probing_sae_probes,sparse_probing,tpp,scr,forgetting,synthetic"
ON_TEST = ("core", "synthetic")  # families with test text, or test samples
REFERENCE = "matryoshka_sae"


@dataclass(frozen=True)
class SeededRun:
    """A run of a study, scored over all its seeds."""

    idea: str
    title: str
    infos: list[FinalInfo]
    differences: dict[str, MetricComparison]  # from the baseline at matched L0, over the seeds
    stability: tuple[float, float]  # see `stability`


class Scorer:
    """One evaluator for all runs on one model; scores are cached in OUT_DIR."""

    def __init__(self, out: Path, started: StudyStarted, evals: str) -> None:
        fixed, self.out = started.fixed, out
        world = is_world(fixed.model)
        self.evaluator = (WorldEvaluator if world else Evaluator)(fixed.model, fixed.hook_name)
        self.evals = tuple(family for family in parse_evals(evals) if suits(family, world))

    def score(self, run_dir: Path, name: str, analysis: Path | None = None) -> FinalInfo:
        """Return the results of all families, those of core and synthetic on the test text."""
        path = self.out / f"{name}.json"
        if not path.exists():
            info = scoring.score(self.evaluator, Score(run_dir=run_dir, evals=self.evals, analysis=analysis))
            on_test = tuple(family for family in self.evals if family in ON_TEST)
            tested = scoring.score(self.evaluator, Score(run_dir=run_dir, evals=on_test, split="test"))
            info.core, info.latents, info.split = tested.core, tested.latents, "test"
            info.evaluations |= tested.evaluations
            assert info.verdict.ok, (name, info.verdict)
            assert not info.errors, (name, info.errors)
            results.write(self.out, info, path.name)
        return results.read(self.out, path.name)

    def live_rows(self, run_dir: Path) -> "np.ndarray":
        """Return the decoder rows `[n, d_in]` of the latents that fire on the test text or samples."""
        held_out = self.evaluator.held_out("test")
        sae = self.evaluator.load_checkpoint(run_dir, held_out)
        with torch.no_grad():
            fired = torch.stack([(sae.encode(x) != 0).any(0) for x in held_out.activations.split(ROWS)]).any(0)
        return sae.W_dec[fired].float().cpu().numpy()


def seeds_of(out: Path, study: Study, state: State, number: int, seeds: int) -> list[tuple[str, Path]]:
    """Return names and directories of the run, its fresh seeds in the study, and newly trained ones, `seeds` in all."""
    run_dir = study.run_dir(number)
    fresh = [study.directory / f"run_{number}_seed_{seed}" for seed in state.replicates.get(number, {})]
    existing = [(f"{study.name}-{path.name}", path) for path in [run_dir, *fresh][:seeds]]
    more = [(f"{study.name}-run_{number}_seed_{seed}", seed) for seed in range(1, 1 + seeds - len(existing))]
    with ThreadPoolExecutor(2) as two:
        trained = list(two.map(lambda new: train(run_dir / "experiment.py", out / new[0], new[1]), more))
    return existing + [(name, path) for (name, _), path in zip(more, trained, strict=True)]


def stability(scorer: Scorer, run_dirs: Sequence[Path]) -> tuple[float, float]:
    """Return how alike the live features of several seeds are, as means over all pairs: absorption_prevention_sae's
    matched cosine, and the same with the dimensions of one of the two shuffled."""
    figures = idea_files.run_file(TEMPLATES / "ideas/absorption_prevention_sae/figures.py")
    pairs = itertools.combinations([scorer.live_rows(run_dir) for run_dir in run_dirs], 2)
    matched, shuffled = zip(*(figures["matched_cosine"](a, b) for a, b in pairs), strict=True)
    return statistics.mean(matched), statistics.mean(shuffled)


def difference_between(reference: SeededRun, other: SeededRun, metric: str) -> tuple[float, float] | None:
    """Return the difference of two runs' differences from the baseline, and the half-width of its 95% interval (Welch).

    The baselines' noise is the same in both and cancels, so only the spread of the runs' own seeds counts.
    """
    sides = [run.differences.get(metric) for run in (other, reference)]
    if None in sides:
        return None
    a, b = (side for side in sides if side)
    parts = [(side.noise**2 / len(run.infos), side.df) for side, run in ((a, other), (b, reference))]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / free for part, free in parts)
    return a.difference - b.difference, float(stdtrit(df, 1 - significance.ALPHA / 2)) * math.sqrt(variance)


def table(trained: Sequence[SeededRun], cells: dict[str, list[str]], first: str) -> str:
    head = ["metric", first, *(f"{run.idea}: {run.title}" for run in trained)]
    lines = [head, ["---"] * len(head), *([METRICS[name].title, *row] for name, row in cells.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(name: str, difference: float, half_width: float) -> str:
    digits = METRICS[name].digits
    return f"{difference:+.{digits}f} ± {half_width:.{digits}f}"


def compared_with_baselines(
    scorer: Scorer, study: Study, own: State, number: int, baselines: Sequence[Baseline], seeds: int
) -> SeededRun:
    """Score a run over all its seeds and compare it with the baselines at matched L0."""
    analysis = ideas.load(own.started.idea).analysis
    paths = seeds_of(scorer.out, study, own, number, seeds)
    infos = [scorer.score(path, name, analysis) for name, path in paths]
    compared = [matching.compare(info, curves.curve_of(own.started.fixed, baselines)) for info in infos]
    names = [name for name in headline(infos) if all(name in comparison.metrics for comparison in compared)]
    differences = {
        name: judgement.pool_fresh_seeds([comparison.metrics[name] for comparison in compared]) for name in names
    }
    title = study.load_runs(own)[number].state.proposal.title
    return SeededRun(own.started.idea, title, infos, differences, stability(scorer, [path for _, path in paths]))


def scored_baselines(
    scorer: Scorer, study: Study, states: Sequence[State]
) -> tuple[list[Baseline], tuple[float, float]]:
    """Return every baseline that one of the studies uses, and the stability of those at the baseline's own K."""
    stored = Baselines(study, states[0].started, None, None)  # type: ignore[arg-type]  # it trains nothing here
    scored, own = [], []
    for k, seed in sorted({(b.k, b.seed) for state in states for b in state.baselines}):
        run_dir = stored.entry(k, seed)
        assert run_dir.is_dir(), f"the baseline with K {k:g}, seed {seed} is no longer in the cache"
        info = scorer.score(run_dir, f"baseline_k{k:g}_seed{seed}")
        scored.append(Baseline(k=k, seed=seed, figures=all_metrics(info)))
        if k == stored.k:
            own.append(run_dir)
    return scored, stability(scorer, own)


def print_tables(
    baselines: Sequence[Baseline], stable: tuple[float, float], trained: Sequence[SeededRun], model: str, seeds: int
) -> None:
    """Print both tables; `stable` is the baselines' stability."""
    own = matching.reseeded_level(baselines)
    metrics = [name for name in headline([info for run in trained for info in run.infos]) if own.values(name)]
    cells: dict[str, list[str]] = {}
    for name in metrics:
        values = own.values(name) or []
        mean, deviation = significance.mean(values), significance.standard_deviation(values)
        digits = METRICS[name].digits
        compared = [run.differences.get(name) for run in trained]
        texts = [with_interval(name, metric.difference, metric.half_width) if metric else "" for metric in compared]
        cells[name] = [f"{mean:.{digits}f} (sd {deviation:.{digits}f})", *texts]
    print(f"{model}: differences from the baseline at the run's own L0, {seeds} seeds each\n")
    print(table(trained, cells, f"baseline, {len(own.baselines)} seeds"))
    for i, title in enumerate(("matched decoder cosine between seeds", "the same, dimensions shuffled")):
        cosines = [f"{pair[i]:.3f}" for pair in (stable, *(run.stability for run in trained))]
        print("| " + " | ".join([title, *cosines]) + " |")
    reference = next((run for run in trained if run.idea == REFERENCE), None)
    if reference:
        others = [run for run in trained if run is not reference]
        for name in metrics:
            pairs = [difference_between(reference, run, name) for run in others]
            cells[name] = ["0", *(with_interval(name, *pair) if pair else "" for pair in pairs)]
        print(f"\nthe same, as differences from {REFERENCE}: {reference.title}\n")
        print(table(others, cells, REFERENCE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("runs", nargs="+", metavar="STUDY:RUN")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evals", default=EVALS)
    args = parser.parse_args()
    out: Path = args.out_dir.absolute()
    out.mkdir(parents=True, exist_ok=True)
    requested: list[tuple[Study, State, int]] = []
    for argument in args.runs:
        path, _, number = argument.rpartition(":")
        match = find_study(Path(path))
        assert match, f"{path} is not a study's directory"
        requested.append((*match, int(number)))
    study, first, _ = requested[0]
    settings = [state.started.fixed.with_changes(evals="quick") for _, state, _ in requested]
    assert all(fixed == settings[0] for fixed in settings), f"the studies' fixed settings differ: {settings}"
    scorer = Scorer(out, first.started, args.evals)
    baselines, stable = scored_baselines(scorer, study, [state for _, state, _ in requested])
    trained = [compared_with_baselines(scorer, *run, baselines, args.seeds) for run in requested]
    print_tables(baselines, stable, trained, first.started.fixed.model, args.seeds)
    record = {
        f"{run.idea}: {run.title}": {
            "differences": {name: metric.model_dump() for name, metric in run.differences.items()},
            "own measures, by seed": {n: [info.analysis.get(n) for info in run.infos] for n in run.infos[0].analysis},
        }
        for run in trained
    }
    (out / "table.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
