"""SAE-Bench `core` on one SAE: how well it rebuilds the activations, and what the model loses by it."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import models, tokens
from agent.lab.evaluation.subject import BenchSAE, Usage
from agent.lab.results import Core

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

BATCH_WINDOWS = 16
RECONSTRUCTION_BATCHES = 8  # 16k tokens through the whole model, three times
VARIANCE_BATCHES = 32  # 65k tokens up to the hook


class EvaluationError(RuntimeError):
    """An evaluation that gave no usable answer; the message is the reason."""


class TokenStore:
    """The part of SAELens' ActivationsStore that core reads, over fixed windows of token ids."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.position = ids, 0
        self.context_size, self.store_batch_size_prompts = ids.shape[1], BATCH_WINDOWS

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """The next windows, from the first again when they run out."""
        rows = torch.arange(self.position, self.position + batch_size) % len(self.ids)
        self.position += batch_size
        return self.ids[rows].to(models.compute().device)

    def reset_input_dataset(self) -> None:
        self.position = 0


def run_core(
    sae: BenchSAE, model: "HookedTransformer", ids: Tensor, usage: Usage, mean: Tensor, out: Path, name: str
) -> Core:
    """Score an SAE on windows of token ids, whole batches of them, and keep SAE-Bench's own JSON in `out`.

    Raises EvaluationError.
    """
    from sae_bench.evals.core import main as core
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    config = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        llm_dtype=str(models.compute().dtype).removeprefix("torch."),
        batch_size_prompts=BATCH_WINDOWS,
        n_eval_reconstruction_batches=min(RECONSTRUCTION_BATCHES, len(ids) // BATCH_WINDOWS),
        n_eval_sparsity_variance_batches=min(VARIANCE_BATCHES, len(ids) // BATCH_WINDOWS),
        dataset="sae-agent held-out text",
        context_size=ids.shape[1],
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,  # its own output class insists on both featurewise groups
        compute_featurewise_weight_based_metrics=True,
    )
    special = tokens.special_ids(model)
    metrics, features = core.run_evals(sae, TokenStore(ids), model, config, {}, ignore_tokens=special)  # type: ignore[arg-type]
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
    return _as_core(metrics, usage, sae.cfg.d_in, mean_ablated_loss(model, ids, sae.cfg.hook_name, mean))


def _as_core(metrics: dict[str, dict[str, float]], usage: Usage, d_in: int, ce_mean_ablation: float) -> Core:
    performance, quality = metrics["model_performance_preservation"], metrics["reconstruction_quality"]
    sparsity, shrinkage = metrics["sparsity"], metrics["shrinkage"]
    return Core(
        l0=sparsity["l0"],
        l1=sparsity["l1"],
        explained_variance_centered=usage.explained_variance_centered,
        explained_variance=quality["explained_variance"],
        explained_variance_legacy=quality["explained_variance_legacy"],
        mse=usage.squared_error / usage.tokens / d_in,
        mse_sae_bench=quality["mse"],
        cossim=quality["cossim"],
        l2_ratio=shrinkage["l2_ratio"],
        relative_reconstruction_bias=shrinkage["relative_reconstruction_bias"],
        ce_loss_score=performance["ce_loss_score"],
        loss_added=performance["ce_loss_with_sae"] - performance["ce_loss_without_sae"],
        ce_loss_without_sae=performance["ce_loss_without_sae"],
        ce_loss_with_sae=performance["ce_loss_with_sae"],
        ce_loss_with_ablation=performance["ce_loss_with_ablation"],
        ce_loss_with_mean_ablation=ce_mean_ablation,
        kl_div_score=metrics["model_behavior_preservation"]["kl_div_score"],
        tokens=usage.tokens,
    )


@torch.no_grad()
def mean_ablated_loss(model: "HookedTransformer", ids: Tensor, hook_name: str, mean: Tensor) -> float:
    """The model's loss in nats a token with the hook's ordinary activations set to their mean."""
    from agent.lab.activations import ordinary

    losses = []
    for batch in ids[: BATCH_WINDOWS * RECONSTRUCTION_BATCHES].split(BATCH_WINDOWS):
        batch = batch.to(models.compute().device)
        mask = ordinary(model, batch)

        def ablate(activations: Tensor, hook: object, mask: Tensor = mask) -> Tensor:  # noqa: ARG001
            return torch.where(mask[..., None], mean.to(activations.dtype), activations)

        loss = model.run_with_hooks(batch, return_type="loss", loss_per_token=True, fwd_hooks=[(hook_name, ablate)])
        losses.append(loss[mask[:, :-1]])
    return torch.cat(losses).float().mean().item()
