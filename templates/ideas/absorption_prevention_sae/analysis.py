"""Whether features stay apart: dead and duplicate latents, how near decoder rows lie, what was merged and resampled."""

from typing import TYPE_CHECKING, Any

from agent.lab import results
from agent.lab.results import Measure

if TYPE_CHECKING:
    from agent.lab.evaluation.idea_analysis import Examination

DUPLICATE = 0.9  # cosine of two decoder rows from which they are duplicates
ROWS = 2048  # decoder rows compared at once

MEASURES = {
    "dead_fraction": Measure(
        title="dead fraction", says="the share of the latents that never fire on the evaluation text or samples"
    ),
    "duplicate_pairs": Measure(
        title="duplicate pairs left",
        says=f"pairs of latents that fire whose decoder rows have a cosine above {DUPLICATE}",
        digits=0,
    ),
    "nearest_cosine": Measure(
        title="nearest decoder cosine",
        says="the mean over the latents that fire of the highest cosine of their decoder row with another's",
    ),
    "nearest_cosine_random": Measure(
        title="nearest decoder cosine, random",
        says="the same of as many random directions: what rows that have nothing in common would show",
    ),
    "duplicates_merged": Measure(
        title="duplicates merged", says="latents that were merged into another during the training", digits=0
    ),
    "latents_resampled": Measure(
        title="latents resampled",
        says="how often during the training a dead latent was started again on a badly rebuilt input",
        digits=0,
    ),
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Each of MEASURES on the held-out activations; what was merged and resampled only where the training counted."""
    import torch
    import torch.nn.functional as F

    checkpoint = exam.checkpoint
    fired = torch.zeros(checkpoint.header.d_sae, dtype=torch.bool, device=checkpoint.device)
    for latents in exam.latents():
        fired |= (latents != 0).any(0)
    results.keep(exam.out, "alive.json", {"alive": fired.nonzero().flatten().tolist()})
    figures = {"dead_fraction": 1 - fired.double().mean().item()}
    rows = F.normalize(checkpoint.W_dec[fired].float(), dim=1)
    if len(rows) > 1:
        random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows.device)
        highest, pairs = _nearest(rows)
        figures["duplicate_pairs"] = float(pairs)
        figures["nearest_cosine"] = highest
        figures["nearest_cosine_random"], _ = _nearest(F.normalize(random, dim=1))
    for figure, name in (("duplicates_merged", "merged"), ("latents_resampled", "resampled")):
        if name in checkpoint.extra:
            figures[figure] = checkpoint.extra[name].item()
    return figures


def _nearest(rows: Any) -> tuple[float, int]:
    """Of unit rows `[n, d_in]`: the mean of each one's highest cosine with another, and the pairs above DUPLICATE."""
    total, pairs = 0.0, 0
    for start in range(0, len(rows), ROWS):
        cosines = rows[start : start + ROWS] @ rows.T
        cosines.diagonal(start).fill_(-1)
        total += cosines.amax(1).sum().item()
        pairs += (cosines > DUPLICATE).sum().item()
    return total / len(rows), pairs // 2
