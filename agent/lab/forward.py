"""A language model's activations at its hook: on which windows of text, and which of their tokens count."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import corpus, models, tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

BATCH_WINDOWS = 16
HARVEST_SEED = 0
OUTLIER_RATIO = 10  # to the median norm; dictionary_learning's max_activation_norm_multiple


def training_windows(model: "HookedTransformer", name: str, text: str, rows: int) -> Tensor:
    """Return windows `[windows, context]` of a pinned text for at least `rows` activations, or all there are."""
    if text:
        return corpus.train_windows(text, name, lambda: model, rows)
    wanted = tokens.with_some_to_spare(rows)
    return tokens.windows(model, tokens.text_split_for(name, "sae"), models.context_size(model), wanted, HARVEST_SEED)


@torch.no_grad()
def median_norm(model: "HookedTransformer", ids: Tensor, hook_name: str) -> float:
    """Return the median norm of the activations on the ordinary tokens of some windows of the training text.

    It is a property of model and hook alone, so that outlier tokens are the same for every SAE.
    """
    norms = [
        run_to_hook(model, batch, hook_name)[ordinary_mask(model, batch)].float().norm(dim=1)
        for batch in ids.split(BATCH_WINDOWS)
    ]
    return torch.cat(norms).median().item() if norms else 0.0


def is_outlier(hidden: Tensor, median: float) -> Tensor:
    """Return the mask `[...]` of the activations `[..., d_in]` whose norm is above OUTLIER_RATIO times the median.

    A few tokens have huge norms, such as the first ones (Sun et al. 2024, "Massive Activations", arXiv 2402.17762):
    they would decide scale, mean and loss, and SAEs are not meant for them.
    """
    return hidden.float().norm(dim=-1) > (OUTLIER_RATIO * median or math.inf)


def run_to_hook(model: "HookedTransformer", ids: Tensor, hook_name: str) -> Tensor:
    """Return activations `[batch, context, d_in]` at a hook, in the model's dtype, running no layer above it."""
    _, cached = model.run_with_cache(
        ids.to(models.device_config().device, torch.long),
        names_filter=[hook_name],
        stop_at_layer=models.layer_of(hook_name) + 1,
        prepend_bos=False,
    )
    return cached[hook_name]


def ordinary_mask(model: "HookedTransformer", ids: Tensor) -> Tensor:
    """Return the mask `[batch, context]` of the tokens that are not special."""
    special = torch.tensor(sorted(tokens.special_ids(model)), dtype=ids.dtype)
    return ~torch.isin(ids, special).to(models.device_config().device)
