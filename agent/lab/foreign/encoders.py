"""The encoders of SAEs that were trained elsewhere, as modules that a checkpoint can hold, on unscaled activations.

Sources: TopK, Gao et al. 2024 (arXiv 2406.04093); JumpReLU and gated, Rajamanoharan et al. 2024 (2407.14435,
2404.16014); matching pursuit, Costa et al. 2025 (2506.03093).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from agent.lab.checkpoint.pursuit import matching_pursuit


def fixed(tensor: Tensor) -> nn.Parameter:
    """Return a weight that is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


class Encoder(nn.Module, ABC):
    """A map from activations `[batch, d_in]` to latents `[batch, d_sae]`, by affine pre-activations."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, subtracted: Tensor | None = None) -> None:
        """W_enc `[d_in, d_sae]`, b_enc `[d_sae]`; `subtracted [d_in]` from activations first, as b_dec often is."""
        super().__init__()
        self.W_enc, self.b_enc = fixed(W_enc), fixed(b_enc)
        self.subtracted = None if subtracted is None else fixed(subtracted)

    def pre(self, x: Tensor) -> Tensor:
        """Return the pre-activations `[batch, d_sae]`."""
        return (x if self.subtracted is None else x - self.subtracted) @ self.W_enc + self.b_enc

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class ReLU(Encoder):
    """A latent fires if its pre-activation is above zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()


class JumpReLU(Encoder):
    """A latent fires if its pre-activation exceeds its threshold, and zero."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, subtracted: Tensor | None = None) -> None:
        """threshold `[d_sae]`."""
        super().__init__(W_enc, b_enc, subtracted)
        self.threshold = fixed(threshold)

    def forward(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        return pre.relu() * (pre > self.threshold)


class TopK(Encoder):
    """Each token keeps its k largest pre-activations, those that are above zero."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, k: int, subtracted: Tensor | None = None) -> None:
        super().__init__(W_enc, b_enc, subtracted)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())


class GroupMax(TopK):
    """Each token keeps the largest of each of k groups of neighbours, if it is above zero; of sparsify."""

    def forward(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        values, indices = pre.unflatten(-1, (self.k, -1)).max(dim=-1)
        first = torch.arange(self.k, device=pre.device) * (pre.shape[-1] // self.k)
        return torch.zeros_like(pre).scatter(-1, indices + first, values.relu())


class MatchingPursuit(nn.Module):
    """Each token takes the decoder row that fits best, again and again of what is left of it."""

    def __init__(
        self, W_dec: Tensor, iterations: int, residual_threshold: float, stop_on_duplicate_support: bool, b_dec: Tensor
    ) -> None:
        """W_dec `[d_sae, d_in]`; b_dec `[d_in]` is subtracted first. W_enc is W_dec.T, as in SAELens."""
        super().__init__()
        self.W_dec, self.b_dec = fixed(W_dec), fixed(b_dec)
        self.W_enc, self.b_enc = fixed(W_dec.T.contiguous()), fixed(torch.zeros(len(W_dec)))
        self.iterations = iterations
        self.stops = (residual_threshold, stop_on_duplicate_support)

    def forward(self, x: Tensor) -> Tensor:
        return matching_pursuit(x - self.b_dec, self.W_dec, self.iterations, *self.stops)


def gated(W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, subtracted: Tensor | None = None) -> JumpReLU:
    """Return a gated encoder, whose two paths share W_enc, as the JumpReLU that it equals (appendix E of its paper).

    b_gate, r_mag, b_mag `[d_sae]`. The gate is open where x @ W_enc + b_gate > 0, so where the magnitude's
    pre-activation, x @ (W_enc * exp(r_mag)) + b_mag, is above b_mag - b_gate * exp(r_mag).
    """
    scale = r_mag.exp()
    return JumpReLU(W_enc * scale, b_mag, b_mag - b_gate * scale, subtracted)
