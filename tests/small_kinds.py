"""Untrained SAEs of SAELens' kinds on the small model's activations, and their checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from small_lab import BATCH, D_SAE, HOOK, K, stream
from torch import Tensor

from agent.lab import checkpoint
from agent.lab.checkpoint import Header
from agent.lab.results import Training

STEPS = 10
KINDS = ("relu", "jumprelu", "batchtopk", "matryoshka", "gated", "topk", "abstopk", "matching_pursuit")


@dataclass
class Kinds:
    """SAEs of all kinds with the same weights, which fire on real activations."""

    W_dec: Tensor
    b_dec: Tensor
    b_enc: Tensor
    threshold: Tensor
    manifest: Any

    def pre(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_dec.T + self.b_enc

    def relu(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def thresholded(self, x: Tensor) -> Tensor:
        pre = self.relu(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    jumprelu = batchtopk = matryoshka = gated = thresholded

    def topk(self, x: Tensor) -> Tensor:
        pre = self.relu(x)
        values, indices = pre.topk(K, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def abstopk(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        indices = pre.abs().topk(K, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    def matching_pursuit(self, x: Tensor) -> Tensor:
        residual, latents = x - self.b_dec, torch.zeros(x.shape[0], D_SAE)
        for _ in range(K):
            value, index = (residual @ self.W_dec.T).max(dim=1, keepdim=True)
            latents = latents.scatter_add(1, index, value)
            residual = residual - value * self.W_dec[index[:, 0]]
        return latents

    def with_one_threshold(self) -> "Kinds":
        """Return the same SAEs with one threshold for all latents, as BatchTopK leaves them."""
        return replace(self, threshold=torch.ones(D_SAE))

    def header(self, kind: str | None, hook_name: str = HOOK, **changes: Any) -> Header:
        """Return the header of an SAE; `kind` None: it is of none of the kinds. `changes` are of its training."""
        subject = {"model": self.manifest.model, "hook_name": hook_name, "layer": 1}
        widths = {"d_in": len(self.b_dec), "d_sae": D_SAE}
        training = Training(
            **subject,
            **widths,
            steps=STEPS,
            tokens=STEPS * BATCH,
            final_loss=1.0,
            seconds=1.0,
            learning_rate=1e-3,
            seed=0,
            settings={"K": K, "BATCH": BATCH},
            context=self.manifest.context,
            final_l0=7.5,
        ).model_copy(update=changes)
        scale = self.manifest.scale
        return Header(
            **subject, **widths, scale=scale, training=training, any_parameter_changed=True, architecture=kind
        )

    def encoder(self, kind: str | None) -> dict[str, Tensor]:
        """Return the tensors of an encoder."""
        if kind == "matching_pursuit":
            return {}
        thresholds = {} if kind in ("relu", "topk", "abstopk", None) else {"threshold": self.threshold}
        return {"W_enc": self.W_dec.T.contiguous(), "b_enc": self.b_enc, **thresholds}

    def save(self, run_dir: Path, kind: str | None, **changes: Any) -> Path:
        """Make a run with the checkpoint of an SAE."""
        run_dir.mkdir()
        encode: Callable[[Tensor], Tensor] = getattr(self, kind or "relu")
        folder, header = run_dir / "checkpoint", self.header(kind, **changes)
        checkpoint.save(folder, encode, self.W_dec, self.b_dec, header, **self.encoder(kind))
        return run_dir


def make_kinds(model: Path) -> Kinds:
    generator = torch.Generator().manual_seed(0)
    data = stream(model, 512)
    W_dec = F.normalize(torch.randn(D_SAE, data.d_in, generator=generator), dim=1)
    b_enc = 0.1 * torch.randn(D_SAE, generator=generator)
    return Kinds(W_dec, data.mean.cpu(), b_enc, 1 + torch.rand(D_SAE, generator=generator), data.manifest)
