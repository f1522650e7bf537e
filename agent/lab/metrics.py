"""The table of metrics, which all readers of results share. No torch here."""

from typing import Literal

from pydantic import BaseModel


class Metric(BaseModel):
    """A metric: its path in FinalInfo, and how it is shown and read."""

    path: str
    title: str
    unit: str = ""
    healthy: tuple[float, float] | None = None
    better: Literal["higher", "lower", "none"] = "none"
    group: Literal[
        "training",
        "sparsity",
        "reconstruction",
        "model preservation",
        "probing",
        "concepts",
        "interpretability",
        "ground truth",
    ]
    digits: int = 4
    worth: float = 0.0  # the smallest difference worth noticing
    companion: str = ""  # a metric without which this one misleads; the two are shown together
    decides: bool = True  # False: known to be unreliable; shown, and never a primary metric


# Healthy ranges: SAE-Bench's published baselines at L0 20 to 320.
METRICS: dict[str, Metric] = {
    "steps": Metric(path="training.steps", title="steps", group="training", digits=0),
    "tokens": Metric(path="training.tokens", title="tokens", group="training", digits=0),
    "final_loss": Metric(path="training.final_loss", title="final loss", group="training"),
    "seconds": Metric(path="training.seconds", title="training time", unit="s", group="training", digits=1),
    "l0": Metric(path="core.l0", title="L0", unit="latents/token", group="sparsity", digits=2),
    "alive_fraction": Metric(
        path="latents.alive_fraction",
        title="alive fraction",
        group="sparsity",
        healthy=(0.9, 1),
        better="higher",
        worth=0.01,
    ),
    "dense_fraction": Metric(
        path="latents.dense_fraction", title="dense fraction", group="sparsity", healthy=(0, 0.05), better="lower"
    ),
    "explained_variance_centered": Metric(
        path="core.explained_variance_centered",
        title="explained variance",
        group="reconstruction",
        healthy=(0.7, 1),
        better="higher",
        worth=0.005,
    ),
    "mse": Metric(path="core.mse", title="MSE per dimension", group="reconstruction", better="lower"),
    "cossim": Metric(path="core.cossim", title="cosine", group="reconstruction", healthy=(0.85, 1), better="higher"),
    "l2_ratio": Metric(path="core.l2_ratio", title="L2 ratio", group="reconstruction", healthy=(0.75, 1.02)),
    "relative_reconstruction_bias": Metric(
        path="core.relative_reconstruction_bias",
        title="relative reconstruction bias",
        group="reconstruction",
        healthy=(0.95, 1.02),
    ),
    "ce_loss_score": Metric(
        path="core.ce_loss_score",
        title="CE-loss score",
        group="model preservation",
        healthy=(0.8, 1),
        better="higher",
        worth=0.005,
        companion="explained_variance_centered",  # an encoder that writes the next token has a high CE-loss score
    ),
    "loss_added": Metric(
        path="core.loss_added",
        title="loss added",
        unit="nats/token",
        group="model preservation",
        better="lower",
        worth=0.03,
        companion="explained_variance_centered",  # likewise
    ),
    "kl_div_score": Metric(
        path="core.kl_div_score", title="KL score", group="model preservation", healthy=(0.8, 1), better="higher"
    ),
    "probing_auc_1": Metric(path="probing.auc.1", title="AUC, top 1 latent", group="probing", better="higher"),
    "probing_auc_5": Metric(
        path="probing.auc.5", title="AUC, top 5 latents", group="probing", better="higher", worth=0.02
    ),
    "probing_accuracy_5": Metric(
        path="probing.accuracy.5", title="accuracy, top 5 latents", group="probing", better="higher"
    ),
    "sparse_probing_5": Metric(
        path="evaluations.sparse_probing.metrics.sae_top_5_test_accuracy",
        title="sparse probing, top 5",
        group="probing",
        better="higher",
        worth=0.02,
    ),
    "absorption": Metric(
        path="evaluations.absorption.metrics.mean_absorption_fraction_score",
        title="absorption",
        group="concepts",
        better="lower",
        worth=0.01,
    ),
    "full_absorption": Metric(
        path="evaluations.absorption.metrics.mean_full_absorption_score",
        title="full absorption",
        group="concepts",
        better="lower",
    ),
    "scr": Metric(
        path="evaluations.scr.metrics.scr_metric_threshold_20",
        title="SCR, top 20",
        group="concepts",
        better="higher",
        decides=False,
    ),
    "tpp": Metric(
        path="evaluations.tpp.metrics.tpp_threshold_20_total_metric",
        title="TPP, top 20",
        group="concepts",
        better="higher",
        decides=False,
    ),
    "unlearning": Metric(
        path="evaluations.unlearning.metrics.unlearning_score", title="unlearning", group="concepts", better="higher"
    ),
    "forgetting": Metric(
        path="evaluations.forgetting.metrics.forgetting_score",
        title="forgetting",
        unit="nats/token",
        group="concepts",
        better="higher",
        worth=0.05,
        decides=False,  # on tiny-lm a random SAE scores higher than a trained one
    ),
    "forgetting_random": Metric(
        path="evaluations.forgetting.metrics.random_forgetting_score",
        title="forgetting, random SAE",
        unit="nats/token",
        group="concepts",
    ),
    "autointerp": Metric(
        path="evaluations.autointerp.metrics.autointerp_score",
        title="autointerp",
        group="interpretability",
        better="higher",
    ),
    "meta_structure": Metric(
        path="evaluations.meta_structure.metrics.decoder_fraction_variance_explained",
        title="decoder's own structure",
        group="interpretability",
    ),
    "f1": Metric(
        path="evaluations.synthetic.metrics.f1",
        title="F1",
        group="ground truth",
        better="higher",
        worth=0.01,
        companion="uniqueness",  # copies of one feature have a high F1
    ),
    "uniqueness": Metric(
        path="evaluations.synthetic.metrics.uniqueness",
        title="uniqueness",
        group="ground truth",
        better="higher",
        worth=0.01,
    ),
    "mcc": Metric(
        path="evaluations.synthetic.metrics.mcc", title="MCC", group="ground truth", better="higher", worth=0.01
    ),
    "absorption_true": Metric(
        path="evaluations.synthetic.metrics.absorption",
        title="true absorption",
        group="ground truth",
        better="lower",
        worth=0.01,
    ),
}

# In the order in which they are shown; a study shows those that it measured.
HEADLINE = (
    "l0",
    "explained_variance_centered",
    "ce_loss_score",
    "loss_added",
    "f1",
    "uniqueness",
    "mcc",
    "absorption_true",
    "alive_fraction",
    "probing_auc_5",
    "sparse_probing_5",
    "absorption",
    "scr",
    "tpp",
    "unlearning",
    "forgetting",
    "autointerp",
    "meta_structure",
)


def family_of(name: str) -> str:
    """Return the evaluation family that measures a metric."""
    first, second, *_ = METRICS[name].path.split(".")
    return {"evaluations": second, "probing": "sparse_probing_sae_probes"}.get(first, "core")
