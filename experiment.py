"""Train one sparse autoencoder (SAE) on a model's activations: BatchTopK, the baseline.

    python experiment.py --out_dir=run_0

This file is meant to be edited: everything worth changing is in it. What it imports from agent.lab (the activations,
the guard, finish and the evaluation that it starts) stays the same, so that runs can be compared.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.lab.activations import stream
from agent.lab.run import run
from agent.lab.sparse import SparseLatents, affine, keep, kth_largest
from agent.lab.training import TrainingGuard, constants, finish

# Fixed within a study: two runs that differ here cannot be compared.
MODEL = "tiny-lm"  # tiny-lm (embedded), a local directory, a hub model's name, or a synthetic world
HOOK_NAME = "blocks.1.hook_resid_post"  # the activations that the SAE reconstructs
TEXT = ""  # "" (the text that is installed), a .txt, .jsonl or .parquet file, a folder, a hub dataset
TOKENS = 1_500_000  # training tokens; read in several passes if the text, or 20 million, are fewer
D_SAE = 1024  # latents
SEED = 0  # initialisation and order of the tokens

# Free to change.
K = 16  # latents active per token, on average over a batch
BATCH = 1024  # tokens a step: small enough for thousands of steps, large enough for BatchTopK to average over
LEARNING_RATE = 0.008  # Adam's, between warm-up and decay
WARMUP = 0.02  # share of the steps over which the learning rate rises
DECAY = 0.3  # share of the steps over which it falls to zero
AUX_COEFFICIENT = 1 / 32  # weight of the dead latents' loss (Gao et al. 2024, arXiv 2406.04093)
AUX_K = 64  # dead latents per token that reconstruct the residual
DEAD_AFTER = TOKENS // 20  # tokens without firing that make a latent dead: the run is 20 such windows long
DEAD_EVERY = 50  # steps between updates of the set of dead latents
THRESHOLD_RATE = 0.02  # of the moving average that turns the batch's cut-off into a fixed threshold


class SAE(nn.Module):
    """A BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410) of activations scaled to mean norm sqrt(d_in)."""

    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int, mean: Tensor) -> None:
        super().__init__()
        directions = F.normalize(torch.randn(d_sae, d_in), dim=1)
        self.W_dec = nn.Parameter(directions)  # [d_sae, d_in], rows of norm 1
        self.W_enc = nn.Parameter(directions.T.clone())  # [d_in, d_sae]
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(mean.clone().cpu())  # the data's mean: a silent SAE explains no variance, not less
        self.register_buffer("threshold", torch.zeros(()))

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return non-negative pre-activations `[batch, d_sae]` of activations `[batch, d_in]`."""
        return F.relu(affine(x - self.b_dec, self.W_enc, self.b_enc))

    def encode(self, x: Tensor) -> Tensor:
        """Encode by a fixed threshold (inference): the latents of a token do not depend on other tokens."""
        pre = self.pre_activations(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    def decode(self, latents: Tensor | SparseLatents) -> Tensor:
        return latents @ self.W_dec + self.b_dec

    def select(self, pre: Tensor) -> Tensor | SparseLatents:
        """Keep the batch's K * batch largest pre-activations (training); the threshold follows the smallest of them."""
        smallest = kth_largest(pre, int(K * len(pre)))
        self.threshold.lerp_(smallest, THRESHOLD_RATE)
        return keep(pre, smallest)


def auxiliary_loss(sae: SAE, pre: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    """Return the error of the residual's reconstruction by dead latents (their indices), which revives them."""
    if len(dead) == 0:
        return residual.new_zeros(())
    values, indices = pre[:, dead].topk(min(AUX_K, len(dead)), dim=1)
    rebuilt = torch.zeros_like(pre[:, dead]).scatter(1, indices, values) @ sae.W_dec[dead]
    return (rebuilt - residual).pow(2).mean() / residual.pow(2).mean()


def compute_loss(sae: SAE, x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the latents `[batch, d_sae]` and the mean squared error."""
    pre = sae.pre_activations(x)
    selected = sae.select(pre)  # on a CPU as sparse latents, which are quick to decode
    residual, latents = x - sae.decode(selected), selected.to_dense()
    mse = residual.pow(2).mean()
    auxiliary = auxiliary_loss(sae, pre, residual.detach(), dead)
    return mse + AUX_COEFFICIENT * auxiliary, latents, mse


def learning_rate(progress: float) -> float:
    """Return the learning rate, which rises, stays and falls; `progress` runs from 0 to 1."""
    return LEARNING_RATE * min((progress + 1e-3) / WARMUP, 1.0, (1 - progress) / DECAY)


@torch.no_grad()
def constrain(sae: SAE) -> None:
    """Rescale the decoder rows to norm 1, so that the size of a latent is its contribution."""
    sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))


def main(out_dir: Path) -> None:
    torch.manual_seed(SEED)
    data = stream(MODEL, HOOK_NAME, text=TEXT, tokens=TOKENS, batch=BATCH, seed=SEED)
    sae = SAE(data.d_in, D_SAE, data.mean).to(data.device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), fused=True)
    guard = TrainingGuard(out_dir, sae, data, model=MODEL, hook_name=HOOK_NAME, settings=constants(globals()))
    silent_tokens = torch.zeros(D_SAE, device=data.device)  # tokens since each latent fired
    guard.resumes(lambda: (sae, optimizer, silent_tokens, dead))  # all that changes
    for step, x in enumerate(data, guard.steps):
        rate = optimizer.param_groups[0]["lr"] = learning_rate(step / data.steps)
        if step % DEAD_EVERY == 0:
            dead = (silent_tokens > DEAD_AFTER).nonzero().flatten()
        loss, latents, mse = compute_loss(sae, x, dead)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        constrain(sae)
        active = latents.detach().bool()  # latents are not negative, and this is quicker than a comparison
        silent_tokens = torch.where(latents.detach().amax(0) > 0, 0, silent_tokens + len(x))
        guard.step(
            tokens=len(x),
            loss=loss,
            l0=active.count_nonzero() / len(x),
            mse=mse,
            alive_fraction=(silent_tokens <= DEAD_AFTER).float().mean(),
            grad_norm=grad_norm,
            learning_rate=rate,
        )
    finish(
        guard,
        sae.encode,
        W_dec=sae.W_dec,
        b_dec=sae.b_dec,
        W_enc=sae.W_enc,
        b_enc=sae.b_enc - sae.b_dec @ sae.W_enc,
        threshold=sae.threshold.expand(D_SAE),
    )


if __name__ == "__main__":
    run(main)
