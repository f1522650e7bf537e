"""An L1 coefficient of unscaled activations, translated as docs/baselines.md says, is the same coefficient."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_lab import load
from torch import Tensor

from agent import ideas
from agent.ideas import Fixed

D_IN, D_SAE, BATCH, STEPS, RATE = 16, 48, 64, 120, 1e-2
SCALE = 1 / 40  # from the rows below to rows of mean norm sqrt(D_IN)
OTHERS = 0.04  # the coefficient of a system that trains on rows as they are, with the mean over dimensions as its error


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Rows `[2048, D_IN]` of three of 32 directions each, about a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(32, D_IN, generator=generator)
    strength = torch.rand(2048, 32, generator=generator) * (torch.rand(2048, 32, generator=generator) < 3 / 32)
    x = strength @ features + torch.randn(D_IN, generator=generator) / 4
    return x * (D_IN**0.5 / x.norm(dim=1).mean()) / SCALE


def trained(folder: Path, x: Tensor, coefficient: float, bias_rate: float) -> tuple[float, float]:
    """L0 and explained variance of the ReLU baseline, trained on rows without the lab's scaling."""
    source = ideas.render_baseline(Fixed(baseline="relu", d_sae=D_SAE, batch=BATCH), coefficient)
    folder.mkdir()
    (folder / "experiment.py").write_text(source)
    module: ModuleType = load(folder / "experiment.py")
    torch.manual_seed(0)
    sae = module.SAE(D_IN, D_SAE, x.mean(0))
    biases = {"params": [sae.b_enc, sae.b_dec], "lr": bias_rate}
    optimizer = torch.optim.Adam([biases, {"params": [sae.W_enc, sae.W_dec]}], lr=RATE)
    nothing_dead = torch.empty(0, dtype=torch.long)
    for step in range(STEPS):
        batch = x[torch.randint(len(x), (BATCH,))]
        loss, _, _ = module.compute_loss(sae, batch, nothing_dead, step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        latents = sae.encode(x)
        left = (x - sae.decode(latents)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    return latents.count_nonzero().item() / len(x), 1 - left.item()


def test_a_translated_coefficient_gives_the_same_sae(tmp_path: Path, rows: Tensor):
    of_our_loss = D_IN * OTHERS  # the baseline divides its L1 loss by d_in
    raw = trained(tmp_path / "raw", rows, of_our_loss, RATE / SCALE)
    scaled = trained(tmp_path / "scaled", rows * SCALE, SCALE * of_our_loss, RATE)
    assert raw == pytest.approx(scaled, rel=1e-3)
    untranslated = trained(tmp_path / "untranslated", rows * SCALE, of_our_loss, RATE)
    assert untranslated[0] < scaled[0] / 1.2
