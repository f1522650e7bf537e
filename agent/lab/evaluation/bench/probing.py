"""SAE-Bench `sparse_probing_sae_probes`: how well a few latents tell classes of text apart.

The model's own part (its activations on the prompts, a probe on them) is computed once and kept in the cache.
"""

import contextlib
import io
import pickle
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from agent.lab import cache, models
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.precision import Float32Model
from agent.lab.progress import track

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# The held-out candidates on which a probe of tiny-lm's own activations has a test AUC between 0.65 and 0.97 and whose
# prompts fit its context (the few longer ones are read from their end); benchmarks/probing_datasets.py prints them.
DATASETS = (
    "135_context_type_Event_duration",
    "125_world_country_Italy",
    "96_spam_is",
    "22_headline_isobama",
    "139_news_class_Politics",
    "42_temp_sense",
)
KS = [1, 2, 5]
SEED = 42

Scores = dict[str, dict[int, dict[str, float]]]  # dataset -> k -> test_auc, test_accuracy
OwnScores = dict[str, dict[str, float]]  # dataset -> auc, accuracy of a probe on the model's own activations


@dataclass(frozen=True)
class ModelProbes:
    """The folder of a model's activations on the prompts, and of the scores of probes on them."""

    name: str  # the model's name in sae_probes' file names
    folder: Path

    @property
    def activations(self) -> Path:
        return self.folder / "activations"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def marker(self, dataset: str) -> Path:
        return self.folder / f"{dataset}.made"


def prepare_model(
    model: "HookedTransformer", name: str, hook_name: str, folder: Path, datasets: tuple[str, ...] = DATASETS
) -> ModelProbes:
    """Compute missing activations of the model on the prompts, and the probes on them.

    A dataset is complete once its marker is written: sae_probes takes any file for a complete one.
    """
    from sae_probes.generate_model_activations import ensure_dataset_activations
    from sae_probes.run_baselines import run_baseline_dataset_layer

    probes = ModelProbes(cache.slug(Path(name).name), folder)  # only the end of a local model's path: it names files
    missing = [dataset for dataset in datasets if not probes.marker(dataset).exists()]
    for dataset in track(missing, "probing the model itself", unit="datasets"):
        for left_over in [*folder.rglob(f"{dataset}_*"), *folder.rglob(f"*_{dataset}_*")]:
            left_over.unlink()
        with _quiet():
            ensure_dataset_activations(
                model_name=probes.name,
                dataset_short_names=[dataset],
                hook_names=[hook_name],
                model_cache_path=probes.activations,
                device=models.device_config().device,
                max_seq_len=min(model.cfg.n_ctx, 1024),  # left-truncated to what the model was trained for
                model=Float32Model(model),  # type: ignore[arg-type]
            )
            run_baseline_dataset_layer(hook_name, dataset, "logreg", probes.name, probes.activations, probes.results)
        probes.marker(dataset).touch()
    return probes


def run_probing(
    sae: BenchSAE, probes: ModelProbes, out: Path, name: str, datasets: tuple[str, ...] = DATASETS
) -> tuple[Scores, OwnScores]:
    """Probe one SAE; SAE-Bench's JSON is kept in `out`. Return its scores and the model's own.

    `out` must be new: sae_probes silently reuses files under a results path. Raise EvaluationError.
    """
    from sae_bench.evals.sparse_probing_sae_probes import main as sae_probes_eval
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig

    if missing := [dataset for dataset in datasets if not probes.marker(dataset).exists()]:
        raise EvaluationError(
            f"sparse_probing_sae_probes: the model's activations on {', '.join(missing)} are not in {probes.folder}"
        )
    results_path = out / "sae_probes"
    shutil.copytree(probes.results, results_path)
    config = SparseProbingSaeProbesEvalConfig(
        model_name=probes.name,
        random_seed=SEED,
        dataset_names=list(datasets),
        ks=KS,
        results_path=str(results_path),
        model_cache_path=str(probes.activations),
    )
    with _quiet(), _planted_files_named(probes):
        answers = sae_probes_eval.run_eval(config, [(name, sae)], str(sae.device), str(out))  # type: ignore[list-item]
    answer = answers.get(f"{name}_custom_sae")
    if not answer or len(answer["eval_result_details"]) != len(datasets):
        count = len(answer["eval_result_details"]) if answer else 0
        raise EvaluationError(
            f"SAE-Bench sparse_probing_sae_probes gave scores for {count} of {len(datasets)} datasets"
        )
    details = sorted(answer["eval_result_details"], key=lambda d: datasets.index(d["dataset_name"]))
    own = {d["dataset_name"]: {"auc": d["llm_test_auc"], "accuracy": d["llm_test_accuracy"]} for d in details}
    return {d["dataset_name"]: _by_k(d) for d in details}, own


def _by_k(detail: dict[str, Any]) -> dict[int, dict[str, float]]:
    return {int(k): scores for k, scores in detail["sae_metrics_by_k"].items()}


@contextlib.contextmanager
def _planted_files_named(probes: ModelProbes) -> Iterator[None]:
    """Raise EvaluationError for cached activations that are no tensor; torch's message names an unsafe way out."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise EvaluationError(
            f"a file in {probes.activations} is no tensor and was not loaded: another program wrote it; "
            f"delete {probes.folder} to have the activations computed again"
        ) from error


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide the lines and bars of sae_probes, and use one BLAS thread.

    One thread fits its small logistic regressions 13 to 17 times faster than two, to the same digits.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        threadpool_limits(1, user_api="blas"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
