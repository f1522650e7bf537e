"""Measure how often the comparison makes false claims and finds true effects: the tables of docs/calibration.md.

    python benchmarks/calibration.py

Draws placebo studies, whose runs are all baselines, from benchmarks/reseeded_baselines.json and applies the comparison
that every study uses, fresh seeds and test text included. Takes some minutes; exits with 1 if more than 1% of the
placebo studies claim that a run is better, more than 5% that one is worse, or fewer than 95% find an effect of 1.5
times the smallest one.
"""

import json
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

from agent.comparison.arbiter import OnTest, mean_difference
from agent.comparison.brackets import Brackets
from agent.comparison.judgement import FRESH_SEEDS, Goal, Judgement, judge
from agent.comparison.matching import compare
from agent.comparison.significance import ALPHA, smallest_detectable
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Core, FinalInfo, Latents, Probing
from agent.lab.verdicts import Verdict
from agent.study.records import Baseline

POOL = Path(__file__).with_name("reseeded_baselines.json")
BOTH_TEXTS = Path(__file__).with_name("test_text.json")
STUDIES, SEEDS, RUNS = 1000, 5, 5
K, NEIGHBOURS = 16, (15, 17)
TOKENS, D_SAE = 1_500_000, 1024  # of the pool
PRIMARIES = ("ce_loss_score", "explained_variance_centered")
SMALLEST_EFFECT = 0.005
CLAIMS = {
    "better": "claims better",
    "worse": "claims worse",
    "fresh seeds": "better, without the test text",
    "first stage": "better, without fresh seeds",
}
MOST_BETTER, LEAST_FOUND = 0.01, 0.95  # shares of studies
POOLS = 10  # simulated
NEARLY_ZERO = 1e-9  # a smallest effect that leaves the decision to the statistics alone
IN_SMALLEST_EFFECTS = (0.5, 1, 1.5, 2, 3)
IN_NOISE = (2, 4, 6, 8, 12)
WORTH_FINDING = 1.5  # smallest effects

Pool = dict[int, list[Baseline]]  # K -> trainings that differ only in their seed


@dataclass(frozen=True)
class Effect:
    """A change of the primary metric that run 0 of a study has, on the development text and on the test text."""

    size: float = 0.0
    on_test: float = 1.0  # share of it
    of_detectable: bool = False  # `size` is in units of the smallest difference that the study is sure to detect


NO_EFFECT = Effect()


def test_noise(entries: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the standard deviation of the move from the development to the test text of trainings like the pool's."""
    like = [entry for entry in entries if (entry["tokens"], entry["d_sae"]) == (TOKENS, D_SAE)]
    moved = {metric: [entry["test"][metric] - entry["dev"][metric] for entry in like] for metric in PRIMARIES}
    return {metric: statistics.stdev(values) for metric, values in moved.items()}


TEST_NOISE = test_noise(json.loads(BOTH_TEXTS.read_text()))


def read_pool(entries: Iterable[dict[str, Any]]) -> Pool:
    pool: Pool = {}
    for entry in entries:
        pool.setdefault(entry["k"], []).append(Baseline.model_validate(entry))
    return pool


def simulated_pool(draw: random.Random, seeds: Mapping[int, int]) -> Pool:
    """Return so many trainings of each K, on an exact curve plus normal noise, with the primary metrics only."""

    def trained(k: int, seed: int) -> Baseline:
        l0 = k * math.exp(draw.gauss(0, 0.003))
        figures = {metric: 0.8 + 0.05 * math.log(l0 / K) + draw.gauss(0, 0.0004) for metric in PRIMARIES}
        return Baseline(k=k, seed=seed, figures=dict.fromkeys(HEADLINE) | {"l0": l0} | figures)

    return {k: [trained(k, seed) for seed in range(count)] for k, count in seeds.items()}


def as_run(figures: Mapping[str, float | None]) -> FinalInfo:
    """Return the results of a run with these figures."""
    core = dict.fromkeys(Core.model_fields) | {"tokens": 0}
    core |= {name: figures[name] for name in HEADLINE if name in core}
    latents = dict.fromkeys(Latents.model_fields) | {"alive_fraction": figures["alive_fraction"]}
    auc = {5: figures["probing_auc_5"]}
    return FinalInfo(
        verdict=Verdict(name="ok", evidence="a baseline"),
        core=Core.model_validate(core),
        latents=Latents.model_validate(latents),
        probing=Probing(auc=auc, accuracy={}, random_auc={}, llm_auc=None, llm_accuracy=None, datasets=[]),
    )


def study(
    pool: Pool, draw: random.Random, goal: Goal, effect: Effect = NO_EFFECT
) -> tuple[dict[int, Judgement], dict[int, Judgement]]:
    """Return one study's judgements before its winners' fresh seeds and after these and the test text.

    No training is used twice within a study.
    """
    primary = goal.primary
    seeds = iter(draw.sample(pool[K], SEEDS + RUNS * (1 + FRESH_SEEDS)))
    baselines = [next(seeds) for _ in range(SEEDS)] + [draw.choice(pool[k]) for k in NEIGHBOURS]
    size = effect.size
    if effect.of_detectable:
        size *= smallest_detectable(compare(as_run(pool[K][0].figures), Brackets(baselines)).metrics[primary], RUNS)

    def trained(run: int) -> Baseline:
        return shifted(next(seeds), primary, size if run == 0 else 0.0)

    def on_test(training: Baseline, run: int | None = None) -> Baseline:
        lost = size * (1 - effect.on_test) if run == 0 else 0.0
        return shifted(training, primary, draw.gauss(0, TEST_NOISE[primary]) - lost)

    comparisons = {run: compare(as_run(trained(run).figures), Brackets(baselines)) for run in range(RUNS)}
    first = judge(comparisons, goal, {}, {})
    winners = [run for run in first if first[run].outcome == "unconfirmed"]
    fresh = {run: [trained(run) for _ in range(FRESH_SEEDS)] for run in winners}
    compared = {run: [compare(as_run(seed.figures), Brackets(baselines)) for seed in own] for run, own in fresh.items()}
    there = [on_test(baseline) for baseline in baselines] if winners else []
    tested: dict[int, OnTest] = {}
    for run, own in fresh.items():
        figures = [on_test(seed, run).figures for seed in own]
        tested[run] = mean_difference(primary, list(zip(figures, compared[run], strict=True)), there, Brackets)
    return first, judge(comparisons, goal, compared, tested)


def shifted(training: Baseline, metric: str, by: float) -> Baseline:
    """Return a training whose metric is moved."""
    figures = training.figures | {metric: (training.figures[metric] or math.nan) + by}
    return training.model_copy(update={"figures": figures})


def claims(pool: Pool, primary: str, smallest_effect: float, studies: int = STUDIES) -> Counter[str]:
    """Return how many placebo studies make a claim about any run, by kind of claim."""
    draw, counts = random.Random(0), Counter[str]()
    for _ in range(studies):
        first, final = study(pool, draw, Goal(primary, smallest_effect))
        outcomes = {judgement.outcome for judgement in final.values()}
        counts["better"] += "better" in outcomes
        counts["fresh seeds"] += bool({"better", "not upheld", "untested"} & outcomes)
        counts["worse"] += "worse" in outcomes
        counts["first stage"] += any(judgement.outcome == "unconfirmed" for judgement in first.values())
    return counts


def planted(pool: Pool, goal: Goal, effect: Effect, studies: int = STUDIES) -> Counter[str]:
    """Return the final outcomes of the run with the effect, over the studies."""
    draw = random.Random(0)
    return Counter(study(pool, draw, goal, effect)[1][0].outcome for _ in range(studies))


def ignoring_l0(baseline: Baseline) -> Baseline:
    """Return the training with its L0 set to K, as if L0 were ignored."""
    return baseline.model_copy(update={"figures": baseline.figures | {"l0": float(K)}})


def higher_k(pool: Pool, primary: str, *, matched: bool, studies: int = STUDIES) -> tuple[int, int]:
    """Return how many single runs of the higher K look better before fresh seeds, and how many can be compared.

    Matched runs are compared at their L0, with K's baselines and one of each neighbour; the others with K's baselines
    at any L0.
    """
    draw, outcomes = random.Random(0), Counter[str]()
    below, above = NEIGHBOURS
    for _ in range(studies):
        seeds, (run, other) = draw.sample(pool[K], SEEDS), draw.sample(pool[above], 2)
        if matched:
            comparison = compare(as_run(run.figures), Brackets([*seeds, draw.choice(pool[below]), other]))
        else:
            comparison = compare(as_run(ignoring_l0(run).figures), Brackets([ignoring_l0(seed) for seed in seeds]))
        outcomes[judge({0: comparison}, Goal(primary, NEARLY_ZERO), {}, {})[0].outcome] += 1
    return outcomes["unconfirmed"], studies - outcomes["not comparable"]


def noise(pool: Pool, metric: str) -> float:
    """Return the standard deviation of one training about the curve, from the whole pool."""
    everything = [baseline for baselines in pool.values() for baseline in baselines]
    return compare(as_run(pool[K][0].figures), Brackets(everything)).metrics[metric].noise


def share(count: int, of: int) -> str:
    """Return a rate with its 95% interval (Clopper and Pearson 1934)."""
    low = float(betaincinv(count, of - count + 1, ALPHA / 2)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - ALPHA / 2)) if count < of else 1.0
    return f"{count / of:.1%} ({low:.1%} to {high:.1%})"


def shown(value: float | None, metric: str) -> str:
    return "not measured" if value is None else f"{value:.{METRICS[metric].digits}f}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def false_claims(pool: Pool) -> bool:
    """Print how often a placebo study makes a claim; return True if that is seldom enough."""
    rows, calibrated = [], True
    for primary in PRIMARIES:
        for smallest_effect in (SMALLEST_EFFECT, NEARLY_ZERO):
            counts = claims(pool, primary, smallest_effect)
            within = counts["better"] <= MOST_BETTER * STUDIES and counts["worse"] <= ALPHA * STUDIES
            calibrated = calibrated and within
            shares = [share(counts[claim], STUDIES) for claim in CLAIMS]
            effect = "nearly 0" if smallest_effect == NEARLY_ZERO else f"{smallest_effect:g}"
            rows.append([METRICS[primary].title, effect, *shares, "met" if within else "MISSED"])
    head = ["primary metric", "smallest effect", *CLAIMS.values(), f"at most {MOST_BETTER:.0%} and {ALPHA:.0%}"]
    table(f"{STUDIES} placebo studies of {RUNS} runs", head, rows)
    return calibrated


def other_pools(seeds: Mapping[int, int]) -> None:
    """Print how far the shares depend on the pool, by simulated pools of the same size."""
    counts = [
        claims(simulated_pool(random.Random(number), seeds), PRIMARIES[0], NEARLY_ZERO) for number in range(POOLS)
    ]
    rows = []
    for claim, name in CLAIMS.items():
        shares = [count[claim] / STUDIES for count in counts]
        rows.append([name, *(f"{rate:.1%}" for rate in (min(shares), statistics.mean(shares), max(shares)))])
    title = f"The same from {POOLS} simulated pools of this size with normal noise, smallest effect nearly 0"
    table(title, [f"{STUDIES} studies from each", "lowest", "mean", "highest"], rows)


def planted_effects(pool: Pool) -> bool:
    """Print the outcomes of runs with planted effects; return True if those worth finding are found often enough."""
    outcomes = ("better", "not upheld", "not confirmed", "negligible", "within noise", "worse")
    found_enough = True
    for primary in PRIMARIES:
        s = noise(pool, primary)
        whole = [(times * SMALLEST_EFFECT, f"{times:g} smallest effects") for times in IN_SMALLEST_EFFECTS]
        cases = [(SMALLEST_EFFECT, f"{name} = {size:.4f}", Effect(size)) for size, name in whole]
        halved = Effect(2 * SMALLEST_EFFECT, on_test=0.0)
        cases.append((SMALLEST_EFFECT, f"{halved.size:.4f}, on the development text alone", halved))
        cases += [(NEARLY_ZERO, f"{times:g} s = {times * s:.4f}", Effect(times * s)) for times in IN_NOISE]
        detectable = Effect(WORTH_FINDING, of_detectable=True)
        cases.append((NEARLY_ZERO, f"{WORTH_FINDING:g} smallest detectable differences", detectable))
        rows = []
        for smallest_effect, name, effect in cases:
            counts = planted(pool, Goal(primary, smallest_effect), effect)
            shown_effect = "nearly 0" if smallest_effect == NEARLY_ZERO else f"{smallest_effect:g}"
            rows.append([shown_effect, name, *(f"{counts[outcome] / STUDIES:.1%}" for outcome in outcomes)])
            if (smallest_effect, effect.size) == (SMALLEST_EFFECT, WORTH_FINDING * SMALLEST_EFFECT):
                found_enough = found_enough and counts["better"] >= LEAST_FOUND * STUDIES
        title = (
            f"{METRICS[primary].title}: outcomes of one run with an effect, in {STUDIES} studies "
            f"(s = {s:.5f}, test text {TEST_NOISE[primary]:.5f})"
        )
        table(title, ["smallest effect", "planted", *outcomes], rows)
    return found_enough


def unmatched(pool: Pool) -> None:
    """Print how often a baseline of higher K looks better, at matched L0 and at any L0."""
    rows = []
    for primary in PRIMARIES:
        for matched in (True, False):
            better, comparable = higher_k(pool, primary, matched=matched)
            how = "at its own L0" if matched else f"with K {K} at any L0"
            rows.append([METRICS[primary].title, how, share(better, comparable), f"{comparable} of {STUDIES}"])
    title = f"A baseline of K {NEIGHBOURS[1]} as the only run: how often it looks better, before fresh seeds"
    table(title, ["primary metric", "compared", "looks better", "could be compared"], rows)


def compared_with_random(pool: Pool, floor: Mapping[str, float | None]) -> None:
    """Print the trained baselines' metrics and those of a random untrained SAE."""
    rows = []
    for metric in HEADLINE:
        values = [value for baseline in pool[K] if (value := baseline.figures.get(metric)) is not None]
        if not values:  # a metric of worlds, or newer than the pool
            continue
        mean, sd, random_score = statistics.mean(values), statistics.stdev(values), floor.get(metric)
        gap = (
            ""
            if random_score is None or metric == "l0"
            else f"{shown(mean - random_score, metric)} = {abs(mean - random_score) / sd:.0f} sd"
        )
        rows.append([METRICS[metric].title, shown(mean, metric), f"{sd:.5f}", shown(random_score, metric), gap])
    title = f"Trained (K {K}, {len(pool[K])} seeds) and one random untrained SAE of the same width and K"
    table(title, ["metric", "trained, mean", "sd", "random", "trained - random"], rows)


def main() -> None:
    entries = json.loads(POOL.read_text())
    pool = read_pool(entries)
    print(", ".join(f"K {k}: {len(pool[k])} seeds" for k in sorted(pool)))
    calibrated = false_claims(pool)
    other_pools({k: len(baselines) for k, baselines in pool.items()})
    calibrated = planted_effects(pool) and calibrated
    unmatched(pool)
    compared_with_random(pool, next(entry["floor"] for entry in entries if entry["k"] == K))
    sys.exit(0 if calibrated else 1)


if __name__ == "__main__":
    main()
