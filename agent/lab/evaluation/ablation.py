"""What a language model loses when latents are taken away: only the layers above the hook are run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import activations, models
from agent.lab.evaluation.sae_adapter import BenchSAE

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

BATCH_WINDOWS = 16


@dataclass(frozen=True)
class Windows:
    """Windows of text up to the hook, and what the model's loss on them is when nothing is changed."""

    ids: Tensor  # [windows, context], on the CPU
    entering: Tensor  # [windows, context, d_model], where the rest of the model begins
    hooked: Tensor  # [windows, context, d_in], at the hook
    losses: Tensor  # [windows], sums over the ordinary tokens
    count: Tensor  # [], ordinary tokens that predict another

    @property
    def loss(self) -> float:
        """Nats a token."""
        return (self.losses.sum() / self.count).item()


@dataclass(frozen=True)
class Effects:
    """What ablating each of several sets of latents did, over all ordinary tokens of the windows."""

    loss_added: list[float]  # nats a token
    kl: list[float]  # nats a token: of the model's predictions, from those without the ablation
    cosine: Tensor  # [sets, sets], of the changes of the log-probabilities; 0 beside a set that changed nothing


@torch.no_grad()
def read_windows(model: "HookedTransformer", hook_name: str, ids: Tensor) -> Windows:
    """Windows of token ids `[windows, context]` as the model reads them."""
    before, _ = resume_point(hook_name)
    entering, hooked = (
        torch.cat([activations.run_to_hook(model, batch, name) for batch in ids.split(BATCH_WINDOWS)])
        for name in (before, hook_name)
    )
    own = torch.cat(
        [
            window_losses(model, hook_name, *each)
            for each in zip(*(part.split(BATCH_WINDOWS) for part in (ids, entering, hooked)), strict=True)
        ]
    )
    return Windows(ids, entering, hooked, own, activations.ordinary_mask(model, ids)[:, :-1].sum())


def resume_point(hook_name: str) -> tuple[str, int]:
    """Where the rest of the model begins, and at which layer: right at the end of a layer, else at its start."""
    layer = models.layer_of(hook_name)
    return (hook_name, layer + 1) if hook_name.endswith("resid_post") else (f"blocks.{layer}.hook_resid_pre", layer)


def logits(model: "HookedTransformer", hook_name: str, entering: Tensor, hooked: Tensor) -> Tensor:
    """The model's logits `[windows, context, d_vocab]` with the hook's activations `[windows, context, d_in]` as given;
    `entering [windows, context, d_model]` is what its layer begins with."""
    _, layer = resume_point(hook_name)
    start = hooked if layer > models.layer_of(hook_name) else entering
    with model.hooks(fwd_hooks=[(hook_name, lambda _, hook: hooked)]):  # noqa: ARG005
        return model(start, start_at_layer=layer).float()


def window_losses(model: "HookedTransformer", hook_name: str, ids: Tensor, entering: Tensor, hooked: Tensor) -> Tensor:
    """The model's loss `[windows]`, summed over what it predicts from ordinary tokens; arguments as for `logits`."""
    found = logits(model, hook_name, entering, hooked)
    each = model.loss_fn(found, ids.to(found.device), per_token=True)
    return (each * activations.ordinary_mask(model, ids)[:, :-1]).sum(1)


@torch.no_grad()
def ablate(
    model: "HookedTransformer", hook_name: str, windows: Windows, sae: BenchSAE, sets: Sequence[Sequence[int]]
) -> Effects:
    """Set each set of latents to zero wherever they fire, the SAE's error left in place, one set after the other.

    Causal tracing by zero ablation as in Marks et al. 2024, "Sparse Feature Circuits" (arXiv 2403.19647).
    """
    added, divergence = torch.zeros(2, len(sets), dtype=torch.float64)
    products = torch.zeros(len(sets), len(sets), dtype=torch.float64)
    for rows in torch.arange(len(windows.ids)).split(BATCH_WINDOWS):
        ids, entering, hooked = windows.ids[rows], windows.entering[rows], windows.hooked[rows]
        predicting = activations.ordinary_mask(model, ids)[:, :-1]
        latents = sae.encode(hooked.float())
        own = logits(model, hook_name, entering, hooked)[:, :-1].log_softmax(-1)[predicting]
        answers = ids[:, 1:].to(own.device)[predicting][:, None]
        changes = []
        for chosen in map(list, sets):
            moved = (hooked.float() - latents[..., chosen] @ sae.W_dec[chosen]).to(hooked.dtype)
            changes.append(logits(model, hook_name, entering, moved)[:, :-1].log_softmax(-1)[predicting] - own)
        for i, change in enumerate(changes):
            added[i] -= change.gather(1, answers).sum().double().item()
            divergence[i] -= (own.exp() * change).sum().double().item()
            for j in range(i + 1):
                products[i, j] = products[j, i] = products[i, j] + (change * changes[j]).sum().double().item()
    count, norms = windows.count.item(), products.diagonal().sqrt()
    cosine = torch.nan_to_num(products / torch.outer(norms, norms), nan=0.0, posinf=0.0, neginf=0.0)
    return Effects((added / count).tolist(), (divergence / count).tolist(), cosine)


def loss_gradient(model: "HookedTransformer", hook_name: str, windows: Windows) -> tuple[Tensor, Tensor]:
    """The hook's activations `[tokens, d_in]` on the ordinary tokens, and the gradient `[tokens, d_in]` by them of the
    loss summed over their window. A latent's attribution on a token, to first order what the loss would change by
    without it, is minus its activation times its decoder row's product with the gradient (attribution patching)."""
    rows, gradients = [], []
    for ids, entering, hooked in zip(
        *(part.split(BATCH_WINDOWS) for part in (windows.ids, windows.entering, windows.hooked)), strict=True
    ):
        at = hooked.detach().float().requires_grad_(True)
        window_losses(model, hook_name, ids, entering, at.to(hooked.dtype)).sum().backward()
        assert at.grad is not None
        here = activations.ordinary_mask(model, ids)
        rows.append(hooked[here].float())
        gradients.append(at.grad[here])
    return torch.cat(rows), torch.cat(gradients)
