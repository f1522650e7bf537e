"""A run's features as Neuronpedia's JSON: a batch of the format of SAEDashboard 0.8 (`NeuronpediaDashboardBatch`).

What the features do not hold is left empty: correlations with neurons, the histogram of all logits, the counts of
prompts.
"""

from collections.abc import Sequence
from typing import Any

from agent.lab.features import Context, Feature, Features
from agent.lab.results import Training

INTERVALS = 5  # of the activations, to which weaker contexts belong
EMPTY = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_l1", "logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("decoder_weights_dist", "vector"),
)
TOP_BIN = -1  # lower bound and share of the bin of the strongest contexts


def batch(
    features: Features, training: Training, name: str, row_lengths: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the batch of all latents that are kept; `name` is that of the set of SAEs.

    With `row_lengths` of the decoder the activations are those of the same SAE with rows of length 1, as SAEDashboard
    has it.
    """
    return {
        "model_id": training.model,
        "layer": training.layer,
        "sae_set": name,
        "sae_id_suffix": None,
        "features": [
            _feature(_enlarged(feature, row_lengths[feature.latent]) if row_lengths else feature, features.text)
            for feature in features.features
        ],
    }


def _enlarged(feature: Feature, factor: float) -> Feature:
    """Return a latent whose activations are `factor` times as large."""

    def enlarged(contexts: Sequence[Context]) -> list[Context]:
        return [
            each.model_copy(update={"activations": [factor * value for value in each.activations]}) for each in contexts
        ]

    changes = {"top": enlarged(feature.top), "spread": enlarged(feature.spread)}
    return feature.model_copy(update={"max_activation": factor * feature.max_activation, **changes})


def _feature(feature: Feature, dataset: str) -> dict[str, Any]:
    bins = len(feature.histogram)
    width = feature.max_activation / bins if bins else 0.0
    return {
        **{name: [] for name in EMPTY},
        "feature_index": feature.latent,
        "correlated_features_indices": [other.latent for other in feature.fires_with],
        "correlated_features_pearson": [other.value for other in feature.fires_with],
        "neg_str": [token for token, _ in feature.suppressed],
        "neg_values": [round(value, 3) for _, value in feature.suppressed],
        "pos_str": [token for token, _ in feature.promoted],
        "pos_values": [round(value, 3) for _, value in feature.promoted],
        "frac_nonzero": feature.density,
        "freq_hist_data_bar_values": [round((bin + 0.5) * width, 3) for bin in range(bins)],
        "freq_hist_data_bar_heights": feature.histogram,
        "n_prompts_total": 0,
        "n_tokens_in_prompt": 0,
        "dataset": dataset,
        "activations": [
            *(_activation(context, TOP_BIN, feature.max_activation, TOP_BIN) for context in feature.top),
            *(_activation(context, *_interval(context, feature)) for context in feature.spread),
        ],
    }


def _activation(context: Context, low: float, high: float, share: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": context.tokens,
        "values": [round(value, 3) for value in context.activations],
        "qualifying_token_index": context.peak,
    }


def _interval(context: Context, feature: Feature) -> tuple[float, float, float]:
    """Return the bounds of the interval that a context's activation lies in, and the share of the activations there."""
    width, bins = feature.max_activation / INTERVALS, len(feature.histogram) // INTERVALS
    number = min(INTERVALS - 1, int(context.activations[context.peak] / width)) if width else 0
    held = sum(feature.histogram[number * bins : (number + 1) * bins])
    total = sum(feature.histogram)
    return round(number * width, 3), round((number + 1) * width, 3), round(held / total, 4) if total else 0.0
