"""Measure how often the front of a baseline with an L1 coefficient errs: the last tables of docs/calibration.md.

    python benchmarks/coefficient_front.py [--train OUT_DIR]

With --train it first trains ReLU + L1 on synth2k (128,000 samples) with five coefficients, one of them with five seeds,
and scores each: benchmarks/coefficient_front.json. Studies are then simulated: true curves through these trainings,
normal noise of the measured size in L0 and in the metric.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calibration import NEARLY_ZERO, share, table
from training import train

from agent import ideas
from agent.comparison.arbiter import OnTest
from agent.comparison.fitted_front import STEP, FittedFront
from agent.comparison.judgement import FRESH_SEEDS, Goal, judge
from agent.comparison.matching import all_metrics
from agent.comparison.significance import compare_to_reference
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.metrics import METRICS
from agent.lab.results import Comparison, MetricComparison
from agent.study.records import Baseline

TABLE = Path(__file__).with_suffix(".json")
OWN = 2.0
FIXED = Fixed(model="synth2k", baseline="relu", l1_coefficient=OWN, tokens=128_000, learning_rate=2e-3)
COEFFICIENTS = (0.889, 1.33, OWN, 3.0, 4.5)
SEEDS = {OWN: 5}
METRICS_HERE = ("explained_variance_centered", "f1")
MEASURED = 4  # degree of the curve through all trainings
RATIOS = (1.15, 1.25, 1.5)  # of neighbouring coefficients
NAMES = {2: "quadratic", MEASURED: "as measured"}
DRAWS, STUDIES, RUNS = 2000, 1000, 5


def trainings(out: Path) -> list[Baseline]:
    """Train and score what a study needs and what it is held against; each is done once."""
    pairs = [(k, seed) for k in COEFFICIENTS for seed in range(SEEDS.get(k, 1))]
    run_dirs = []
    for k, seed in pairs:
        script = out / f"c{k:g}_seed{seed}.py"
        script.write_text(ideas.render_baseline(FIXED.with_changes(seed=seed), k))
        run_dirs.append(train(script, out / script.stem))
    unscored = [str(run_dir) for run_dir in run_dirs if not (run_dir / "final_info.json").exists()]
    if unscored:
        subprocess.run([sys.executable, "-P", "-m", "agent.lab.evaluation", *unscored], check=True)
    figures = [all_metrics(results.read(run_dir)) for run_dir in run_dirs]
    return [Baseline(k=k, seed=seed, figures=each) for (k, seed), each in zip(pairs, figures, strict=True)]


@dataclass(frozen=True)
class Truth:
    """Trainings as they are drawn: a metric over log L0, and what seeds differ by."""

    curve: Callable[[float], float]
    log_l0: Callable[[float], float]  # by log coefficient
    noise: float  # of the metric about the curve
    l0_noise: float  # of log L0 at one coefficient

    def train(self, draw: random.Random, metric: str, k: float, seed: int = 0) -> Baseline:
        x = self.log_l0(math.log(k)) + draw.gauss(0, self.l0_noise)
        return Baseline(k=k, seed=seed, figures={"l0": math.exp(x), metric: self.curve(x) + draw.gauss(0, self.noise)})

    def front(self, draw: random.Random, metric: str, ratio: float) -> FittedFront:
        """Return the front of a study whose neighbouring coefficients differ by this ratio."""
        ladder = [self.train(draw, metric, OWN * ratio**power) for power in range(-2, 3)]
        return FittedFront([*ladder, *(self.train(draw, metric, OWN, seed) for seed in range(1, 5))])

    def within(self, draw: random.Random, metric: str, front: FittedFront, part: tuple[float, float]) -> Baseline:
        """Return a training whose L0 lies in a part of the front's range, by log L0."""
        low, high = map(math.log, front.range)
        x = low + (high - low) * draw.uniform(*part)
        return Baseline(k=OWN, seed=9, figures={"l0": math.exp(x), metric: self.curve(x) + draw.gauss(0, self.noise)})


def polynomial(trained: Sequence[Baseline], metric: str, degree: int) -> Callable[[float], float]:
    """Return a metric as a polynomial in log L0 through trainings, by least squares."""
    x = [math.log(each.l0) for each in trained]
    weights = np.polyfit(x, [each.figures[metric] or math.nan for each in trained], degree)
    return lambda at: float(np.polyval(weights, at))


def truth_of(trained: Sequence[Baseline], metric: str, degree: int) -> Truth:
    """Return the truth that trainings suggest, with a curve of this degree."""
    curve = polynomial(trained, metric, degree)
    rests = [(each.figures[metric] or math.nan) - curve(math.log(each.l0)) for each in trained]
    noise = math.sqrt(sum(rest**2 for rest in rests) / (len(rests) - degree - 1))
    ks, x = [math.log(each.k) for each in trained], [math.log(each.l0) for each in trained]
    weights = np.polyfit(ks, x, 2)
    own = [math.log(each.l0) for each in trained if each.k == OWN]
    return Truth(curve, lambda k: float(np.polyval(weights, k)), noise, statistics.stdev(own))


def compared(front: FittedFront, metric: str, run: Baseline) -> MetricComparison:
    there, value = front.read(metric, run.l0), run.figures[metric]
    assert there
    assert value is not None
    return compare_to_reference(value, there.value, there.noise, there.error, there.df)


def false_positives(truth: Truth, metric: str, ratio: float, part: tuple[float, float]) -> tuple[int, float]:
    """Return in how many of DRAWS studies a run without any effect lies outside its 95% interval, and the median half
    width of that."""
    draw, runs = random.Random(0), []
    for _ in range(DRAWS):
        front = truth.front(draw, metric, ratio)
        runs.append(compared(front, metric, truth.within(draw, metric, front, part)))
    return sum(abs(run.difference) > run.half_width for run in runs), statistics.median(run.half_width for run in runs)


def misfit(truth: Truth, metric: str, ratio: float) -> float:
    """Return the largest distance of the front from the true curve if there were no noise."""
    silent = Truth(truth.curve, truth.log_l0, 0.0, 0.0)
    front = silent.front(random.Random(0), metric, ratio)
    low, high = map(math.log, front.range)
    at = [low + (high - low) * i / 200 for i in range(201)]
    return max(abs((front.read_near(metric, math.exp(x)) or math.nan) - truth.curve(x)) for x in at)


def placebo(truth: Truth, metric: str) -> Counter[str]:
    """Return how many placebo studies of RUNS runs claim something, without a smallest effect or a test text."""
    draw, counts, goal = random.Random(0), Counter[str](), Goal(metric, NEARLY_ZERO)

    def comparison(front: FittedFront) -> Comparison:
        run = truth.within(draw, metric, front, (0, 1))
        return Comparison(levels=[OWN], seeds=front.seeds, metrics={metric: compared(front, metric, run)})

    for _ in range(STUDIES):
        front = truth.front(draw, metric, STEP)
        runs = {run: comparison(front) for run in range(RUNS)}
        first = judge(runs, goal, {}, {})
        winners = [run for run in first if first[run].outcome == "unconfirmed"]
        fresh = {run: [comparison(front) for _ in range(FRESH_SEEDS)] for run in winners}
        upheld = {run: OnTest(sum(each.metrics[metric].difference for each in fresh[run])) for run in winners}
        outcomes = {each.outcome for each in judge(runs, goal, fresh, upheld).values()}
        counts["better"] += "better" in outcomes
        counts["worse"] += "worse" in outcomes
        counts["first stage"] += bool(winners)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="OUT_DIR")
    out = parser.parse_args().train
    if out:
        out.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps([each.model_dump() for each in trainings(out)], indent=1) + "\n")
    trained = [Baseline.model_validate(each) for each in json.loads(TABLE.read_text())]
    by_l0 = sorted(trained, key=lambda each: each.l0)
    spread = truth_of(trained, METRICS_HERE[0], MEASURED).l0_noise
    print(f"{len(trained)} trainings; L0 by coefficient: {', '.join(f'{e.k:g}: {e.l0:.2f}' for e in by_l0)}")
    print(f"seeds at coefficient {OWN:g} differ in L0 by {math.expm1(spread):.1%} (standard deviation)")
    for metric in METRICS_HERE:
        seeds = statistics.stdev(each.figures[metric] or math.nan for each in trained if each.k == OWN)
        front = compared(FittedFront(trained), metric, by_l0[len(by_l0) // 2]).noise
        print(f"{METRICS[metric].title}: standard deviation {seeds:.5f} of seeds, {front:.5f} about one front")
    rows = []
    for metric in METRICS_HERE:
        for degree, ratio in ((2, STEP), *((MEASURED, ratio) for ratio in RATIOS)):
            truth = truth_of(trained, metric, degree)
            parts = ((0.4, 0.6), (0.0, 1.0), (0.0, 0.1), (0.9, 1.0))
            found = [false_positives(truth, metric, ratio, part) for part in parts]
            rates = [share(count, DRAWS) for count, _ in found]
            lost = misfit(truth, metric, ratio)
            far = f"{lost:.5f} = {lost / truth.noise:.1f} s"
            rows.append(
                [METRICS[metric].title, NAMES[degree], f"{ratio:g}", far, f"{found[0][1] / truth.noise:.1f} s", *rates]
            )
    head = [
        "metric",
        "true curve",
        "ratio",
        "misfit",
        "half width",
        "middle fifth",
        "anywhere",
        "lowest tenth",
        "highest tenth",
    ]
    table(f"{DRAWS} runs without effect: outside of their 95% interval, by the place of their L0", head, rows)
    rows = []
    for metric in METRICS_HERE:
        for degree, name in NAMES.items():
            counts = placebo(truth_of(trained, metric, degree), metric)
            shares = [share(counts[each], STUDIES) for each in ("better", "worse", "first stage")]
            rows.append([METRICS[metric].title, name, *shares])
    head = ["primary metric", "true curve", "claims better", "claims worse", "better, without fresh seeds"]
    table(f"{STUDIES} placebo studies of {RUNS} runs, smallest effect nearly 0, without the test text", head, rows)


if __name__ == "__main__":
    main()
