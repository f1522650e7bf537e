"""Ablation of latents: the effect on a language model's loss. Only the layers above the hook are run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import activations, models
from agent.lab.evaluation.bench.core_text import windows_at_once
from agent.lab.evaluation.sae_adapter import BenchSAE

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

BATCH_WINDOWS = 16


@dataclass(frozen=True)
class Windows:
    """Windows of text, the model's activations at the hook, and its loss with nothing ablated.

    The fields' names are keys of cached files (see families/forgetting.py).
    """

    ids: Tensor  # [windows, context], on the CPU
    entering: Tensor  # [windows, context, d_model], at the resume point
    hooked: Tensor  # [windows, context, d_in], at the hook
    losses: Tensor  # [windows], sums over the ordinary tokens
    count: Tensor  # [], ordinary tokens that predict another

    @property
    def loss(self) -> float:
        """The mean loss, nats a token."""
        return (self.losses.sum() / self.count).item()


@dataclass(frozen=True)
class Effects:
    """The effects of ablating several sets of latents, over all ordinary tokens of the windows."""

    loss_added: list[float]  # nats a token
    kl: list[float]  # nats a token: KL(predictions without the ablation || predictions with it)
    cosine: Tensor  # [sets, sets], between changes of the log-probabilities; 0 for a set that changed nothing


@torch.no_grad()
def read_windows(model: "HookedTransformer", hook_name: str, ids: Tensor) -> Windows:
    """Run the model on windows of token ids `[windows, context]`."""
    start, _ = resume_point(hook_name)
    entering, hooked = (
        torch.cat([activations.run_to_hook(model, batch, name) for batch in ids.split(BATCH_WINDOWS)])
        for name in (start, hook_name)
    )
    at_once = windows_at_once(ids.shape[1], model.cfg.d_vocab)
    losses = torch.cat(
        [
            window_losses(model, hook_name, *batch)
            for batch in zip(*(part.split(at_once) for part in (ids, entering, hooked)), strict=True)
        ]
    )
    return Windows(ids, entering, hooked, losses, activations.ordinary_mask(model, ids)[:, :-1].sum())


def resume_point(hook_name: str) -> tuple[str, int]:
    """Return the activation that the model is resumed from, and its layer: the hook itself if it ends a layer, else the
    input of the hook's layer."""
    layer = models.layer_of(hook_name)
    return (hook_name, layer + 1) if hook_name.endswith("resid_post") else (f"blocks.{layer}.hook_resid_pre", layer)


def logits(model: "HookedTransformer", hook_name: str, entering: Tensor, hooked: Tensor) -> Tensor:
    """Return the model's logits `[windows, context, d_vocab]` with `hooked [windows, context, d_in]` at the hook.

    `entering [windows, context, d_model]` is the activation at the resume point.
    """
    _, layer = resume_point(hook_name)
    start = hooked if layer > models.layer_of(hook_name) else entering
    with model.hooks(fwd_hooks=[(hook_name, lambda _, hook: hooked)]):  # noqa: ARG005
        return model(start, start_at_layer=layer).float()


def window_losses(model: "HookedTransformer", hook_name: str, ids: Tensor, entering: Tensor, hooked: Tensor) -> Tensor:
    """Return the loss `[windows]`, summed over the predictions from ordinary tokens; arguments as for `logits`."""
    predictions = logits(model, hook_name, entering, hooked)
    token_losses = model.loss_fn(predictions, ids.to(predictions.device), per_token=True)
    return (token_losses * activations.ordinary_mask(model, ids)[:, :-1]).sum(1)


@torch.no_grad()
def ablate(
    model: "HookedTransformer",
    hook_name: str,
    windows: Windows,
    sae: BenchSAE,
    groups: Sequence[Sequence[Sequence[int]]],
) -> list[Effects]:
    """Ablate sets of latents one after the other: set them to zero wherever they fire, keeping the SAE's error.

    Return the effects of each group of sets, which are compared with each other.
    Zero ablation as in Marks et al. 2024, "Sparse Feature Circuits" (arXiv 2403.19647).
    """
    sums = [_Sums(len(sets)) for sets in groups]
    at_once = windows_at_once(windows.ids.shape[1], model.cfg.d_vocab)
    for rows in torch.arange(len(windows.ids)).split(at_once):
        ids, entering, hooked = windows.ids[rows], windows.entering[rows], windows.hooked[rows]
        predicting = activations.ordinary_mask(model, ids)[:, :-1]
        latents = sae.encode(hooked.float())
        before = logits(model, hook_name, entering, hooked)[:, :-1].log_softmax(-1)[predicting]
        next_ids = ids[:, 1:].to(before.device)[predicting][:, None]
        probabilities = before.exp()
        for sets, own in zip(groups, sums, strict=True):
            changes = []
            for chosen in map(list, sets):
                ablated = (hooked.float() - latents[..., chosen] @ sae.W_dec[chosen]).to(hooked.dtype)
                changes.append(logits(model, hook_name, entering, ablated)[:, :-1].log_softmax(-1)[predicting] - before)
            own.add(changes, probabilities, next_ids)
    return [own.effects(windows.count.item()) for own in sums]


class _Sums:
    """Sums over tokens of the changes that a group of ablations makes to the log-probabilities."""

    def __init__(self, sets: int) -> None:
        self.loss_added, self.kl = torch.zeros(2, sets, dtype=torch.float64)
        self.products = torch.zeros(sets, sets, dtype=torch.float64)

    def add(self, changes: list[Tensor], before: Tensor, next_ids: Tensor) -> None:
        """Add tokens: changes `[tokens, d_vocab]`, probabilities `[tokens, d_vocab]` before, next ids `[tokens, 1]`."""
        for i, change in enumerate(changes):
            self.loss_added[i] -= change.gather(1, next_ids).sum().double().item()
            self.kl[i] -= (before * change).sum().double().item()
            for j in range(i + 1):
                product = self.products[i, j] + (change * changes[j]).sum().double().item()
                self.products[i, j] = self.products[j, i] = product

    def effects(self, tokens: float) -> Effects:
        norms = self.products.diagonal().sqrt()
        cosine = torch.nan_to_num(self.products / torch.outer(norms, norms), nan=0.0, posinf=0.0, neginf=0.0)
        return Effects((self.loss_added / tokens).tolist(), (self.kl / tokens).tolist(), cosine)


def loss_gradient(model: "HookedTransformer", hook_name: str, windows: Windows) -> tuple[Tensor, Tensor]:
    """Return the activations at the hook on ordinary tokens `[tokens, d_in]`, and the gradient `[tokens, d_in]` of the
    window's summed loss with respect to them.

    By attribution patching, ablating a latent on a token changes the loss, to first order, by minus its activation
    times the product of its decoder row with the gradient.
    """
    rows, gradients = [], []
    at_once = windows_at_once(windows.ids.shape[1], model.cfg.d_vocab)
    for ids, entering, hooked in zip(
        *(part.split(at_once) for part in (windows.ids, windows.entering, windows.hooked)), strict=True
    ):
        x = hooked.detach().float().requires_grad_(True)
        window_losses(model, hook_name, ids, entering, x.to(hooked.dtype)).sum().backward()
        assert x.grad is not None
        mask = activations.ordinary_mask(model, ids)
        rows.append(hooked[mask].float())
        gradients.append(x.grad[mask])
    return torch.cat(rows), torch.cat(gradients)
