"""Measure dead and duplicate latents, the cosines of decoder rows, and what training merged and resampled."""

import torch
import torch.nn.functional as F
from measures import DUPLICATE
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.idea_analysis import Examination

ROWS = 2048  # decoder rows compared at once
RANDOM_ROWS = 2 * ROWS  # random directions of which the nearest is looked for, among as many as there are latents
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
        cosines, others, pairs = nearest(rows)
        name_closest(exam, cosines, fired.nonzero().flatten(), others)
        figures["duplicate_pairs"] = float(pairs)
        figures["nearest_cosine"] = cosines.double().mean().item()
        random = F.normalize(torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)), dim=1).to(rows.device)
        figures["nearest_cosine_random"] = nearest(random, RANDOM_ROWS)[0].double().mean().item()
    for figure, name in (("duplicates_merged", "merged"), ("latents_resampled", "resampled")):
        if name in checkpoint.extra:
            figures[figure] = checkpoint.extra[name].item()
    return figures


def name_closest(exam: Examination, cosines: Tensor, latents: Tensor, others: Tensor) -> None:
    """Name the pairs of the closest decoder rows, of the `latents [n]`, from what `nearest` returned."""
    highest = cosines.topk(min(2 * NAMED, len(cosines)))  # each pair of mutual neighbours is there twice
    own, closest = latents[highest.indices].tolist(), latents[others[highest.indices]].tolist()
    labels = {}
    for latent, other, cosine in zip(own, closest, highest.values.tolist(), strict=True):
        labels[latent] = f"{'duplicate of' if cosine > DUPLICATE else 'closest to'} {other} (cosine {cosine:.2f})"
    exam.name_latents(labels, related={latent: [other] for latent, other in zip(own, closest, strict=True)})


def nearest(rows: Tensor, first: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Return the highest cosine of each of the first unit rows, or of all, with another, which one it is, both
    `[first]`, and the number of pairs above DUPLICATE; `rows [n, d_in]`."""
    best, others, pairs = [], [], 0
    for start in range(0, min(first or len(rows), len(rows)), ROWS):
        cosines = rows[start : start + ROWS] @ rows.T
        cosines.diagonal(start).fill_(-1)
        values, indices = cosines.max(1)
        best.append(values)
        others.append(indices)
        pairs += int((cosines > DUPLICATE).sum())
    return torch.cat(best), torch.cat(others), pairs // 2
