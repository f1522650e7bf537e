"""What SAELens' trainers have otherwise than the baselines, and how each difference is taken away.

SAELens' classes, forward passes and training loop stay as they are: its loss is changed after its forward pass, and its
parameters and optimizer before the first step.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.saes.jumprelu_sae import Step
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec, calculate_topk_aux_acts
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

SELECTING = ("batchtopk", "topk", "matryoshka")  # kinds whose latents are the largest
OTHER = ("jumprelu", "gated", "relu")
DIFFERENCES = {  # SAELens' way, and the kinds that it concerns
    "start": SELECTING + OTHER,  # b_dec starts at zero, and decoder rows at norm 0.1
    "directions": SELECTING + OTHER,  # decoder rows start in random directions of its own
    "optimizer": SELECTING + OTHER,  # rates rise a fifth of a step ahead; Adam's epsilon is 1e-8 of a larger loss
    "rows": (*SELECTING, "jumprelu", "gated"),  # decoder rows may have any norm
    "clip": SELECTING,  # gradients are clipped at 1 of a loss that is a sum over dimensions and prefixes
    "dead": SELECTING + OTHER,  # their loss: less where they are few, of negative pre-activations too; none for OTHER
    "gate": ("gated",),  # the losses of the gate train the decoder too
    "l0": ("jumprelu",),  # the loss is proportional to L0
    "logarithm": ("jumprelu",),  # thresholds are parameters themselves, not their logarithms
    "window": ("jumprelu",),  # within the bandwidth latents count as their thresholds; below 0 there is one too
}

Constants = Mapping[str, Any]
Forward = Callable[[TrainStepInput], TrainStepOutput]


class Alike:
    """A training SAE of SAELens, made to train as the baseline with these constants but for the differences `left`.

    `times` is how often its loss has that of the baseline: d_in, times the number of prefixes.
    """

    def __init__(self, kind: str, sae: Any, constants: Constants, left: Iterable[str]) -> None:
        self.kind, self.sae, self.constants, self.left = kind, sae, constants, frozenset(left)
        self.times = sae.cfg.d_in * len(getattr(sae.cfg, "matryoshka_widths", [1]))
        self.forward: Forward = sae.training_forward_pass
        self.encode = sae.encode_with_hidden_pre
        sae.training_forward_pass = self.training_forward_pass
        if self.without("dead") and hasattr(sae.cfg, "aux_loss_coefficient"):
            sae.cfg.aux_loss_coefficient = 0.0
        if kind == "jumprelu" and self.without("window"):
            sae.encode_with_hidden_pre = self.encode_with_hidden_pre
        if kind == "jumprelu" and self.without("logarithm"):
            parametrize.register_parametrization(sae, "threshold", Exponential())

    def without(self, difference: str) -> bool:
        return difference not in self.left

    @property
    def loss_is_mean(self) -> bool:
        """True if the loss is made the baseline's, so that it is clipped at the same size."""
        return self.kind in SELECTING and self.without("clip")

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Return SAELens' forward pass with the loss changed."""
        output = self.forward(step_input)
        if self.kind == "gated" and self.without("gate"):
            output.loss = output.losses["mse_loss"] + self.gate_loss(step_input)
        if self.kind == "jumprelu" and self.without("l0"):
            output.loss = output.losses["mse_loss"] + step_input.coefficients["l0"] * self.l0_loss(output.hidden_pre)
        if self.without("dead"):
            output.loss = output.loss + self.dead_latents_loss(step_input, output)
        if self.loss_is_mean:
            output.loss = output.loss / self.times
        return output

    def gate(self, x: Tensor) -> Tensor:
        return F.relu((x - self.sae.b_dec) @ self.sae.W_enc + self.sae.b_gate)

    def gate_loss(self, step_input: TrainStepInput) -> Tensor:
        """Return gated's L1 loss and auxiliary reconstruction, neither with a gradient for the decoder."""
        gate, W_dec = self.gate(step_input.sae_in), self.sae.W_dec.detach()
        l1 = (gate * W_dec.norm(dim=1)).sum(1).mean()
        residual = gate @ W_dec + self.sae.b_dec.detach() - step_input.sae_in
        return step_input.coefficients["l1"] * l1 + residual.pow(2).sum(1).mean()

    def l0_loss(self, pre: Tensor) -> Tensor:
        """Return d_in times the squared distance of the batch's L0 from K, relative to K."""
        l0 = Step.apply(pre, self.sae.threshold, self.sae.bandwidth, False).sum(1).mean()  # pyright: ignore
        return self.times * (l0 / self.constants["K"] - 1).pow(2)

    def dead_latents_loss(self, step_input: TrainStepInput, output: TrainStepOutput) -> Tensor:
        """Return the dead latents' error of the residual, relative to its size, at full weight (arXiv 2406.04093)."""
        dead: Any = step_input.dead_neuron_mask
        if not dead.any():
            return output.loss.new_zeros(())
        pre = self.gate(step_input.sae_in) if self.kind == "gated" else F.relu(output.hidden_pre)
        latents = calculate_topk_aux_acts(min(self.constants["AUX_K"], int(dead.sum())), pre, dead)
        by_norm = getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False)
        residual = (step_input.sae_in - output.sae_out).detach()
        error = (act_times_W_dec(latents, self.sae.W_dec, by_norm) - residual).pow(2).mean() / residual.pow(2).mean()
        return self.times * self.constants["AUX_COEFFICIENT"] * error

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return jumprelu's latents and pre-activations; of both the threshold's gradient is a step's."""
        pre = F.relu(self.encode(x)[1])
        return pre * Step.apply(pre, self.sae.threshold, self.sae.bandwidth, False), pre  # pyright: ignore

    def prepare(self, trainer: SAETrainer[Any, Any], mean: Tensor) -> None:
        """Change the start and the optimizer; `mean [d_in]` is that of the data."""
        with torch.no_grad():
            if self.without("start"):
                self.sae.b_dec.copy_(mean)
            if self.without("directions"):
                torch.manual_seed(self.constants["SEED"])
                directions = F.normalize(torch.randn_like(self.sae.W_dec), dim=1)
                self.sae.W_dec.copy_(directions)
                self.sae.W_enc.copy_(directions.T)
        if self.without("optimizer"):
            trainer.lr_scheduler = LambdaLR(trainer.optimizer, self.rate)
            trainer.optimizer.param_groups[0]["eps"] *= 1 if self.loss_is_mean else self.times
        if self.without("rows") and self.kind in DIFFERENCES["rows"]:
            trainer.optimizer.register_step_post_hook(self.constrain)

    def rate(self, step: int) -> float:
        """Return the share of the learning rate at a step."""
        known = self.constants
        progress = step / (known["TOKENS"] // known["BATCH"])
        return min((progress + 1e-3) / known["WARMUP"], 1.0, (1 - progress) / known["DECAY"])

    @torch.no_grad()
    def constrain(self, *_: Any) -> None:
        """Rescale the decoder rows to norm 1."""
        self.sae.W_dec.copy_(F.normalize(self.sae.W_dec, dim=1))

    def restore(self) -> None:
        """Make the SAE's parameters SAELens' own again, to be saved."""
        if parametrize.is_parametrized(self.sae):
            parametrize.remove_parametrizations(self.sae, "threshold")


class Exponential(nn.Module):
    """Of a parameter that is another's logarithm."""

    def forward(self, logarithm: Tensor) -> Tensor:
        return logarithm.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()
