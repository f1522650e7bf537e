"""Ground truth: compare an SAE's latents with the features that made a synthetic world's samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sae_lens.synthetic import SyntheticModel
from torch import Tensor

from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.results import FamilyScores

MATCHED = 0.5  # cosine from which a decoder row matches a feature; random rows reach 0.3 in 256 dimensions
CARRIED = 0.4  # share of the parent's activation that an absorbing latent writes along its direction; SAE-Bench's


def measure(world: "SyntheticModel", sae: "BenchSAE", features: Sequence[Tensor]) -> tuple[FamilyScores, dict]:
    """Return the scores on samples given as sparse batches of features `[batch, num_features]`, and the full record."""
    from sae_lens.synthetic.evals import eval_sae_on_synthetic_data

    samples, batch_size = sum(len(batch) for batch in features), len(features[0])
    scores = eval_sae_on_synthetic_data(sae, world.feature_dict, Replay(features), samples, batch_size)  # type: ignore[arg-type]
    absorbed = absorption(world, sae, features)
    metrics = {
        "f1": scores.classification.f1_score,
        "precision": scores.classification.precision,
        "recall": scores.classification.recall,
        "mcc": scores.mcc,
        "uniqueness": scores.uniqueness,
        "explained_variance": scores.explained_variance,
        "shrinkage": scores.shrinkage,
        "dead_latents": float(scores.dead_latents),
        "l0": scores.sae_l0,
        "true_l0": scores.true_l0,
        "absorption": absorbed.rate,
        "absorption_parents": float(len(absorbed.parents)),
    }
    not_applicable = {"absorption": absorbed.reason} if absorbed.reason else {}
    record = {**scores.to_dict(), "absorption": {"rate": absorbed.rate, "parents": absorbed.parents}}
    return FamilyScores(metrics=metrics, not_applicable=not_applicable), record


class Replay:
    """A stand-in for an ActivationGenerator that returns batches drawn earlier, in their order."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        self.left = iter(features)

    def sample(self, batch_size: int) -> Tensor:
        """Return the next batch `[batch_size, num_features]`, dense."""
        batch = next(self.left).to_dense()
        assert len(batch) == batch_size
        return batch


@dataclass(frozen=True)
class Absorption:
    """The rate at which latents of descendants take the place of their parents' own latents."""

    rate: float | None  # mean over the parents
    parents: dict[int, dict[str, float]]  # feature -> present: samples; silent, absorbed: shares of them
    reason: str = ""  # why there is no rate


@torch.no_grad()
def absorption(world: "SyntheticModel", sae: "BenchSAE", features: Sequence[Tensor]) -> Absorption:
    """Measure feature absorption against the true features: the mean over parent features p of

        P( p's own latents are silent, and a latent i of a descendant c that is present has
           z_i (d_i . v_p) >= CARRIED * a_p  |  p is present )

    with z the latents, d_i the decoder rows, v_p the unit direction of p and a_p its activation. A latent belongs to
    the feature whose direction has the highest cosine with its decoder row, if that is at least MATCHED and the latent
    fires at all. Parents without a latent of their own, or never present, are left out: a feature that was never
    learned is missing, not absorbed.

    This is full absorption of Chanin et al. 2024, "A is for Absorption" (arXiv 2409.14507), as computed by SAE-Bench's
    FeatureAbsorptionCalculator (main latents silent; the absorbing latent aligned with the probe and at least 0.4 of
    its projection), with the true direction in place of the probe, the true activation in place of the projection,
    matched latents in place of those from k-sparse probing, and only latents of true descendants as absorbers.
    """
    if world.hierarchy is None:
        return Absorption(None, {}, "the world has no hierarchy")
    directions = F.normalize(world.feature_dict.feature_vectors, dim=1)
    fired = torch.zeros(len(sae.W_dec), dtype=torch.bool, device=sae.W_dec.device)
    for batch in features:
        fired |= (sae.encode(world.feature_dict(batch.to_dense())) != 0).any(0)
    if not fired.any():
        return Absorption(None, {}, "no latent fires")
    cosine, feature = (F.normalize(sae.W_dec, dim=1) @ directions.T).max(1)
    feature[(cosine < MATCHED) | ~fired] = -1
    below = {parent: set(nodes) for parent, nodes in descendants(world).items() if (feature == parent).any()}
    if not below:
        return Absorption(None, {}, "no latent matches a parent feature")
    counts = {parent: [0, 0, 0] for parent in below}  # present, silent, absorbed
    for batch in features:
        truth = batch.to_dense()
        latents = sae.encode(world.feature_dict(truth))
        for parent, nodes in below.items():
            added = _count_absorbed(parent, nodes, truth, latents, feature, sae.W_dec @ directions[parent])
            counts[parent] = [a + b for a, b in zip(counts[parent], added, strict=True)]
    parents = {
        parent: {"present": present, "silent": silent / present, "absorbed": absorbed / present}
        for parent, (present, silent, absorbed) in counts.items()
        if present
    }
    if not parents:
        return Absorption(None, {}, "no parent feature that a latent matches was present")
    return Absorption(sum(parent["absorbed"] for parent in parents.values()) / len(parents), parents)


def _count_absorbed(
    parent: int, below: set[int], truth: Tensor, latents: Tensor, feature: Tensor, written: Tensor
) -> tuple[int, int, int]:
    """Count a batch's samples with the parent, those with its own latents silent, and those that are absorbed.

    truth `[batch, num_features]`, latents `[batch, d_sae]`; feature `[d_sae]` is the feature that a latent belongs to,
    and written `[d_sae]` what a latent writes along the parent's direction when it is 1.
    """
    present = truth[:, parent] > 0
    truth, latents = truth[present], latents[present]
    silent = (latents[:, feature == parent] == 0).all(1)
    absorbers = torch.isin(feature, torch.tensor(sorted(below), device=feature.device)).nonzero().flatten()
    carried = (truth[:, feature[absorbers]] > 0) * latents[:, absorbers] * written[absorbers]
    absorbed = silent & (carried >= CARRIED * truth[:, parent, None]).any(1)
    return int(present.sum()), int(silent.sum()), int(absorbed.sum())


def descendants(world: "SyntheticModel") -> dict[int, list[int]]:
    """Return every parent feature of the hierarchy with all features below it."""
    assert world.hierarchy
    features, nodes = {}, list(world.hierarchy.roots)
    while nodes:
        node = nodes.pop()
        nodes += node.children
        below = [feature for child in node.children for feature in child.get_all_feature_indices()]
        if node.feature_index is not None and below:
            features[node.feature_index] = below
    return features
