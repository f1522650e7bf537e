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
    found = {name: value for group in metrics.values() for name, value in group.items()}
    found["ce_loss_with_mean_ablation"] = mean_ablated_loss(model, ids, sae.cfg.hook_name, mean)
    found["loss_added"] = found["ce_loss_with_sae"] - found["ce_loss_without_sae"]
    return _as_core(found, usage, sae.cfg.d_in)


class Rows:
    """Stands in for a language model whose activations are known: its token ids are row numbers."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations

    def run_with_cache(self, ids: Tensor, names_filter: list[str], **_: object) -> tuple[None, dict[str, Tensor]]:
        return None, {names_filter[0]: self.activations[ids]}


def run_core_on_rows(sae: BenchSAE, activations: Tensor, ids: Tensor, usage: Usage) -> Core:
    """What SAE-Bench core says of an SAE on activations `[rows, d_in]` alone, without the model behind them; no figure
    that needs a loss. `ids [windows, context]` are row numbers, whole batches of them."""
    from sae_bench.evals.core.main import get_sparsity_and_variance_metrics

    metrics, _ = get_sparsity_and_variance_metrics(
        sae,  # type: ignore[arg-type]
        Rows(activations),  # type: ignore[arg-type]
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
    """The record of core from SAE-Bench's figures by name; those of the model's loss may be absent."""
    own = {
        "explained_variance_centered": usage.explained_variance_centered,
        "mse": usage.squared_error / usage.tokens / d_in,
        "mse_sae_bench": metrics["mse"],
        "tokens": usage.tokens,
    }
    return Core.model_validate({name: (metrics | own).get(name) for name in Core.model_fields})


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
