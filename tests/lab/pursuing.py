"""An experiment whose SAE takes K times the decoder row that fits best (Costa et al. 2025, arXiv 2506.03093)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.lab.activations import stream
from agent.lab.run import run
from agent.lab.training import TrainingGuard, constants, finish

MODEL = "tiny-lm"
HOOK_NAME = "blocks.1.hook_resid_post"
TOKENS = 150_000
D_SAE = 128
SEED = 0
K = 4  # rows that are taken for each token
BATCH = 512
LEARNING_RATE = 0.01


class SAE(nn.Module):
    """An SAE without an encoder of its own."""

    def __init__(self, d_in: int, mean: Tensor) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(F.normalize(torch.randn(D_SAE, d_in), dim=1))
        self.b_dec = nn.Parameter(mean.clone().cpu())

    def encode(self, x: Tensor) -> Tensor:
        residual, latents = x - self.b_dec, x.new_zeros(x.shape[0], D_SAE)
        for _ in range(K):
            index = (residual @ self.W_dec.T).argmax(dim=1)
            row = self.W_dec[index]
            size = (residual * row).sum(dim=1, keepdim=True).relu()
            latents = latents.scatter_add(1, index[:, None], size)
            residual = residual - size * row
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.b_dec


def main(out_dir: Path) -> None:
    torch.manual_seed(SEED)
    data = stream(MODEL, HOOK_NAME, tokens=TOKENS, batch=BATCH, seed=SEED)
    sae = SAE(data.d_in, data.mean).to(data.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    guard = TrainingGuard(out_dir, sae, data, model=MODEL, hook_name=HOOK_NAME, settings=constants(globals()))
    for x in data:
        latents = sae.encode(x)
        loss = (x - sae.decode(latents)).pow(2).mean()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
        active = latents != 0
        guard.step(
            tokens=len(x),
            loss=loss,
            l0=active.count_nonzero() / len(x),
            mse=loss,
            alive_fraction=active.any(0).float().mean(),
            grad_norm=grad_norm,
            learning_rate=LEARNING_RATE,
        )
    finish(
        guard,
        sae.encode,
        W_dec=sae.W_dec,
        b_dec=sae.b_dec,
        W_enc=sae.W_dec.T.contiguous(),
        b_enc=torch.zeros(D_SAE),
        architecture="matching_pursuit",
    )


if __name__ == "__main__":
    run(main)
