"""What the nested prefixes of a Matryoshka SAE do: how each rebuilds alone, how each is used, what is in the first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.lab import results
from agent.lab.results import Measure

if TYPE_CHECKING:
    from agent.lab.evaluation.idea_analysis import Examination

DRAWS = 8  # random orders of the latents, beside their own
MOST = 5  # prefixes that are measured

MEASURES = {
    **{
        f"prefix_{i}_explained_variance": Measure(
            title=f"prefix {i} alone: explained variance",
            says=f"1 - sum ||x - x_{i}||^2 / sum ||x - mean||^2, where x_{i} is what the latents of prefix {i} decode "
            "to without the others (Bussmann et al. 2025, arXiv 2503.17547)",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_random_explained_variance": Measure(
            title=f"as many random latents as prefix {i}: explained variance",
            says=f"the same of as many latents as prefix {i} has, drawn at random from the whole SAE: the mean of "
            f"{DRAWS} draws",
        )
        for i in range(MOST - 1)
    },
    **{
        f"prefix_{i}_l0_share": Measure(
            title=f"added by prefix {i}: share of L0",
            says=f"the share of the active latents that are in prefix {i} and in no shorter one",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_alive_fraction": Measure(
            title=f"added by prefix {i}: alive fraction",
            says=f"the share of the latents in prefix {i}, and in no shorter one, that fire on the evaluation samples",
        )
        for i in range(MOST)
    },
    "parents_learned": Measure(
        title="parents with a latent",
        says="the share of the world's parent features (those with descendants) that a latent belongs to: it fires, "
        "and its decoder row is most like this feature, with a cosine of at least 0.5",
    ),
    "parents_in_first": Measure(
        title="parents in the first prefix",
        says="of the parents with a latent, the share whose latent, or the one most like it, is in the first prefix",
    ),
    "parents_in_first_by_chance": Measure(
        title="parents in the first prefix, by chance",
        says="the same share of all features with a latent, and so what to expect if being a parent meant nothing",
    ),
    "parents_in_first_by_rate": Measure(
        title="parents in the first prefix, by firing rate",
        says="the same share of the parents if the features with a latent stood in the order of how often they are "
        "present: parents are present more often than their descendants, so what lies beyond chance and not beyond "
        "this is an order by firing rate and no knowledge of the hierarchy",
    ),
}


def measure(exam: "Examination") -> "dict[str, float]":
    """Those of MEASURES that the SAE and its subject allow: prefixes where it has them, parents on a world."""
    groups = [group for name, group in exam.checkpoint.header.groups.items() if name.startswith("prefix_")][:MOST]
    figures = {}
    if groups:
        results.keep(exam.out, "prefixes.json", {"ends": [end for _, end in groups]})
        figures = _reconstruction(exam, groups) | _use(exam, groups)
    return figures | ({} if exam.has_loss else _parents(exam, groups))


def _reconstruction(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The explained variance of each prefix, in the latents' own order and in random ones."""
    import torch

    sae, generator = exam.sae, torch.Generator().manual_seed(0)
    d_sae = len(sae.W_dec)
    orders = [torch.arange(d_sae), *(torch.randperm(d_sae, generator=generator) for _ in range(DRAWS))]
    orders = [order.to(sae.W_dec.device) for order in orders]
    errors, deviation = torch.zeros(len(orders), len(groups), dtype=torch.float64), 0.0
    for x, latents in zip(exam.activations.split(4096), exam.latents(), strict=True):
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


def _use(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How the active and the live latents spread over what each prefix adds."""
    import torch

    fired = torch.stack([(latents != 0).sum(0) for latents in exam.latents()]).sum(0).double()
    figures = {}
    for i, (start, end) in enumerate(groups):
        figures[f"prefix_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"prefix_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    return figures


def _parents(exam: "Examination", groups: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How many of the parents of a world's hierarchy have a latent, and how many have it in the first prefix.

    A latent belongs to a feature as it does where absorption is measured (agent.lab.evaluation.families.synthetic).
    """
    import torch
    import torch.nn.functional as F

    from agent.lab.evaluation.ground_truth import MATCHED, descendants
    from agent.lab.evaluation.world_evaluator import HeldOutSamples, WorldEvaluator

    assert isinstance(exam.evaluator, WorldEvaluator)
    assert isinstance(exam.held_out, HeldOutSamples)
    world = exam.evaluator.world
    if world.hierarchy is None:
        return {}
    fired = torch.stack([(latents != 0).any(0) for latents in exam.latents()]).any(0)
    directions = F.normalize(world.feature_dict.feature_vectors, dim=1)
    cosine, feature = (F.normalize(exam.sae.W_dec, dim=1) @ directions.T).max(1)
    mine = ((cosine >= MATCHED) & fired).tolist()
    latent = {int(feature[i]): i for i in cosine.argsort().tolist() if mine[i]}  # the last of them is the most alike
    everyone = set(descendants(world))
    parents = everyone & latent.keys()
    figures = {"parents_learned": len(parents) / len(everyone)}
    if not groups or not parents:
        return figures
    end = groups[0][1]
    first = {name for name, i in latent.items() if i < end}
    present = torch.stack([(batch.to_dense() > 0).sum(0) for batch in exam.held_out.features]).sum(0).tolist()
    by_rate = set(sorted(latent, key=lambda name: -present[name])[: len(first)])
    return figures | {
        "parents_in_first": len(parents & first) / len(parents),
        "parents_in_first_by_chance": len(first) / len(latent),
        "parents_in_first_by_rate": len(parents & by_rate) / len(parents),
    }
