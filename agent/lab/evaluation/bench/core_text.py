"""The text on which SAE-Bench core scores SAEs, with the model's part of core measured once.

core runs the whole model three times over each batch: as it is, with the SAE, with the activations ablated. Only the
second depends on the SAE, and there only the layers above the hook.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.lab import models, tokens
from agent.lab.activations import ordinary_mask, run_to_hook

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from agent.lab.evaluation.sae_adapter import BenchSAE

BATCH_WINDOWS = 16
RECONSTRUCTION_BATCHES = 8  # 16k tokens through the whole model, three times
VARIANCE_BATCHES = 32  # 65k tokens up to the hook
WINDOWS = VARIANCE_BATCHES * BATCH_WINDOWS
HIDDEN_BYTES = 2**32  # of the activations at the hook; if they are larger, they are computed again for each SAE
LOGITS_BYTES = 2**30  # of the model's own logits; if they are larger, they are computed again for each SAE
AT_ONCE_BYTES = 2**27  # of the logits of the windows that are run at once; a few tensors of this size are needed


def whole_batches(windows: int) -> int:
    """Return how many of so many windows fill whole batches."""
    return windows // BATCH_WINDOWS * BATCH_WINDOWS


def windows_at_once(context: int, d_vocab: int, most: int = BATCH_WINDOWS) -> int:
    """Return the windows that are run at once through the whole model, so that a large vocabulary fits in memory."""
    return max(1, min(most, AT_ONCE_BYTES // (4 * context * d_vocab)))


class TokenStore:
    """The part of SAELens' ActivationsStore that core reads, over fixed windows of token ids.

    The first `reconstruction_batches` are run through the whole model, all of them up to the hook.
    """

    def __init__(
        self,
        ids: Tensor,
        reconstruction_batches: int = RECONSTRUCTION_BATCHES,
        dataset: str = "sae-agent held-out text",
    ) -> None:
        self.ids, self.position = ids, 0
        self.reconstruction_batches, self.dataset = reconstruction_batches, dataset
        self.context_size, self.store_batch_size_prompts = ids.shape[1], BATCH_WINDOWS

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """Return the next windows, from the first again when they run out."""
        self.rows = torch.arange(self.position, self.position + batch_size) % len(self.ids)
        self.position += batch_size
        return self.ids[self.rows].to(models.device_config().device)

    def reset_input_dataset(self) -> None:
        self.position = 0


@dataclass(frozen=True)
class Batch:
    """Windows of a reconstruction batch as input to the layers above the hook."""

    entry: Tensor  # [windows, context, d_model], the input of the first layer that is run
    model_args: dict[str, Any]  # the ids
    scored: Tensor  # [windows, context, 1], bool: the tokens whose activations are replaced
    logits: Tensor | None  # the model's own; None if they take too much memory
    fixed: dict[str, Tensor]  # core's losses and divergences by token that do not depend on the SAE


class CoreText(TokenStore):
    """Windows of token ids `[windows, context]`, as both the store and the model of `core.run_evals`.

    `scored [windows, context]` are the tokens that are replaced and scored, by default all ordinary ones; `store`
    are the options of TokenStore.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: "HookedTransformer",
        ids: Tensor,
        hook_name: str,
        mean: Tensor,
        scored: Tensor | None = None,
        **store: Any,
    ) -> None:
        super().__init__(ids, **store)
        self.model, self.hook_name, self.mean = model, hook_name, mean
        self.special = tokens.special_ids(model)
        # A residual stream after its layer is where the next one starts; any other hook is inside its layer.
        self.after = hook_name.endswith("hook_resid_post")
        self.start = models.layer_of(hook_name) + self.after
        self.scored = ordinary_mask(model, ids) if scored is None else scored
        self._hidden = None
        if ids.numel() * len(mean) * models.device_config().dtype.itemsize <= HIDDEN_BYTES:
            self._hidden = torch.cat([run_to_hook(model, batch, hook_name) for batch in ids.split(BATCH_WINDOWS)])
        starts = range(0, len(ids), BATCH_WINDOWS)[: self.reconstruction_batches]
        logits = BATCH_WINDOWS * len(starts) * ids.shape[1] * model.cfg.d_vocab * 4  # float32
        self.keeps_logits = logits <= LOGITS_BYTES
        at_once = windows_at_once(ids.shape[1], model.cfg.d_vocab)
        self.batches = [
            [self._batch(rows) for rows in torch.arange(start, min(start + BATCH_WINDOWS, len(ids))).split(at_once)]
            for start in starts
        ]
        self.ce_loss_with_mean_ablation = self._mean_ablated_loss()

    def hidden(self, rows: Tensor) -> Tensor:
        """Return the activations `[windows, context, d_in]` of some windows at the hook."""
        if self._hidden is not None:
            return self._hidden[rows]
        return run_to_hook(self.model, self.ids[rows], self.hook_name)

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        """Return the next windows. What is not scored has a special token's id, by which core leaves tokens out."""
        ids = super().get_batch_tokens(batch_size)
        return ids.where(self.scored[self.rows], min(self.special))

    def run_with_cache(self, *_: object, **__: object) -> tuple[None, dict[str, Tensor]]:
        """Return the hook's activations on the last windows that core took, in float32."""
        return None, {self.hook_name: self.hidden(self.rows).float()}

    def reconstruction_loss(self, sae: "BenchSAE") -> dict[str, Tensor]:
        """Return the figures by token of SAE-Bench's `get_recons_loss` on the last windows that core took."""
        parts = [self._part_loss(sae, batch) for batch in self.batches[int(self.rows[0]) // BATCH_WINDOWS]]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part_loss(self, sae: "BenchSAE", batch: Batch) -> dict[str, Tensor]:
        def rebuild(x: Tensor) -> Tensor:
            return torch.where(batch.scored, sae.decode(sae.encode(x)).to(x.dtype), x)

        own = self._above(batch.entry, batch.model_args, lambda x: x)[0] if batch.logits is None else batch.logits
        logits, loss = self._above(batch.entry, batch.model_args, rebuild)
        return batch.fixed | {"kl_div_with_sae": divergence(own, logits), "ce_loss_with_sae": loss}

    def standard_error(self, differences: Tensor) -> float:
        """Return the standard error of the mean over ordinary tokens of `differences [windows, context - 1]`.

        Windows are independent and their tokens are not, so it is the ratio estimator's over windows (Cochran 1977,
        Sampling Techniques, 6.4).
        """
        mask = self.scored[: len(differences), :-1]
        counts, sums = mask.sum(1).double(), differences.where(mask, 0).sum(1).double()
        residuals = sums - counts * sums.sum() / counts.sum()
        windows = len(residuals)
        return ((residuals.pow(2).sum() * windows / (windows - 1)).sqrt() / counts.sum()).item()

    def _above(
        self, entry: Tensor, model_args: dict[str, Any], replace: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits and losses by token with the hook's activations replaced. No layer below the hook is run."""
        arguments: dict[str, Any] = model_args | {
            "start_at_layer": self.start,
            "return_type": "both",
            "loss_per_token": True,
        }
        if self.after:
            return self.model(replace(entry), **arguments)
        return self.model.run_with_hooks(entry, fwd_hooks=[(self.hook_name, lambda x, hook: replace(x))], **arguments)  # type: ignore[return-value]  # noqa: ARG005

    def _batch(self, rows: Tensor) -> Batch:
        ids = self.ids[rows].to(models.device_config().device)
        model_args = {"tokens": ids}
        below = f"blocks.{self.start}.hook_resid_pre"
        entry = self.hidden(rows) if self.after else run_to_hook(self.model, ids, below)
        logits, loss = self._above(entry, model_args, lambda x: x)
        ablated_logits, ablated_loss = self._above(entry, model_args, torch.zeros_like)
        fixed = {
            "ce_loss_without_sae": loss,
            "ce_loss_with_ablation": ablated_loss,
            "kl_div_with_ablation": divergence(logits, ablated_logits),
        }
        return Batch(entry, model_args, self.scored[rows][..., None], logits if self.keeps_logits else None, fixed)

    def _mean_ablated_loss(self) -> float:
        """Return the model's loss in nats a token with the hook's ordinary activations set to their mean."""
        losses = []
        for batch in itertools.chain(*self.batches):
            mean = self.mean.to(batch.entry.dtype)
            _, loss = self._above(batch.entry, batch.model_args, lambda x, b=batch, m=mean: torch.where(b.scored, m, x))
            losses.append(loss[batch.scored[:, :-1, 0]])
        return torch.cat(losses).float().mean().item()


def divergence(own: Tensor, logits: Tensor) -> Tensor:
    """Return the KL divergence `[windows, context]` of logits from the model's own, by SAE-Bench's formula."""
    own_probs, probs = own.softmax(-1), logits.softmax(-1)
    return (own_probs * (own_probs.log() - probs.log())).sum(-1)
