"""What a language model has to know before it can do research here: metrics in a line each, the setting, the noise."""

import os

from agent.comparison import matching
from agent.comparison.curves import own_curve, read_own
from agent.comparison.significance import compare_to_reference, smallest_detectable
from agent.display.formatting import format_value
from agent.lab.defaults import SMOKE_TOKENS, is_world
from agent.lab.metrics import METRICS
from agent.llm.transcript import TIMES
from agent.study.budget import LEAST_SECONDS, TIMES_BASELINE
from agent.study.runs import Run
from agent.study.state import State

EXPLAINED = {
    "l0": "mean number of active latents a token; it sets how hard the task is, so runs are compared at equal L0",
    "explained_variance_centered": "1 - squared error of the reconstruction / variance of the activations",
    "ce_loss_score": "share of the loss added by zeroing the activations that the reconstruction avoids, at best 1",
    "loss_added": "nats a token that the model's loss rises by if its activations are replaced by the reconstruction",
    "f1": "each true feature's best latent as a detector of it: mean F1 over features; copies of one feature count too",
    "uniqueness": "share of the latents that have a true feature to themselves; copies lower it",
    "mcc": "mean cosine of decoder rows and true features, matched one to one",
    "absorption_true": "share of a parent feature's occurrences with a child in which its own latent is silent",
    "alive_fraction": "share of the latents that fire at least once on the evaluation tokens",
    "probing_auc_5": "mean AUC of linear probes for labelled concepts that see the 5 best latents only",
    "sparse_probing_5": "test accuracy of SAE-Bench's probes that see the 5 best latents only",
    "absorption": "SAE-Bench: mean share of a first-letter feature that other latents absorb",
    "scr": "SAE-Bench: how well ablating 20 latents removes a spurious correlation",
    "tpp": "SAE-Bench: how well ablating 20 latents hurts one concept's probe and not the others'",
    "unlearning": "SAE-Bench: accuracy lost on the topic to unlearn at little damage elsewhere",
    "forgetting": "loss added on one topic's text minus others' by ablating the topic's latents",
    "autointerp": "how well a judge predicts from a latent's explanation where it fires",
    "meta_structure": "how much of the decoder a smaller SAE of its rows explains",
}
WORLD = (
    "This is no language model but a synthetic world (SynthSAEBench, arXiv 2602.14687). A sample is a sum of sparse "
    "true features, each a direction in {d_in} dimensions with a folded normal magnitude. Features form trees (4 "
    "children each, 3 deep): a child is present only with its parent and scaled by it, siblings exclude each other. "
    "Firing rates follow a Zipf law, correlations are of low rank. There are more features{count} than latents. The "
    "true features are known, so latents are scored against them; there is no model loss and no probing."
)


def setting(state: State, runs: list[Run]) -> list[str]:
    """Return lines on what is trained, for how long, and what differences can be seen; from run 0 on."""
    started, run = state.started, runs[0]
    info, record = run.info, state.runs[0]
    assert info
    training, lines = info.training, []
    if is_world(started.fixed.model):
        count = " (2,048)" if started.fixed.model == "synth2k" else ""
        lines.append(WORLD.format(d_in=training.d_in if training else "few", count=count))
    if training:
        lines.append(
            f"Activations have d_in {training.d_in} dimensions, scaled to mean norm sqrt(d_in). A training sees "
            f"{training.tokens:,} of them in {training.steps:,} steps, d_sae is {training.d_sae}; the baseline's final "
            f"training loss is {training.final_loss:.4g}."
        )
    if info.core and info.core.ce_loss_without_sae is not None:
        lines.append(
            f"The model's own loss is {info.core.ce_loss_without_sae:.3f} nats/token; "
            f"{_loss(info.core.ce_loss_with_sae)} with the baseline's SAE spliced in, "
            f"{_loss(info.core.ce_loss_with_ablation)} with the activations set to zero."
        )
    lines += _noise(state)
    device, jobs = info.environment.get("device", "cpu"), started.jobs or 1
    lines.append(
        f"{TIMES}{device}, {os.cpu_count()} cores, {jobs} run{'s' * (jobs > 1)} at once; the baseline took "
        f"{record.training_seconds:.0f} s to train and {record.evaluation_seconds:.0f} s to score."
    )
    lines.append(
        f"A training may take {TIMES_BASELINE:.0f} times as long as the baseline's (at least {LEAST_SECONDS:.0f} s); "
        f"before it, a smoke test of {SMOKE_TOKENS:,} tokens trains, exports and scores a slice."
    )
    return lines


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _noise(state: State) -> list[str]:
    """State the noise between seeds and the smallest effect that can be seen in one run."""
    name, lines = state.started.primary_metric, []
    if state.started.fixed.baseline_seeds == 1:
        return [f"Noise: {matching.ONE_SEED}; figures of runs are shown, and none is compared with the baseline's."]
    curve = own_curve(state)
    there = read_own(curve, name) if curve else None
    if curve is None or there is None:
        return lines
    single = compare_to_reference(0.0, 0.0, there.noise, there.error, there.df)
    seen = smallest_detectable(single, max(state.started.max_runs, 1))
    lines.append(
        f"Noise: {METRICS[name].title} of {curve.seeds} trainings of the baseline has a standard deviation of "
        f"{there.noise:.2g} at equal L0, so "
        f"one run must differ by about {format_value(name, seen)} to be told from it (after correction for "
        f"{state.started.max_runs} runs); less than {state.started.smallest_effect:g} would not matter."
    )
    return lines
