"""Measure dead and duplicate latents, the cosines of decoder rows, and what training merged and resampled."""

import torch
import torch.nn.functional as F
from measures import DUPLICATE
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.idea_analysis import Examination

ROWS = 2048  # decoder rows compared at once
NAMED = 20  # pairs of latents that are named


def measure(exam: Examination) -> dict[str, float]:
    """Return each of MEASURES, those of merging and resampling only if training counted them."""
    checkpoint = exam.checkpoint
    fired = torch.zeros(checkpoint.header.d_sae, dtype=torch.bool, device=checkpoint.device)
    for latents in exam.latents():
        fired |= (latents != 0).any(0)
    results.keep(exam.out, "alive.json", {"alive": fired.nonzero().flatten().tolist()})
    figures = {"dead_fraction": 1 - fired.double().mean().item()}
    rows = F.normalize(checkpoint.W_dec[fired].float(), dim=1)
    if len(rows) > 1:
        random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows.device)
        nearest, pairs = _nearest(rows)
        name_closest(exam, rows, fired.nonzero().flatten())
        figures["duplicate_pairs"] = float(pairs)
        figures["nearest_cosine"] = nearest
        figures["nearest_cosine_random"], _ = _nearest(F.normalize(random, dim=1))
    for figure, name in (("duplicates_merged", "merged"), ("latents_resampled", "resampled")):
        if name in checkpoint.extra:
            figures[figure] = checkpoint.extra[name].item()
    return figures


def name_closest(exam: Examination, rows: Tensor, latents: Tensor) -> None:
    """Name the pairs of the closest decoder rows; `rows [n, d_in]`, of norm 1, are those of the `latents [n]`."""
    best, closest = [], []
    for start in range(0, len(rows), ROWS):
        cosines = rows[start : start + ROWS] @ rows.T
        cosines.diagonal(start).fill_(-1)
        values, others = cosines.max(1)
        best.append(values)
        closest.append(latents[others])
    highest = torch.cat(best).topk(min(2 * NAMED, len(rows)))  # each pair of mutual neighbours is there twice
    own, others = latents[highest.indices].tolist(), torch.cat(closest)[highest.indices].tolist()
    labels = {}
    for latent, other, cosine in zip(own, others, highest.values.tolist(), strict=True):
        labels[latent] = f"{'duplicate of' if cosine > DUPLICATE else 'closest to'} {other} (cosine {cosine:.2f})"
    exam.name_latents(labels, related={latent: [other] for latent, other in zip(own, others, strict=True)})


def _nearest(rows: Tensor) -> tuple[float, int]:
    """Return the mean highest cosine of a unit row with another, and the pairs above DUPLICATE; `rows [n, d_in]`."""
    total, pairs = 0.0, 0
    for start in range(0, len(rows), ROWS):
        cosines = rows[start : start + ROWS] @ rows.T
        cosines.diagonal(start).fill_(-1)
        total += cosines.amax(1).sum().item()
        pairs += int((cosines > DUPLICATE).sum())
    return total / len(rows), pairs // 2
