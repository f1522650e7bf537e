"""SAE-Bench `sparse_probing`: how well a few latents, averaged over a prompt, tell two classes of text apart.

Its own evaluation on held-out prompts of the probing texts (labelled.TWO_WAY): four questions, each asked from both
sides. Latents are those of unit decoder rows, as SAE-Bench asks of an SAE: which ones it picks, and how its probes are
regularised, depends on their scale.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agent.lab import models
from agent.lab.evaluation.bench import labelled_datasets, patching, prompt_activations
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "how well a few latents tell two classes of text apart, averaged over a prompt"

TRAIN, TEST = 600, 300  # prompts of both classes together


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    return labelled_datasets.unmet_requirements(place, list(labelled_datasets.TWO_WAY.values()), (TRAIN + TEST) // 2)


def config(model: str, context: int, dtype: torch.dtype) -> Any:
    """SAE-Bench's own settings on our datasets, but for their sizes."""
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    return SparseProbingEvalConfig(
        random_seed=prompt_activations.SEED,
        dataset_names=list(labelled_datasets.TWO_WAY),
        probe_train_set_size=TRAIN,
        probe_test_set_size=TEST,
        context_length=min(labelled_datasets.CONTEXT, context),
        llm_batch_size=64,
        llm_dtype=str(dtype).removeprefix("torch."),
        model_name=model,
    )


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """SAE-Bench's sae_top_N_test_accuracy for N latents, sae_test_accuracy for all, llm_... for the model's own
    activations. Raises EvaluationError."""
    asked = config(sae.cfg.model_name, models.context_size(evaluator.model), models.device_config().dtype)
    return score_with(evaluator, patching.UnitNorm(sae), out, name, asked)


def score_with(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str, asked: Any) -> FamilyScores:
    """The same as `asked` (a SparseProbingEvalConfig) has it."""
    from sae_bench.evals.sparse_probing import main

    def single_dataset(dataset: str, config: Any, sae: "BenchSAE", *_: object) -> tuple[dict[str, float], Any]:
        by_class = probe_accuracies(prompt_activations.made(evaluator, main, dataset, config), sae, config.k_values)
        return {name: sum(each.values()) / len(each) for name, each in by_class.items()}, by_class

    for dataset in asked.dataset_names:  # before SAE-Bench sets the seed for this SAE
        prompt_activations.made(evaluator, main, dataset, asked)
    with prompt_activations.lent(evaluator, main, single_dataset):
        main.run_eval(asked, [(name, sae)], str(sae.device), str(out.absolute()), artifacts_path="unused")  # type: ignore[list-item]
    metrics, details = prompt_activations.figures(patching.answer(out, name))
    return FamilyScores(metrics={name: value for name, value in metrics.items() if value is not None}, details=details)


def probe_accuracies(made: prompt_activations.Made, sae: "BenchSAE", ks: list[int]) -> dict[str, dict[str, float]]:
    """Test accuracy by class of every probe that SAE-Bench trains, in its order."""
    from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations

    train = {name: each.mean_latents(sae) for name, each in made.train.items()}
    test = {name: each.mean_latents(sae) for name, each in made.test.items()}
    every = {"use_sklearn": False, "batch_size": 250, "epochs": 100, "lr": 1e-2}  # as SAE-Bench calls it
    found = {"sae_test_accuracy": train_probe_on_activations(train, test, **every)[1], **made.scores}
    for k in ks:
        found[f"sae_top_{k}_test_accuracy"] = train_probe_on_activations(train, test, select_top_k=k)[1]
    return found
