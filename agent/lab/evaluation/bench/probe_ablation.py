"""The common part of SAE-Bench's `scr` and `tpp`: probes of the model's mean activations, with latents ablated.

SAE-Bench encodes and decodes every test prompt again for each class and number of latents. But decoding is linear, so
with the latents S ablated and the SAE's error left in, a prompt's mean activation is

    mean(x) - mean(f[S]) @ W_dec[S]

and one encoding of each prompt serves all of them. SAE-Bench also ablates the latents that fire on the padding, an
activation of zero: with p padded and n ordinary tokens, mean(f) is (sum of f(x) + p f(0)) / n.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.lab import models
from agent.lab.evaluation.bench import hub_prompts, labelled_datasets, patching, prompt_activations
from agent.lab.evaluation.bench.hub_prompts import Fetched, Pair
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.bench.prompt_activations import PromptActivations
    from agent.lab.evaluation.evaluator import Evaluator

# Prompts to train and to test a probe with, both sides together, by `spurious`: as many as the rarest class allows.
SIZES = {False: (320, 140), True: (480, 240)}
REMARK = "known to be unreliable at the canonical settings (arXiv 2605.18229): reported, and never decides"


def config(model: str, spurious: bool, context: int, dtype: torch.dtype, fetched: Fetched | None = None) -> Any:
    """Return SAE-Bench's own settings of scr (`spurious`) or tpp, for fetched prompts or for our datasets, of other
    sizes."""
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    train, test = SIZES[spurious]
    own = (
        hub_prompts.config(fetched.family)
        if fetched
        else ScrAndTppEvalConfig(
            random_seed=prompt_activations.SEED,
            dataset_names=list(labelled_datasets.CONFOUNDED if spurious else labelled_datasets.MANY_WAY),
            perform_scr=spurious,
            train_set_size=train,
            test_set_size=test,
            context_length=labelled_datasets.CONTEXT,
            column1_vals_lookup={name: [dataset.pair] for name, dataset in labelled_datasets.CONFOUNDED.items()},
        )
    )
    return prompt_activations.with_model(own, model, context, dtype)


def score_family(evaluator: "Evaluator", sae: BenchSAE, out: Path, name: str, family: str) -> FamilyScores:
    """Run scr or tpp of one SAE, with SAE-Bench's own prompts if they were fetched. Raise EvaluationError."""
    fetched, spurious = evaluator.fetched_prompts(family), family == "scr"
    context, dtype = models.context_size(evaluator.model), models.device_config().dtype
    settings = config(sae.cfg.model_name, spurious, context, dtype, fetched)
    return score(evaluator, sae, out, name, settings, fetched)


def score(
    evaluator: "Evaluator", sae: BenchSAE, out: Path, name: str, config: Any, fetched: Fetched | None = None
) -> FamilyScores:
    """Run SAE-Bench's scr or tpp of one SAE with a ScrAndTppEvalConfig. Raise EvaluationError."""
    from sae_bench.evals.scr_and_tpp import main

    d_sae = len(sae.W_dec)
    config = replace(config, n_values=[n for n in config.n_values if n <= d_sae])

    def artifacts(dataset: str, pair: Pair | None) -> prompt_activations.DatasetArtifacts:
        return prompt_activations.dataset_artifacts(evaluator, main, dataset, config, pair, fetched)

    def single_dataset(dataset: str, *arguments: Any) -> tuple[dict[str, Any], dict[str, float]]:
        known = artifacts(dataset, arguments[-1] if config.perform_scr else None)
        return ablations(known, sae, config), known.scores

    for dataset in config.dataset_names:  # before SAE-Bench sets the seed for this SAE
        for pair in hub_prompts.pairs(config, dataset):
            artifacts(dataset, pair)
    with prompt_activations.preloaded_sae_bench(evaluator, main, single_dataset):
        main.run_eval(config, [(name, sae)], str(sae.device), str(out.absolute()), artifacts_path="unused")  # type: ignore[list-item]
    answer = patching.read_answer(out / ("scr" if config.perform_scr else "tpp"), name)
    metrics, details = prompt_activations.metrics_and_details(answer)
    return FamilyScores(
        metrics=metrics,
        not_applicable={
            metric: _reason_inapplicable(metric, d_sae) for metric, value in metrics.items() if value is None
        },
        details=details,
        remark=REMARK,
    )


def ablations(
    artifacts: prompt_activations.DatasetArtifacts, sae: BenchSAE, config: Any
) -> dict[str, dict[int, dict[str, float]]]:
    """Replace SAE-Bench's `get_all_node_effects_for_one_sae` and `perform_feature_ablations`.

    Return the accuracy of each class's probe, by the class whose latents are ablated and their number.
    """
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.sae_bench_utils.dataset_info import PAIRED_CLASS_KEYS

    classes = list(PAIRED_CLASS_KEYS if config.perform_scr else artifacts.train)
    train = {name: prompts.mean_latents(sae) for name, prompts in artifacts.train.items()}
    effects = {name: _effects(artifacts.probes[name], sae, name, train, config.perform_scr) for name in classes}
    means = {name: prompts.mean() for name, prompts in artifacts.test.items()}
    at_zero = sae.encode(torch.zeros_like(sae.W_dec[:1]))[0]
    latents = {
        name: padded_means(prompts, sae, at_zero, config.context_length) for name, prompts in artifacts.test.items()
    }
    accuracies: dict[str, dict[int, dict[str, float]]] = {}
    for ablated in classes:
        accuracies[ablated] = {}
        for n in config.n_values:
            chosen = main.select_top_n_features(effects[ablated], n, ablated)
            left = {name: means[name] - latents[name][:, chosen] @ sae.W_dec[chosen] for name in means}
            accuracies[ablated][n] = main.get_probe_test_accuracy(
                artifacts.probes, classes, left, config.probe_test_batch_size, config.perform_scr
            )
    return accuracies


def _effects(probe: Any, sae: BenchSAE, name: str, latents: dict[str, Tensor], spurious: bool) -> Tensor:
    """Return how far each latent moves a class's probe `[d_sae]`.

    This is SAE-Bench's `get_effects_per_class_precomputed_acts` on mean latents.
    """
    from sae_bench.evals.sparse_probing.probe_training import prepare_probe_data

    inputs, labels = prepare_probe_data(latents, name, spurious)
    difference = inputs[labels == 1].mean(0) - inputs[labels == 0].mean(0)
    toward = sae.W_dec @ probe.net.weight[0]
    return (difference * toward).abs() if spurious else difference.clamp(min=0) * toward


def padded_means(prompts: "PromptActivations", sae: BenchSAE, at_zero: Tensor, context: int) -> Tensor:
    """Return the mean latents of each prompt `[prompts, d_sae]` as SAE-Bench ablates them, padding included."""
    return prompts.mean_latents(sae) + at_zero * ((context - prompts.lengths) / prompts.lengths)[:, None]


def _reason_inapplicable(metric: str, d_sae: int) -> str:
    threshold = int(metric.partition("_threshold_")[2].partition("_")[0])
    return f"the SAE has {d_sae} latents" if threshold > d_sae else "the biased probe follows neither label more"
