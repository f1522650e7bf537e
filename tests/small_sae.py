"""A small SAE and its checkpoint, for the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent.lab import checkpoint
from agent.lab.checkpoint import Header
from agent.lab.results import Training

D_IN, D_SAE, SCALE = 12, 40, 0.5


class Sae(nn.Module):
    """A small SAE with one method for each kind of encoder."""

    threshold: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / D_IN**0.5)

        self.W_enc, self.b_enc = normal(D_IN, D_SAE), normal(D_SAE)
        self.W_dec, self.b_dec = normal(D_SAE, D_IN), normal(D_IN)
        self.W_hidden, self.W_out = normal(D_IN, 30), normal(30, D_SAE)
        self.register_buffer("threshold", torch.tensor(0.4))
        self.register_buffer("calls", torch.tensor(0))
        self.dropout = nn.Dropout(0.2)

    def pre(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def relu(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def thresholded(self, x: Tensor) -> Tensor:
        pre = self.relu(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    def row_topk(self, x: Tensor) -> Tensor:
        values, indices = self.relu(x).topk(5, dim=-1)
        return torch.zeros(x.shape[0], D_SAE).scatter(-1, indices, values)

    def mlp(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.gelu(x @ self.W_hidden), self.W_out.T, self.b_enc).relu()

    def tiered(self, x: Tensor) -> Tensor:
        coarse, fine = self.relu(x).split([16, 24], dim=1)
        gate = coarse.view(-1, 8, 2).amax(2).repeat_interleave(3, dim=1)
        return torch.cat([coarse, fine * (gate > self.threshold)], dim=1)

    def masked_in_place(self, x: Tensor) -> Tensor:
        latents = self.relu(x)
        latents[latents < self.threshold] = 0
        return latents

    def dead(self, x: Tensor) -> Tensor:
        return (self.pre(x) - 1e9).relu()

    def batch_topk(self, x: Tensor) -> Tensor:
        latents = self.relu(x)
        smallest = latents.flatten().topk(5 * x.shape[0]).values[-1]
        return latents * (latents >= smallest)

    def batch_centred(self, x: Tensor) -> Tensor:
        return self.relu(x - x.mean(0))

    def noisy(self, x: Tensor) -> Tensor:
        return self.relu(self.dropout(x))

    def constant(self, x: Tensor) -> Tensor:
        return self.b_enc.relu().expand(x.shape[0], -1)

    def multiplied_away(self, x: Tensor) -> Tensor:
        return (self.pre(x) * 0 + self.b_enc).relu()

    def counting(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.relu(x)

    def branching(self, x: Tensor) -> Tensor:
        return self.relu(x) if x.sum() > 0 else self.relu(-x)

    def narrow(self, x: Tensor) -> Tensor:
        return self.relu(x)[:, :-1]


class Outer(nn.Module):
    """An SAE inside another module."""

    def __init__(self, sae: Sae) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor) -> Tensor:
        return self.sae.thresholded(x)


def header(**changes: Any) -> Header:
    training = Training(
        model="tiny-lm",
        hook_name="blocks.1.hook_resid_post",
        layer=1,
        d_in=D_IN,
        d_sae=D_SAE,
        steps=10,
        tokens=100,
        final_loss=float("nan"),
        seconds=1.0,
        learning_rate=1e-3,
        seed=0,
        settings={"k": 5},
    )
    fields = {"model": "tiny-lm", "hook_name": training.hook_name, "layer": 1, "d_in": D_IN, "d_sae": D_SAE}
    return Header(**(fields | {"scale": SCALE, "training": training, "any_parameter_changed": True} | changes))


def save(
    folder: Path, encode: Callable[[Tensor], Tensor], sae: Sae, changes: dict | None = None, **tensors: Any
) -> Path:
    checkpoint.save(folder, encode, sae.W_dec, sae.b_dec, header(**(changes or {})), **tensors)
    return folder


def activations(rows: int, seed: int = 0) -> Tensor:
    """Draw unscaled activations `[rows, D_IN]`."""
    return torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(seed)) / SCALE
