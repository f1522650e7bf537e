"""The text on which SAE-Bench core scores one SAE after another, and all that core asks of it but the SAE's part.

core runs the whole model three times over each batch: as it is, with the SAE, with the activations ablated. Only the
second depends on the SAE, and of all three only the layers above the hook. The rest is measured once and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.lab import models, tokens
from agent.lab.activations import ordinary, run_to_hook

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from agent.lab.evaluation.sae_adapter import BenchSAE

BATCH_WINDOWS = 16
RECONSTRUCTION_BATCHES = 8  # 16k tokens through the whole model, three times
VARIANCE_BATCHES = 32  # 65k tokens up to the hook
LOGITS_BYTES = 2**30  # the model's own logits are kept up to here, and otherwise run again for each SAE


class TokenStore:
    """The part of SAELens' ActivationsStore that core reads, over fixed windows of token ids."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.position = ids, 0
        self.context_size, self.store_batch_size_prompts = ids.shape[1], BATCH_WINDOWS

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """The next windows, from the first again when they run out."""
        self.rows = torch.arange(self.position, self.position + batch_size) % len(self.ids)
        self.position += batch_size
        return self.ids[self.rows].to(models.compute().device)

    def reset_input_dataset(self) -> None:
        self.position = 0


@dataclass(frozen=True)
class Batch:
    """A reconstruction batch, as the layers above the hook need it."""

    entry: Tensor  # [windows, context, d_model], what enters the first layer that is run
    known: dict[str, Any]  # what the model derives from the ids alone
    ordinary: Tensor  # [windows, context, 1], bool: the tokens whose activations are replaced
    logits: Tensor | None  # the model's own; None where they would take too much memory
    fixed: dict[str, Tensor]  # core's losses and divergences by token in which the SAE has no part


class CoreText(TokenStore):
    """Windows of token ids `[windows, context]` that stand for both the store and the model of `core.run_evals`."""

    @torch.no_grad()
    def __init__(self, model: "HookedTransformer", ids: Tensor, hook_name: str, mean: Tensor) -> None:
        super().__init__(ids)
        self.model, self.hook_name, self.mean = model, hook_name, mean
        self.special = tokens.special_ids(model)
        # A residual stream after its layer is where the next one starts; any other hook is inside its layer.
        self.after = hook_name.endswith("hook_resid_post")
        self.start = models.layer_of(hook_name) + self.after
        self.hidden = torch.cat([run_to_hook(model, batch, hook_name) for batch in ids.split(BATCH_WINDOWS)])
        self.ordinary = ordinary(model, ids)
        logits = BATCH_WINDOWS * RECONSTRUCTION_BATCHES * ids.shape[1] * model.cfg.d_vocab * self.hidden.itemsize
        self.keeps_logits = logits <= LOGITS_BYTES
        self.batches = [self._batch(start) for start in range(0, len(ids), BATCH_WINDOWS)[:RECONSTRUCTION_BATCHES]]
        self.ce_loss_with_mean_ablation = self._mean_ablated_loss()

    def run_with_cache(self, *_: object, **__: object) -> tuple[None, dict[str, Tensor]]:
        """The hook's activations on the windows that were last handed out, as the model's own method gives them."""
        return None, {self.hook_name: self.hidden[self.rows]}

    def reconstruction_loss(self, sae: "BenchSAE") -> dict[str, Tensor]:
        """What SAE-Bench's `get_recons_loss` gives for the windows that were last handed out: figures by token."""
        batch = self.batches[int(self.rows[0]) // BATCH_WINDOWS]

        def rebuild(x: Tensor) -> Tensor:
            return torch.where(batch.ordinary, sae.decode(sae.encode(x)).to(x.dtype), x)

        own = self._above(batch.entry, batch.known, lambda x: x)[0] if batch.logits is None else batch.logits
        logits, loss = self._above(batch.entry, batch.known, rebuild)
        return batch.fixed | {"kl_div_with_sae": divergence(own, logits), "ce_loss_with_sae": loss}

    def _above(
        self, entry: Tensor, known: dict[str, Any], replace: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits and losses by token with the hook's activations replaced; no layer below the hook is run."""
        given: dict[str, Any] = known | {
            "start_at_layer": self.start,
            "return_type": "both",
            "loss_per_token": True,
        }
        if self.after:
            return self.model(replace(entry), **given)
        return self.model.run_with_hooks(entry, fwd_hooks=[(self.hook_name, lambda x, hook: replace(x))], **given)  # type: ignore[return-value]  # noqa: ARG005

    def _batch(self, start: int) -> Batch:
        rows = slice(start, start + BATCH_WINDOWS)
        ids = self.ids[rows].to(self.hidden.device)
        _, _, shortformer, attention_mask = self.model.input_to_embed(ids)
        known = {"tokens": ids, "shortformer_pos_embed": shortformer, "attention_mask": attention_mask}
        below = f"blocks.{self.start}.hook_resid_pre"
        entry = self.hidden[rows] if self.after else run_to_hook(self.model, ids, below)
        logits, loss = self._above(entry, known, lambda x: x)
        ablated_logits, ablated_loss = self._above(entry, known, torch.zeros_like)
        fixed = {
            "ce_loss_without_sae": loss,
            "ce_loss_with_ablation": ablated_loss,
            "kl_div_with_ablation": divergence(logits, ablated_logits),
        }
        return Batch(entry, known, self.ordinary[rows][..., None], logits if self.keeps_logits else None, fixed)

    def _mean_ablated_loss(self) -> float:
        """The model's loss in nats a token with the hook's ordinary activations set to their mean."""
        losses = []
        for batch in self.batches:
            mean = self.mean.to(batch.entry.dtype)
            _, loss = self._above(batch.entry, batch.known, lambda x, b=batch, m=mean: torch.where(b.ordinary, m, x))
            losses.append(loss[batch.ordinary[:, :-1, 0]])
        return torch.cat(losses).float().mean().item()


def divergence(own: Tensor, logits: Tensor) -> Tensor:
    """KL divergence `[windows, context]` of the logits from the model's own, by SAE-Bench's formula in its order."""
    own_probs, probs = own.softmax(-1), logits.softmax(-1)
    return (own_probs * (own_probs.log() - probs.log())).sum(-1)
