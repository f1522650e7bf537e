"""The random untrained SAE: the floor that a trained SAE must exceed."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab.evaluation.sae_adapter import BenchSAE

if TYPE_CHECKING:
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig


class RandomSAE(BenchSAE):
    """An untrained SAE: random unit directions as encoder and decoder; a token keeps its k largest latents."""

    def __init__(self, cfg: "CustomSAEConfig", k: int, mean: Tensor, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = F.normalize(torch.randn(cfg.d_sae, cfg.d_in, generator=generator), dim=1).to(mean.device)
        super().__init__(cfg, directions.T.contiguous(), -(directions @ mean), directions, mean)
        self.k = k

    def encode(self, x: Tensor) -> Tensor:
        pre = F.relu(x.float() @ self.W_enc + self.b_enc)
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)
