"""The closing table: every headline metric of several studies' runs at matched L0, over at least three seeds each.

    python benchmarks/ideas.py OUT_DIR STUDY:RUN [STUDY:RUN ...] [--seeds 3] [--evals core,...]

The studies must have the same fixed settings; a STUDY is a directory under runs/. Each run is trained again with other
seeds (two at a time, one thread each; what OUT_DIR holds is not trained again), and everything is scored afresh: the
figures of core and of the ground truth on the test text, which no choice was made on, the others on their own data.
Prints two tables in Markdown: differences from the baseline at the run's own L0, and, where one of the runs is of
matryoshka_sae, from that; with 95% intervals. Writes OUT_DIR/table.json.
"""

import argparse
import itertools
import json
import math
import runpy
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
from agent.comparison import judgement, matching, significance
from agent.comparison.baselines import Baselines
from agent.comparison.matching import all_metrics
from agent.lab import results
from agent.lab.defaults import is_world
from agent.lab.evaluation import scoring
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
ON_TEST = ("core", "synthetic")  # the families that have text, or samples, of their own for it
REFERENCE = "matryoshka_sae"


@dataclass(frozen=True)
class Trained:
    """A run of a study with all its seeds, as they were scored."""

    idea: str
    title: str
    infos: list[FinalInfo]
    differences: dict[str, MetricComparison]  # from the baseline at matched L0, over the seeds
    stability: tuple[float, float]  # see `stability`


class Scorer:
    """One evaluator for everything on one model; a score is kept in OUT_DIR and not taken twice."""

    def __init__(self, out: Path, started: StudyStarted, evals: str) -> None:
        fixed, self.out = started.fixed, out
        world = is_world(fixed.model)
        self.evaluator = (WorldEvaluator if world else Evaluator)(fixed.model, fixed.hook_name)
        self.evals = tuple(family for family in parse_evals(evals) if suits(family, world))

    def score(self, run_dir: Path, name: str, analysis: Path | None = None) -> FinalInfo:
        """All families, with what the test text says in the place of what the development text says."""
        kept = self.out / f"{name}.json"
        if not kept.exists():
            info = scoring.score(self.evaluator, Score(run_dir=run_dir, evals=self.evals, analysis=analysis))
            on_test = tuple(family for family in self.evals if family in ON_TEST)
            tested = scoring.score(self.evaluator, Score(run_dir=run_dir, evals=on_test, split="test"))
            info.core, info.latents, info.split = tested.core, tested.latents, "test"
            info.evaluations |= tested.evaluations
            assert info.verdict.ok, (name, info.verdict)
            assert not info.errors, (name, info.errors)
            results.write(self.out, info, kept.name)
        return results.read(self.out, kept.name)

    def live_rows(self, run_dir: Path) -> "np.ndarray":
        """Decoder rows `[n, d_in]` of the latents that fire on the test text or samples."""
        held_out = self.evaluator.held_out("test")
        sae = self.evaluator.load_checkpoint(run_dir, held_out)
        with torch.no_grad():
            fired = torch.stack([(sae.encode(x) != 0).any(0) for x in held_out.activations.split(ROWS)]).any(0)
        return sae.W_dec[fired].float().cpu().numpy()


def seeds_of(out: Path, study: Study, state: State, number: int, seeds: int) -> list[tuple[str, Path]]:
    """The run itself, its fresh seeds where the study has them, and as many more as are wanted."""
    run_dir = study.run_dir(number)
    fresh = [study.directory / f"run_{number}_seed_{seed}" for seed in state.replicates.get(number, {})]
    found = [(f"{study.name}-{each.name}", each) for each in [run_dir, *fresh][:seeds]]
    more = [(f"{study.name}-run_{number}_seed_{seed}", seed) for seed in range(1, 1 + seeds - len(found))]
    with ThreadPoolExecutor(2) as two:
        trained = list(two.map(lambda each: train(run_dir / "experiment.py", out / each[0], each[1]), more))
    return found + [(name, path) for (name, _), path in zip(more, trained, strict=True)]


def stability(scorer: Scorer, run_dirs: Sequence[Path]) -> tuple[float, float]:
    """How alike the live features of several seeds are: absorption_prevention_sae's matched cosine, and the same with
    the dimensions of one of the two shuffled; each the mean over all pairs."""
    drawing = runpy.run_path(str(TEMPLATES / "ideas/absorption_prevention_sae/figures.py"))
    pairs = itertools.combinations([scorer.live_rows(run_dir) for run_dir in run_dirs], 2)
    found, shuffled = zip(*(drawing["matched_cosine"](a, b) for a, b in pairs), strict=True)
    return statistics.mean(found), statistics.mean(shuffled)


def against(reference: Trained, other: Trained, metric: str) -> tuple[float, float] | None:
    """The difference of two runs' differences from the baseline, and the half-width of its 95% interval by Welch.

    What both have from the baselines is in both, so only the spread of their own seeds counts.
    """
    sides = [each.differences.get(metric) for each in (other, reference)]
    if None in sides:
        return None
    a, b = (each for each in sides if each)
    parts = [(each.noise**2 / len(t.infos), each.df) for each, t in ((a, other), (b, reference))]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / free for part, free in parts)
    return a.difference - b.difference, float(stdtrit(df, 1 - significance.ALPHA / 2)) * math.sqrt(variance)


def table(trained: Sequence[Trained], cells: dict[str, list[str]], first: str) -> str:
    head = ["metric", first, *(f"{each.idea}: {each.title}" for each in trained)]
    lines = [head, ["---"] * len(head), *([METRICS[name].title, *row] for name, row in cells.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(name: str, difference: float, half_width: float) -> str:
    digits = METRICS[name].digits
    return f"{difference:+.{digits}f} ± {half_width:.{digits}f}"


def beside_baseline(
    scorer: Scorer, study: Study, own: State, number: int, baselines: Sequence[Baseline], seeds: int
) -> Trained:
    """A run with all its seeds, at matched L0."""
    analysis = ideas.load(own.started.idea).analysis
    paths = seeds_of(scorer.out, study, own, number, seeds)
    infos = [scorer.score(path, name, analysis) for name, path in paths]
    compared = [matching.compare(info, baselines) for info in infos]
    names = [name for name in headline(infos) if all(name in each.metrics for each in compared)]
    differences = {name: judgement.pool_fresh_seeds([each.metrics[name] for each in compared]) for name in names}
    title = study.load_runs(own)[number].state.proposal.title
    return Trained(own.started.idea, title, infos, differences, stability(scorer, [path for _, path in paths]))


def scored_baselines(
    scorer: Scorer, study: Study, states: Sequence[State]
) -> tuple[list[Baseline], tuple[float, float]]:
    """Every baseline that one of the studies rests on, and the stability of those at the baseline's own K."""
    stored = Baselines(study, states[0].started, None)  # type: ignore[arg-type]  # nothing is trained with it
    found, own = [], []
    for k, seed in sorted({(b.k, b.seed) for state in states for b in state.baselines}):
        run_dir = stored.cached_run(k, seed)
        assert run_dir, f"the baseline with K {k:g}, seed {seed} is no longer in the cache"
        info = scorer.score(run_dir, f"baseline_k{k:g}_seed{seed}")
        found.append(Baseline(k=k, seed=seed, figures=all_metrics(info)))
        if k == stored.k:
            own.append(run_dir)
    return found, stability(scorer, own)


def tell(
    baselines: Sequence[Baseline], stable: tuple[float, float], trained: Sequence[Trained], model: str, seeds: int
) -> None:
    """Print both tables; `stable` is the baselines' stability."""
    own = matching.reseeded_level(baselines)
    metrics = [name for name in headline([info for each in trained for info in each.infos]) if own.values(name)]
    cells: dict[str, list[str]] = {}
    for name in metrics:
        mean, deviation = matching.mean_and_deviation(own.values(name) or [])
        digits = METRICS[name].digits
        compared = [each.differences.get(name) for each in trained]
        told = [shown(name, found.difference, found.half_width) if found else "" for found in compared]
        cells[name] = [f"{mean:.{digits}f} (sd {deviation:.{digits}f})", *told]
    print(f"{model}: differences from the baseline at the run's own L0, {seeds} seeds each\n")
    print(table(trained, cells, f"baseline, {len(own.baselines)} seeds"))
    for i, title in enumerate(("matched decoder cosine between seeds", "the same, dimensions shuffled")):
        cosines = [f"{each[i]:.3f}" for each in (stable, *(run.stability for run in trained))]
        print("| " + " | ".join([title, *cosines]) + " |")
    reference = next((each for each in trained if each.idea == REFERENCE), None)
    if reference:
        others = [each for each in trained if each is not reference]
        for name in metrics:
            pairs = [against(reference, each, name) for each in others]
            cells[name] = ["0", *(shown(name, *pair) if pair else "" for pair in pairs)]
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
    given: list[tuple[Study, State, int]] = []
    for each in args.runs:
        path, _, number = each.rpartition(":")
        found = find_study(Path(path))
        assert found, f"{path} is no study"
        given.append((*found, int(number)))
    study, first, _ = given[0]
    settings = [state.started.fixed.with_changes(evals="quick") for _, state, _ in given]
    assert all(each == settings[0] for each in settings), f"the studies' fixed settings differ: {settings}"
    scorer = Scorer(out, first.started, args.evals)
    baselines, stable = scored_baselines(scorer, study, [state for _, state, _ in given])
    trained = [beside_baseline(scorer, *each, baselines, args.seeds) for each in given]
    tell(baselines, stable, trained, first.started.fixed.model, args.seeds)
    record = {
        f"{each.idea}: {each.title}": {
            "differences": {name: found.model_dump() for name, found in each.differences.items()},
            "own measures, by seed": {n: [info.analysis.get(n) for info in each.infos] for n in each.infos[0].analysis},
        }
        for each in trained
    }
    (out / "table.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
