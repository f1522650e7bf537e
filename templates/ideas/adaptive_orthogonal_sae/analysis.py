"""What orthogonality across groups does: cosines of the decoder, condition of the groups' subspaces, forgetting."""

from statistics import fmean, median
from typing import TYPE_CHECKING

from agent.lab.results import Measure, keep

if TYPE_CHECKING:
    from torch import Tensor

    from agent.lab.evaluation.idea_analysis import Examination

TOKENS = 16_384  # held-out activations by which the latents are grouped
SWEEPS = 10  # reassignments of all latents in grouping them
DRAWS = 5  # random partitions that the groups are held against
BINS = 50  # of cosines, from 0 to 1
SEED = 0
KEPT = "decoder.json"  # what measure leaves for draw

_GROUPS = "groups of at most d_in / 2 live latents that fire together on held-out activations, formed alike for any SAE"
_CONDITION = "the largest over the smallest singular value of its decoder rows, each of norm 1"
MEASURES = {
    "decoder_cosine_mean": Measure(
        title="mean decoder |cosine|",
        says="the mean of |cos(W_i, W_j)| over pairs of live latents' decoder rows",
        digits=4,
    ),
    "decoder_cosine_largest": Measure(
        title="largest decoder |cosine|",
        says="the mean over live latents of the largest |cos(W_i, W_j)| with another (OrtSAE, arXiv 2509.22033)",
        digits=4,
    ),
    "decoder_cosine_max": Measure(
        title="maximum decoder |cosine|", says="the largest |cos(W_i, W_j)| of any two live latents", digits=4
    ),
    "across_group_cosine": Measure(
        title="|cosine| across groups",
        says=f"the mean over latents of the largest |cos| with one of another group; {_GROUPS}",
        digits=4,
    ),
    "within_group_cosine": Measure(
        title="|cosine| within groups",
        says="the mean over pairs in the same group of |cos|, less the same in random groups of the same sizes; "
        f"{_GROUPS}",
        digits=4,
    ),
    "group_coactivation": Measure(
        title="co-activation within groups",
        says="the mean phi coefficient (correlation of whether they fire) of pairs in the same group of training, less "
        "the same in random groups of the same sizes",
        digits=4,
    ),
    "condition_number": Measure(
        title="condition number of groups", says=f"the median over groups of {_CONDITION}; {_GROUPS}", digits=2
    ),
    "condition_number_max": Measure(
        title="condition number of groups, largest",
        says=f"the largest over groups of {_CONDITION}; {_GROUPS}",
        digits=2,
    ),
    "condition_number_random": Measure(
        title="condition number of random groups",
        says=f"the median of the same over random groups of the same sizes, {DRAWS} partitions",
        digits=2,
    ),
    "condition_number_own": Measure(
        title="condition number of training's groups",
        says=f"the median over the groups that training ended with of {_CONDITION}, of live latents",
        digits=2,
    ),
    "forgetting_score": Measure(
        title="forgetting",
        says="what clamping a topic's latents costs on that topic, where the rest costs at most 1% more "
        "(Farrell et al. 2024, arXiv 2410.19278); where one latent stands for one thing, more can be forgotten",
        unit="nats/token",
    ),
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Each of MEASURES; the groups of training only where the SAE has some, forgetting where there is a model.

    Only latents count that fire on the held-out activations: the rows of dead ones are as they were drawn.
    """
    import torch
    import torch.nn.functional as F

    W_dec = exam.checkpoint.W_dec.to(exam.activations.device)
    alive = torch.zeros(len(W_dec), dtype=torch.bool, device=W_dec.device)
    sample = []
    for latents in exam.latents():
        alive |= (latents != 0).any(0)
        if sum(map(len, sample)) < TOKENS:
            sample.append(latents != 0)
    n = int(alive.sum())
    figures: dict[str, float] = {}
    if exam.has_loss and (score := exam.forgetting(exam.sae)) is not None:
        figures["forgetting_score"] = score
    if n < 2:
        return figures
    W, active = F.normalize(W_dec[alive], dim=1), torch.cat(sample)[:, alive]
    generator = torch.Generator().manual_seed(SEED)
    count = -(-n // (W.shape[1] // 2))
    draws = [(torch.randperm(n, generator=generator) % count).to(W.device) for _ in range(DRAWS)]
    phi = coactivation(active)
    group = torch.empty_like(draws[0])  # at first in the order of how much they fire with the most frequent one
    group[phi[active.sum(0).argmax()].argsort(stable=True)] = torch.arange(n, device=W.device) * count // n
    group = coactivation_groups(phi, group, count)

    cosines = (W @ W.T).abs().fill_diagonal_(0)
    largest, pairs = cosines.amax(1), cosines[*torch.triu_indices(n, n, 1)]
    figures["decoder_cosine_mean"] = pairs.mean().item()
    figures["decoder_cosine_largest"] = largest.mean().item()
    figures["decoder_cosine_max"] = largest.max().item()
    same = group[:, None] == group
    figures["across_group_cosine"] = cosines.masked_fill(same, 0).amax(1).mean().item()
    figures["within_group_cosine"] = within(cosines, group) - fmean(within(cosines, draw) for draw in draws)
    conditions = {"coactivation": condition_numbers(W, group)}
    conditions["random"] = [number for draw in draws for number in condition_numbers(W, draw)]
    figures["condition_number"] = median(conditions["coactivation"])
    figures["condition_number_max"] = max(conditions["coactivation"])
    figures["condition_number_random"] = median(conditions["random"])
    if (trained := exam.checkpoint.extra.get("group")) is not None:
        own = trained.to(W.device)[alive]
        conditions["own"] = condition_numbers(W, own)
        figures["condition_number_own"] = median(conditions["own"])
        phi.fill_diagonal_(0)
        shuffled = [own[torch.randperm(n, generator=generator).to(W.device)] for _ in range(DRAWS)]
        figures["group_coactivation"] = within(phi, own) - fmean(within(phi, draw) for draw in shuffled)
    histograms = {
        name: torch.histc(values, BINS, 0, 1).div(len(values)).tolist()
        for name, values in (("pairs", pairs), ("largest", largest))
    }
    keep(exam.out, KEPT, {"conditions": conditions, "cosines": histograms})
    return figures


def coactivation(active: "Tensor") -> "Tensor":
    """The phi coefficients `[latents, latents]` of `active [tokens, latents]`: correlations of whether they fire."""
    import torch.nn.functional as F

    fires = F.normalize(active.float() - active.float().mean(0), dim=0)
    return fires.T @ fires


def coactivation_groups(phi: "Tensor", group: "Tensor", groups: int) -> "Tensor":
    """`[latents]`: the groups that training's function of this name forms from `group` on; `phi [latents, latents]`."""
    import torch.nn.functional as F

    own = phi.diagonal()[:, None]
    for _ in range(SWEEPS):
        members = F.one_hot(group, groups).float()
        others = members.sum(0) - members
        group = balanced((phi @ members - own * members) / others.clamp_min(1))
    return group


def balanced(scores: "Tensor") -> "Tensor":
    """`[latents]`: the group of the highest score that has room, as training's function of this name finds it."""
    import torch

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


def within(values: "Tensor", group: "Tensor") -> float:
    """The mean of `values [n, n]`, zero on the diagonal, over pairs of the same group."""
    same = group[:, None] == group
    return (values[same].sum() / (same.sum() - len(group)).clamp_min(1)).item()


def condition_numbers(W: "Tensor", group: "Tensor") -> list[float]:
    """Of the rows of each group, unit vectors `[n, d_in]`: the largest over the smallest singular value."""
    import torch

    found = []
    for g in group.unique().tolist():
        values = torch.linalg.svdvals(W[group == g].double())
        found.append((values[0] / values[-1]).item())
    return found
