"""Measure the cosines of the decoder, the condition numbers of groups of latents, and forgetting."""

from itertools import islice
from statistics import fmean, median

import torch
import torch.nn.functional as F
from measures import BINS, DRAWS, KEPT, LATENTS
from torch import Tensor

from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.results import keep

TOKENS = 16_384  # held-out activations used to group the latents
SWEEPS = 10  # reassignments of all latents while grouping them
SEED = 0
NAMED = 20  # latents of different groups that are named, those with the largest cosines


def measure(exam: Examination) -> dict[str, float]:
    """Return those of MEASURES that apply: of training's groups if the SAE has some, forgetting if there is a model.

    Only latents that fire on the held-out activations count: the decoder rows of dead ones are still random. Of more
    than LATENTS they are a seeded sample.
    """
    device, alive = exam.activations.device, live_latents(exam)
    n = int(alive.sum())
    figures: dict[str, float] = {}
    if exam.has_loss and (score := exam.forgetting(exam.sae)) is not None:
        figures["forgetting_score"] = score
    if n < 2:
        return figures
    W = F.normalize(exam.checkpoint.W_dec.to(device)[alive], dim=1)
    batches = islice(exam.latents(), -(-TOKENS // exam.rows))
    active = torch.cat([(latents != 0)[:, alive] for latents in batches])
    generator = torch.Generator().manual_seed(SEED)
    count = -(-n // (W.shape[1] // 2))
    draws = [(torch.randperm(n, generator=generator) % count).to(device) for _ in range(DRAWS)]
    cosines, phi = (W @ W.T).abs().fill_diagonal_(0), coactivation(active)
    group = coactivation_groups(phi, ordered_groups(phi[active.sum(0).argmax()], count), count)

    largest, pairs = cosines.amax(1), cosines[*torch.triu_indices(n, n, 1)]
    figures["decoder_cosine_mean"] = pairs.mean().item()
    figures["decoder_cosine_largest"] = largest.mean().item()
    figures["decoder_cosine_max"] = largest.max().item()
    figures["across_group_cosine"] = across(cosines, group).amax(1).mean().item()
    figures["within_group_cosine"] = more_within(cosines, group, draws)
    conditions = {"coactivation": condition_numbers(W, group)}
    conditions["random"] = [number for draw in draws for number in condition_numbers(W, draw)]
    figures["condition_number"] = median(conditions["coactivation"])
    figures["condition_number_max"] = max(conditions["coactivation"])
    figures["condition_number_random"] = median(conditions["random"])
    if (trained := exam.checkpoint.extra.get("group")) is not None:
        group = trained.to(device)[alive]
        conditions["own"] = condition_numbers(W, group)
        figures["condition_number_own"] = median(conditions["own"])
        shuffled = [group[torch.randperm(n, generator=generator).to(device)] for _ in range(DRAWS)]
        figures["group_coactivation"] = more_within(phi.fill_diagonal_(0), group, shuffled)
    name_closest(exam, cosines, group, alive)
    histograms = {
        name: torch.histc(values, BINS, 0, 1).div(len(values)).tolist()
        for name, values in (("pairs", pairs), ("largest", largest))
    }
    keep(exam.out, KEPT, {"conditions": conditions, "cosines": histograms})
    return figures


def live_latents(exam: Examination) -> Tensor:
    """Return which latents `[d_sae]` fire on the held-out activations: of more than LATENTS, a seeded sample."""
    device = exam.activations.device
    alive = torch.zeros(exam.checkpoint.header.d_sae, dtype=torch.bool, device=device)
    for latents in exam.latents():
        alive |= (latents != 0).any(0)
    live = alive.nonzero().flatten()
    left_out = torch.randperm(len(live), generator=torch.Generator().manual_seed(SEED))[LATENTS:]
    alive[live[left_out.to(device)]] = False
    return alive


def name_closest(exam: Examination, cosines: Tensor, group: Tensor, alive: Tensor) -> None:
    """Name the latents with the largest |cosine| to one of another group: `cosines [n, n]` and `group [n]` are those of
    the `alive [d_sae]`."""
    latents = alive.nonzero().flatten()
    values, others = across(cosines, group).max(1)
    labels, related = {}, {}
    for i in values.topk(min(NAMED, len(latents))).indices.tolist():
        latent, other = int(latents[i]), int(latents[others[i]])
        closest = f"closest of another group: {other} of group {int(group[others[i]])}"
        labels[latent] = f"group {int(group[i])}, {closest} (|cosine| {values[i]:.2f})"
        related[latent] = [other]
    exam.name_latents(labels, related)


def coactivation(active: Tensor) -> Tensor:
    """Return the phi coefficients `[latents, latents]` of `active [tokens, latents]`: the correlations of firing."""
    fires = F.normalize(active.float() - active.float().mean(0), dim=0)
    return fires.T @ fires


def ordered_groups(nearness: Tensor, groups: int) -> Tensor:
    """Return the group of each latent where groups of one size follow the order of `nearness [latents]`."""
    group = torch.empty(len(nearness), dtype=torch.int64, device=nearness.device)
    group[nearness.argsort(stable=True)] = torch.arange(len(group), device=group.device) * groups // len(group)
    return group


def coactivation_groups(phi: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the group of each latent, formed from `group` on as experiment.py forms it; `phi [latents, latents]`."""
    own = phi.diagonal()[:, None]
    for _ in range(SWEEPS):
        members = F.one_hot(group, groups).float()
        others = members.sum(0) - members
        group = balanced((phi @ members - own * members) / others.clamp_min(1))
    return group


def balanced(scores: Tensor) -> Tensor:
    """Return each latent's group, the one of its highest score `[latents, groups]` with room, as in experiment.py."""
    n, groups = scores.shape
    room = [(n + g) // groups for g in range(groups)]
    group, scores = torch.full((n,), -1, device=scores.device), scores.clone()
    while len(left := (group < 0).nonzero().flatten()):
        wanted = scores[left].argmax(1)
        for g in wanted.unique().tolist():
            applicants = left[wanted == g]
            taken = applicants[scores[applicants, g].argsort(descending=True, stable=True)[: room[g]]]
            group[taken] = g
            room[g] -= len(taken)
            if room[g] == 0:
                scores[:, g] = -torch.inf
    return group


def within(values: Tensor, group: Tensor) -> float:
    """Return the mean of `values [n, n]`, zero on the diagonal, over pairs in the same group."""
    same = group[:, None] == group
    return (values[same].sum() / (same.sum() - len(group)).clamp_min(1)).item()


def more_within(values: Tensor, group: Tensor, draws: list[Tensor]) -> float:
    """Return by how much the mean of `values` within groups is above that within groups drawn at random."""
    return within(values, group) - fmean(within(values, draw) for draw in draws)


def across(values: Tensor, group: Tensor) -> Tensor:
    """Return `values [n, n]` with zeros for pairs in the same group."""
    return values.masked_fill(group[:, None] == group, 0)


def condition_numbers(W: Tensor, group: Tensor) -> list[float]:
    """Return each group's largest over smallest singular value, of its unit rows in `W [n, d_in]`."""
    numbers = []
    for g in group.unique().tolist():
        values = torch.linalg.svdvals(W[group == g].double())
        numbers.append((values[0] / values[-1]).item())
    return numbers
