"""Measure how far the latents are sorted by use, and what the first of their nested prefixes holds."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.ground_truth import MATCHED
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.world_evaluator import HeldOutSamples, WorldEvaluator

NAMED = 8  # latents of what each prefix adds, and features of a world, that are named
BANDS = 64  # of neighbouring latents, whose firing rates are drawn


def measure(exam: Examination) -> dict[str, float]:
    """Return those of MEASURES that apply: none to an SAE without prefixes, of frequent features on a world."""
    groups = [group for name, group in exam.checkpoint.header.groups.items() if name.startswith("prefix_")]
    if not groups:
        return {}
    fired = torch.stack([(latents != 0).sum(0) for latents in exam.latents()]).sum(0).double()
    rates = fired / len(exam.activations)
    bands = [band.mean().item() for band in rates.tensor_split(min(BANDS, len(rates)))]
    results.keep(exam.out, "use.json", {"rates": bands})
    _name_most_used(exam, groups, rates)
    size = groups[0][1]
    first, most = torch.arange(size, device=fired.device), fired.argsort(descending=True, stable=True)[:size]
    own, highest = _explained(exam, first, most)
    return {
        "order_by_use": -spearmanr(range(len(fired)), fired.cpu()).statistic,
        "first_prefix_l0_share": (fired[first].sum() / fired.sum()).item(),
        "most_used_l0_share": (fired[most].sum() / fired.sum()).item(),
        "first_prefix_explained_variance": own,
        "most_used_explained_variance": highest,
        **({} if exam.has_loss else _frequent(exam, groups, fired > 0)),
    }


def _name_most_used(exam: Examination, groups: Sequence[tuple[int, int]], rates: Tensor) -> None:
    """Name the latents of what each prefix adds that fire most often; `rates [d_sae]` are per token."""
    for i, (start, end) in enumerate(groups):
        most = rates[start:end].topk(min(NAMED, end - start)).indices + start
        place = f"added by prefix {i}, latents {start} to {end - 1}"
        exam.name_latents({latent: f"{place}; active on {rates[latent]:.2%}" for latent in most.tolist()})


def _explained(exam: Examination, *sets: Tensor) -> list[float]:
    """Return the explained variance of each set of latents, given by their indices, alone."""
    sae, errors, deviation = exam.sae, torch.zeros(len(sets), dtype=torch.float64), 0.0
    for x, latents in zip(exam.activations.split(exam.rows), exam.latents(), strict=True):
        deviation += (x - exam.held_out.mean).double().pow(2).sum().item()
        for i, chosen in enumerate(sets):
            left = x - sae.b_dec - latents[:, chosen] @ sae.W_dec[chosen]
            errors[i] += left.double().pow(2).sum().item()
    return (1 - errors / deviation).tolist()


def _frequent(exam: Examination, groups: Sequence[tuple[int, int]], alive: Tensor) -> dict[str, float]:
    """Return how many of a world's most frequent features have their latent in the first prefix.

    Latents are matched to features as for true absorption (agent.lab.evaluation.ground_truth); `alive [d_sae]`.
    """
    assert isinstance(exam.evaluator, WorldEvaluator)
    assert isinstance(exam.held_out, HeldOutSamples)
    directions = F.normalize(exam.evaluator.world.feature_dict.feature_vectors, dim=1)
    cosine, closest = (F.normalize(exam.sae.W_dec, dim=1) @ directions.T).max(1)
    matched = ((cosine >= MATCHED) & alive).tolist()
    latent = {int(closest[i]): i for i in cosine.argsort().tolist() if matched[i]}  # the last has the highest
    held = sum(i < groups[0][1] for i in latent.values())
    if not held:
        return {}
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in exam.held_out.features]).sum(0).tolist()
    frequent = sorted(latent, key=lambda feature: -present[feature])[:held]
    _name_frequent(exam, groups, {feature: latent[feature] for feature in frequent[:NAMED]})
    found = sum(latent[feature] < groups[0][1] for feature in frequent)
    return {"frequent_in_first": found / held, "frequent_in_first_by_chance": held / len(latent)}


def _name_frequent(exam: Examination, groups: Sequence[tuple[int, int]], latents: Mapping[int, int]) -> None:
    """Name the latents of the most frequent features: feature -> latent, the most frequent first."""
    labels = {}
    for rank, (feature, latent) in enumerate(latents.items(), 1):
        prefix = next(i for i, (start, end) in enumerate(groups) if start <= latent < end)
        labels[latent] = (
            f"matches feature {feature}, number {rank} by frequency among those with a latent; prefix {prefix}"
        )
    exam.name_latents(labels)
