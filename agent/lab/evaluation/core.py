"""SAE-Bench `core` on one SAE: how well it rebuilds the activations, and what the model loses by it."""

from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from torch import Tensor

from agent.lab import models
from agent.lab.evaluation.core_text import BATCH_WINDOWS, RECONSTRUCTION_BATCHES, VARIANCE_BATCHES, CoreText
from agent.lab.evaluation.subject import BenchSAE, Counted, Usage
from agent.lab.results import Core

if TYPE_CHECKING:
    from sae_bench.evals.core.eval_config import CoreEvalConfig


class EvaluationError(RuntimeError):
    """An evaluation that gave no usable answer; the message is the reason."""


class Watched:
    """An SAE on its way through core: each reconstruction is counted, so that nothing is encoded twice."""

    def __init__(self, sae: BenchSAE, text: CoreText) -> None:
        self.sae, self.text, self.counted = sae, text, Counted(sae.cfg.d_sae, text.mean)

    def __getattr__(self, name: str) -> object:
        return getattr(self.sae, name)

    def encode(self, x: Tensor) -> Tensor:
        self.given = x
        return self.sae.encode(x)

    def decode(self, latents: Tensor) -> Tensor:
        rebuilt, mask = self.sae.decode(latents), self.text.ordinary[self.text.rows]
        self.counted.add(self.given[mask].float(), latents[mask], rebuilt[mask])
        return rebuilt


def settings(model: str, ids: Tensor) -> "CoreEvalConfig":
    """SAE-Bench's settings for windows of token ids `[windows, context]`."""
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    return CoreEvalConfig(
        model_name=model,
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


def run_core(sae: BenchSAE, text: CoreText, out: Path, name: str) -> tuple[Core, Usage]:
    """Score an SAE on a text of whole batches, and keep SAE-Bench's own JSON in `out`. Raises EvaluationError."""
    from sae_bench.evals.core import main as core

    config = settings(sae.cfg.model_name, text.ids)
    text.reset_input_dataset()
    watched = Watched(sae, text)
    with patch.object(core, "get_recons_loss", lambda *_, **__: text.reconstruction_loss(sae)):
        metrics, features = core.run_evals(watched, text, text, config, {}, ignore_tokens=text.special)  # type: ignore[arg-type]
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
    usage = watched.counted.usage()
    return _as_core(metrics, usage, sae.cfg.d_in, text.ce_loss_with_mean_ablation), usage


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
