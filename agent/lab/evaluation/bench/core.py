"""SAE-Bench `core` of one SAE: how well it reconstructs activations, and how much the model loses by it."""

from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from torch import Tensor

from agent.lab import models
from agent.lab.evaluation.bench.core_text import (
    BATCH_WINDOWS,
    CoreText,
    TokenStore,
)
from agent.lab.evaluation.sae_adapter import BenchSAE, Usage, UsageAccumulator
from agent.lab.results import Core

if TYPE_CHECKING:
    from sae_bench.evals.core.eval_config import CoreEvalConfig


class EvaluationError(RuntimeError):
    """An evaluation without a usable result; the message is the reason."""


class RecordingSAE:
    """An SAE that counts the latents that core makes it compute, so that nothing is encoded twice."""

    def __init__(self, sae: BenchSAE, text: CoreText) -> None:
        self.sae, self.text, self.accumulator = sae, text, UsageAccumulator(sae.cfg.d_sae, text.mean)

    def __getattr__(self, name: str) -> object:
        return getattr(self.sae, name)

    def encode(self, x: Tensor) -> Tensor:
        self.x = x
        return self.sae.encode(x)

    def decode(self, latents: Tensor) -> Tensor:
        rebuilt, mask = self.sae.decode(latents), self.text.scored[self.text.rows]
        self.accumulator.add(self.x[mask], latents[mask], rebuilt[mask])
        return rebuilt


def settings(model: str, text: TokenStore) -> "CoreEvalConfig":
    """Return SAE-Bench's settings for a text."""
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    return CoreEvalConfig(
        model_name=model,
        llm_dtype=str(models.device_config().dtype).removeprefix("torch."),
        batch_size_prompts=BATCH_WINDOWS,
        n_eval_reconstruction_batches=min(text.reconstruction_batches, len(text.ids) // BATCH_WINDOWS),
        n_eval_sparsity_variance_batches=len(text.ids) // BATCH_WINDOWS,
        dataset=text.dataset,
        context_size=text.ids.shape[1],
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,  # its output class requires both featurewise groups
        compute_featurewise_weight_based_metrics=True,
    )


def run_core(sae: BenchSAE, text: CoreText, out: Path, name: str) -> tuple[Core, Usage]:
    """Score an SAE on a text of whole batches, and keep SAE-Bench's own JSON in `out`. Raise EvaluationError."""
    from sae_bench.evals.core import main as core

    config = settings(sae.cfg.model_name, text)
    text.reset_input_dataset()
    recording, added = RecordingSAE(sae, text), []

    def reconstruction_loss(*_: object, **__: object) -> dict[str, Tensor]:
        losses = text.reconstruction_loss(sae)
        added.append(losses["ce_loss_with_sae"] - losses["ce_loss_without_sae"])
        return losses

    with patch.object(core, "get_recons_loss", reconstruction_loss):
        metrics, features = core.run_evals(recording, text, text, config, {}, ignore_tokens=text.special)  # type: ignore[arg-type]
    if not metrics.get("model_performance_preservation"):
        raise EvaluationError("SAE-Bench core returned no scores")
    result = {
        "sae_set": name,
        "sae_id": "custom_sae",
        "eval_cfg": config,
        "metrics": {**metrics, "misc_metrics": core.calculate_misc_metrics(features)},
        "feature_metrics": features,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_custom_sae_eval_results.json"
    core.save_single_eval_result(
        core.replace_nans_with_negative_one(result),
        core.get_eval_uuid(),
        core.get_sae_lens_version(),
        "",
        str(path),
        sae,  # type: ignore[arg-type]
    )
    figures = {name: value for group in metrics.values() for name, value in group.items()}
    figures["ce_loss_with_mean_ablation"] = text.ce_loss_with_mean_ablation
    figures["loss_added"] = figures["ce_loss_with_sae"] - figures["ce_loss_without_sae"]
    figures["loss_added_standard_error"] = text.standard_error(torch.cat(added))
    usage = recording.accumulator.usage()
    return _as_core(figures, usage, sae.cfg.d_in), usage


class RowModel:
    """A stand-in for a language model: token ids are row numbers of known activations `[rows, d_in]`."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations

    def run_with_cache(self, ids: Tensor, names_filter: list[str], **_: object) -> tuple[None, dict[str, Tensor]]:
        return None, {names_filter[0]: self.activations[ids]}


def run_core_on_rows(sae: BenchSAE, activations: Tensor, ids: Tensor, usage: Usage) -> Core:
    """Score an SAE on activations `[rows, d_in]` without a model: core, but for the figures that need a loss.

    `ids [windows, context]` are row numbers, in whole batches.
    """
    from sae_bench.evals.core.main import get_sparsity_and_variance_metrics

    metrics, _ = get_sparsity_and_variance_metrics(
        sae,  # type: ignore[arg-type]
        RowModel(activations),  # type: ignore[arg-type]
        TokenStore(ids),  # type: ignore[arg-type]
        n_batches=len(ids) // BATCH_WINDOWS,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=False,
        eval_batch_size_prompts=BATCH_WINDOWS,
        model_kwargs={},
    )
    return _as_core(metrics, usage, sae.cfg.d_in)


def _as_core(metrics: dict[str, float], usage: Usage, d_in: int) -> Core:
    """Build the record of core from SAE-Bench's figures by name; those of the model's loss may be absent."""
    own = {
        "explained_variance_centered": usage.explained_variance_centered,
        "mse": usage.squared_error / usage.tokens / d_in,
        "mse_sae_bench": metrics["mse"],
        "tokens": usage.tokens,
    }
    return Core.model_validate({name: (metrics | own).get(name) for name in Core.model_fields})
