"""Measure each nested prefix of a Matryoshka SAE alone, what it adds, and the parent features in the first."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from measures import DRAWS, MOST
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.ground_truth import MATCHED, descendants
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.world_evaluator import HeldOutSamples, WorldEvaluator

NAMED = 8  # latents of what each prefix adds, and parents of a world, that are named


def measure(exam: Examination) -> dict[str, float]:
    """Return those of MEASURES that apply: of prefixes if the SAE has some, of parents on a world."""
    groups = [group for name, group in exam.checkpoint.header.groups.items() if name.startswith("prefix_")][:MOST]
    figures = {}
    if groups:
        results.keep(exam.out, "prefixes.json", {"ends": [end for _, end in groups]})
        figures = _reconstruction(exam, groups) | _use(exam, groups)
    return figures | ({} if exam.has_loss else _parents(exam, groups))


def _reconstruction(exam: Examination, groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return the explained variance of each prefix, and its mean over random orders of the latents."""
    sae, generator = exam.sae, torch.Generator().manual_seed(0)
    d_sae = len(sae.W_dec)
    orders = [torch.arange(d_sae), *(torch.randperm(d_sae, generator=generator) for _ in range(DRAWS))]
    orders = [order.to(sae.W_dec.device) for order in orders]
    errors, deviation = torch.zeros(len(orders), len(groups), dtype=torch.float64), 0.0
    for x, latents in zip(exam.activations.split(exam.rows), exam.latents(), strict=True):
        deviation += (x - exam.held_out.mean).double().pow(2).sum().item()
        for i, order in enumerate(orders):
            left = x - sae.b_dec
            for j, (start, end) in enumerate(groups):
                chosen = order[start:end]
                left = left - latents[:, chosen] @ sae.W_dec[chosen]
                errors[i, j] += left.double().pow(2).sum().item()
    explained = 1 - errors / deviation
    own, drawn = explained[0].tolist(), explained[1:].mean(0).tolist()
    figures = {f"prefix_{i}_explained_variance": value for i, value in enumerate(own)}
    return figures | {f"prefix_{i}_random_explained_variance": value for i, value in enumerate(drawn[:-1])}


def _use(exam: Examination, groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return the shares of the active and of the live latents in what each prefix adds."""
    fired = torch.stack([(latents != 0).sum(0) for latents in exam.latents()]).sum(0).double()
    figures = {}
    _name_most_active(exam, groups, fired)
    for i, (start, end) in enumerate(groups):
        figures[f"prefix_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"prefix_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    return figures


def _name_most_active(exam: Examination, groups: Sequence[tuple[int, int]], fired: Tensor) -> None:
    """Name the latents of what each prefix adds that fire on most tokens; `fired [d_sae]`."""
    for i, (start, end) in enumerate(groups):
        most = fired[start:end].topk(min(NAMED, end - start)).indices + start
        exam.name_latents(dict.fromkeys(most.tolist(), f"added by prefix {i}, latents {start} to {end - 1}"))


def _parents(exam: Examination, groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return how many parents of a world's hierarchy have a latent, and how many have it in the first prefix.

    Latents are matched to features as for true absorption (agent.lab.evaluation.ground_truth).
    """
    assert isinstance(exam.evaluator, WorldEvaluator)
    assert isinstance(exam.held_out, HeldOutSamples)
    world = exam.evaluator.world
    if world.hierarchy is None:
        return {}
    fired = torch.stack([(latents != 0).any(0) for latents in exam.latents()]).any(0)
    directions = F.normalize(world.feature_dict.feature_vectors, dim=1)
    cosine, closest = (F.normalize(exam.sae.W_dec, dim=1) @ directions.T).max(1)
    matched = ((cosine >= MATCHED) & fired).tolist()
    latent = {int(closest[i]): i for i in cosine.argsort().tolist() if matched[i]}  # the last has the highest
    all_parents = set(descendants(world))
    parents = all_parents & latent.keys()
    figures = {"parents_learned": len(parents) / len(all_parents)}
    if not groups or not parents:
        return figures
    _name_parents(exam, groups, {feature: latent[feature] for feature in sorted(parents)[:NAMED]})
    end = groups[0][1]
    in_first = {feature for feature, i in latent.items() if i < end}
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in exam.held_out.features]).sum(0).tolist()
    by_rate = set(sorted(latent, key=lambda feature: -present[feature])[: len(in_first)])
    return figures | {
        "parents_in_first": len(parents & in_first) / len(parents),
        "parents_in_first_by_chance": len(in_first) / len(latent),
        "parents_in_first_by_rate": len(parents & by_rate) / len(parents),
    }


def _name_parents(exam: Examination, groups: Sequence[tuple[int, int]], latents: dict[int, int]) -> None:
    """Name the latents that match parent features of the world: feature -> latent."""
    labels = {}
    for feature, latent in latents.items():
        prefix = next((i for i, (start, end) in enumerate(groups) if start <= latent < end), len(groups))
        labels[latent] = f"matches parent feature {feature}, added by prefix {prefix}"
    exam.name_latents(labels)
