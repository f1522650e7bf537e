"""The feature of a world that each latent follows, with the features above it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.evaluation.bench import core_text
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.features import TrueFeature


class TrueFeatures:
    """The features of a world and its dev samples, to which latents are compared."""

    def __init__(self, evaluator: WorldEvaluator) -> None:
        self.samples = evaluator.held_out("dev", core_text.WINDOWS)
        self.directions = F.normalize(evaluator.world.feature_dict.feature_vectors, dim=1)
        self.parents = parents(evaluator)

    @torch.no_grad()
    def of(self, sae: Checkpoint, latents: list[int]) -> dict[int, TrueFeature]:
        """Return for each latent the feature whose direction has the highest cosine with its decoder row.

        F1 is that of the latent's firing as a detector of the feature's presence, on the dev samples.
        """
        rows = F.normalize(sae.W_dec[latents].float(), dim=1)
        cosines, closest = (rows @ self.directions.T).max(1)
        f1 = self._f1(sae, latents, closest)
        found = {}
        for latent, cosine, feature, score in zip(
            latents, cosines.tolist(), closest.tolist(), f1.tolist(), strict=True
        ):
            found[latent] = TrueFeature(
                feature=feature, cosine=round(cosine, 4), f1=round(score, 4), parents=self.parents.get(feature, [])
            )
        return found

    def _f1(self, sae: Checkpoint, latents: list[int], closest: Tensor) -> Tensor:
        """Return 2 TP / (2 TP + FP + FN) of each latent, 0 if it and its feature are never active; `[n]`."""
        both = fires = present = torch.zeros(len(latents), dtype=torch.float64, device=sae.device)
        start = 0
        for batch in self.samples.features:
            there = batch.to_dense()[:, closest] > 0
            active = sae.encode(self.samples.activations[start : start + len(there)])[:, latents] != 0
            both, fires, present = both + (active & there).sum(0), fires + active.sum(0), present + there.sum(0)
            start += len(there)
        return 2 * both / (fires + present).clamp_min(1)


def parents(evaluator: WorldEvaluator) -> dict[int, list[int]]:
    """Return of each feature of the world's hierarchy the features above it, from its own parent up to its root."""
    chains: dict[int, list[int]] = {}
    nodes = [(root, []) for root in evaluator.world.hierarchy.roots] if evaluator.world.hierarchy else []
    while nodes:
        node, above = nodes.pop()
        index = node.feature_index
        if index is not None:
            chains[index] = above
        nodes += [(child, above if index is None else [index, *above]) for child in node.children]
    return chains
