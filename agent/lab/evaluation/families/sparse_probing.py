"""SAE-Bench `sparse_probing`: how well a few latents, averaged over a prompt, tell two classes of text apart.

SAE-Bench's own evaluation, on held-out prompts of the probing texts (labelled_datasets.TWO_WAY): four classifications,
with either class as the positive one. Decoder rows are brought to length 1, as SAE-Bench expects: the latents that it
picks, and the regularisation of its probes, depend on their scale.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agent.lab import models
from agent.lab.evaluation.bench import hub_prompts, labelled_datasets, patching, prompt_activations
from agent.lab.evaluation.bench.hub_prompts import Fetched
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "how well a few latents tell two classes of text apart, averaged over a prompt"

TRAIN, TEST = 600, 300  # prompts of both classes together


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    return labelled_datasets.unmet_requirements(target, list(labelled_datasets.TWO_WAY.values()), (TRAIN + TEST) // 2)


def config(model: str, context: int, dtype: torch.dtype, fetched: Fetched | None = None) -> Any:
    """Return SAE-Bench's own settings for the prompts that were fetched, or for our datasets, of other sizes."""
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    own = (
        hub_prompts.config(fetched.family)
        if fetched
        else SparseProbingEvalConfig(
            random_seed=prompt_activations.SEED,
            dataset_names=list(labelled_datasets.TWO_WAY),
            probe_train_set_size=TRAIN,
            probe_test_set_size=TEST,
            context_length=labelled_datasets.CONTEXT,
        )
    )
    return prompt_activations.with_model(own, model, context, dtype)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Return SAE-Bench's sae_top_N_test_accuracy for N latents, sae_test_accuracy for all, and llm_... for the model's
    own activations. Raises EvaluationError."""
    fetched = evaluator.fetched_prompts("sparse_probing")
    settings = config(sae.cfg.model_name, models.context_size(evaluator.model), models.device_config().dtype, fetched)
    return score_with(evaluator, patching.UnitNorm(sae), out, name, settings, fetched)


def score_with(
    evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str, settings: Any, fetched: Fetched | None = None
) -> FamilyScores:
    """Score with a SparseProbingEvalConfig of one's own; see `score`."""
    from sae_bench.evals.sparse_probing import main

    def artifacts(dataset: str) -> prompt_activations.DatasetArtifacts:
        return prompt_activations.dataset_artifacts(evaluator, main, dataset, settings, fetched=fetched)

    def single_dataset(dataset: str, config: Any, sae: "BenchSAE", *_: object) -> tuple[dict[str, float], Any]:
        by_class = probe_accuracies(artifacts(dataset), sae, config.k_values)
        means = {metric: sum(by.values()) / len(by) for metric, by in by_class.items()}
        return means, by_class

    for dataset in settings.dataset_names:  # made before SAE-Bench sets the seed for this SAE
        artifacts(dataset)
    with prompt_activations.preloaded_sae_bench(evaluator, main, single_dataset):
        main.run_eval(settings, [(name, sae)], str(sae.device), str(out.absolute()), artifacts_path="unused")  # type: ignore[list-item]
    metrics, details = prompt_activations.metrics_and_details(patching.read_answer(out, name))
    return FamilyScores(metrics={name: value for name, value in metrics.items() if value is not None}, details=details)


def probe_accuracies(
    artifacts: prompt_activations.DatasetArtifacts, sae: "BenchSAE", ks: list[int]
) -> dict[str, dict[str, float]]:
    """Return the test accuracy by class of every probe that SAE-Bench trains, in its order."""
    from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations

    train = {name: prompts.mean_latents(sae) for name, prompts in artifacts.train.items()}
    test = {name: prompts.mean_latents(sae) for name, prompts in artifacts.test.items()}
    on_all = {"use_sklearn": False, "batch_size": 250, "epochs": 100, "lr": 1e-2}  # as SAE-Bench calls it
    accuracy = {"sae_test_accuracy": train_probe_on_activations(train, test, **on_all)[1], **artifacts.scores}
    for k in ks:
        accuracy[f"sae_top_{k}_test_accuracy"] = train_probe_on_activations(train, test, select_top_k=k)[1]
    return accuracy
