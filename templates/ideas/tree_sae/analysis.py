"""What the tree of a tree SAE does: its levels, how children and parents fire together, and what the paths carry.

Whatever speaks of the tree is held against the same figure with latents swapped for others of their level that fire
about as often: that a parent fires with its child most of the time shows little where that parent often fires anyway
(Cao et al. 2026, "Tree SAE", arXiv 2605.07922).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agent.lab import results
from agent.lab.results import Measure

if TYPE_CHECKING:
    from torch import Tensor

    from agent.lab.evaluation.idea_analysis import Examination

SWAPS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)  # ranks, by how often latents fire, from a latent to the one in its place
SPECIALIZATION_BATCHES = 4
LEAVES_SHOWN, TREES_SHOWN, TOKENS_OF_A_TREE = 30, 6, 6
KEPT = "tree.json"

MEASURES = {
    **{
        f"level_{i}_size": Measure(
            title=f"level {i}: size", says=f"the share of the latents in level {i}, 0 the leaves"
        )
        for i in range(3)
    },
    **{
        f"level_{i}_l0": Measure(
            title=f"level {i}: L0", says=f"latents of level {i} that are active on a token", unit="latents/token"
        )
        for i in range(3)
    },
    **{
        f"level_{i}_alive_fraction": Measure(
            title=f"level {i}: alive fraction",
            says=f"the share of level {i}'s latents that fire on the evaluation text",
        )
        for i in range(3)
    },
    **{
        f"level_{i}_probing_accuracy": Measure(
            title=f"level {i}: probing accuracy",
            says=f"mean test accuracy of sparse probing on the top 5 latents of level {i} alone, the rest left out; a "
            "larger level has more to choose from",
        )
        for i in range(3)
    },
    "open_edges": Measure(title="open edges", says="the share of the edges of the tree that were not pruned"),
    "parent_coverage": Measure(
        title="parent coverage",
        says="P(parent fires | child fires) over all firings of the latents below the top; edges that were pruned "
        "count too, so that closing weak ones does not raise it",
    ),
    "parent_coverage_swapped": Measure(
        title="parent coverage, swapped parents",
        says="the same with each parent swapped for others of its level that fire about as often, mean of ten",
    ),
    "hierarchical_consistency": Measure(
        title="hierarchical consistency",
        says="parent coverage less that of swapped parents, over all edges, open and pruned: what coverage there is "
        "beyond how often parents fire (arXiv 2605.07922 on why coverage alone finds false parents)",
    ),
    "path_attribution": Measure(
        title="path attribution",
        says="the share of the attribution of the levels above the leaves that came to them along their paths: sum of "
        "|a_p| min(1, sum_c p_c h_c / h_p) over sum of |a_p|, with a_p = -h_p (W_dec_p . gradient of the loss) the "
        "attribution of latent p on a token (attribution patching) and p_c h_c what child c sends",
    ),
    "path_attribution_swapped": Measure(
        title="path attribution, swapped parents",
        says="the same where the children's sums arrive at other parents that fire about as often, mean of ten",
    ),
    "feature_reuse": Measure(
        title="feature reuse",
        says="how many latents of the level below a parent draws on: exp(entropy) of what its open paths carry when it "
        "fires, mean over the parents with two open paths or more",
        unit="children",
    ),
    "feature_reuse_swapped": Measure(
        title="feature reuse, swapped children",
        says="the same with each child swapped for others of its level that fire about as often, mean of ten",
        unit="children",
    ),
    "path_specialization": Measure(
        title="path specialization",
        says="the share that the strongest path has in what a parent with two open paths or more is sent, mean over "
        "the tokens on which it fires and is sent anything: 1 where one path at a time is taken, less than for swapped "
        "children where siblings fire together",
    ),
    "path_specialization_swapped": Measure(
        title="path specialization, swapped children",
        says="the same with each child swapped for others of its level that fire about as often, mean of ten",
    ),
}


@dataclass(frozen=True)
class Tree:
    """The tree of a checkpoint. `parent [d_sae]` holds the index of each latent's parent, -1 at the top; `weights
    [d_sae]` what its edge multiplies by, 0 where it was pruned; `open [d_sae]` which edges were not."""

    levels: "list[tuple[int, int]]"
    parent: "Tensor"
    weights: "Tensor"
    open: "Tensor"

    @cached_property
    def families(self) -> "list[Family]":
        return [Family(self, a, b, c, d) for (a, b), (c, d) in zip(self.levels, self.levels[1:], strict=False)]


@dataclass(frozen=True)
class Family:
    """A level and the one above it: children [start, end), parents [above, above_end)."""

    tree: Tree
    start: int
    end: int
    above: int
    above_end: int

    @cached_property
    def children(self) -> "Tensor":
        """Those with an open edge, counted within their level."""
        return self.tree.open[self.start : self.end].nonzero().flatten()

    @cached_property
    def parents(self) -> "Tensor":
        """Of these children, counted within theirs."""
        return self.tree.parent[self.start + self.children] - self.above

    @cached_property
    def weights(self) -> "Tensor":
        """Of these children's edges."""
        return self.tree.weights[self.start + self.children]

    @cached_property
    def several(self) -> "Tensor":
        """`[parents]`: whether two open paths or more lead to it."""
        import torch

        return torch.bincount(self.parents, minlength=self.above_end - self.above) > 1

    def split(self, latents: "Tensor") -> "tuple[Tensor, Tensor]":
        return latents[:, self.start : self.end], latents[:, self.above : self.above_end]

    def sums(self, sent: "Tensor") -> "Tensor":
        """What the children send, `[tokens, children]`, summed up at each parent, `[tokens, parents]`."""
        return sent.new_zeros(len(sent), self.above_end - self.above).index_add(1, self.parents, sent)

    def strongest(self, sent: "Tensor") -> "Tensor":
        """The largest of what each parent is sent, `[tokens, parents]`."""
        nothing = sent.new_zeros(len(sent), self.above_end - self.above)
        return nothing.scatter_reduce(1, self.parents.expand(len(sent), -1), sent, "amax")


def swapped(fired: "Tensor") -> "Iterator[Tensor]":
    """For each latent of a level another that fires about as often, in each of SWAPS; nothing for a level of one."""
    import torch

    order, n = fired.argsort(stable=True), len(fired)
    rank = torch.arange(n, device=fired.device)
    for ranks in SWAPS:
        if abs(ranks) < n / 2 or (abs(ranks) == 1 and n > 1):
            there = rank + ranks
            place = torch.where((there < 0) | (there >= n), rank - ranks, there)
            yield torch.empty_like(order).scatter(0, order, order[place])


def measure(exam: "Examination") -> "dict[str, float]":
    """Each of MEASURES that there is on the held-out activations; nothing for an SAE without a tree."""
    checkpoint = exam.checkpoint
    levels = list(checkpoint.header.groups.values())
    if len(levels) < 2 or "parent" not in checkpoint.extra:
        return {}
    tree = Tree(levels, *(checkpoint.extra[name] for name in ("parent", "projections", "open")))
    seen = Seen(exam, tree)
    figures = {"open_edges": tree.open.double().sum().item() / levels[-1][0]}
    for i, (start, end) in enumerate(levels):
        figures[f"level_{i}_size"] = (end - start) / checkpoint.header.d_sae
        figures[f"level_{i}_l0"] = seen.fired[start:end].sum().item() / seen.tokens
        figures[f"level_{i}_alive_fraction"] = (seen.fired[start:end] > 0).double().mean().item()
        if exam.has_loss:
            figures[f"level_{i}_probing_accuracy"] = exam.probing_accuracy(exam.part(start, end), f"level_{i}")
    coverage, swapped_coverage = parent_coverage(seen)
    figures |= {
        "parent_coverage": coverage,
        "parent_coverage_swapped": swapped_coverage,
        "hierarchical_consistency": coverage - swapped_coverage,
    }
    figures |= _beside_swapped("feature_reuse", feature_reuse(seen))
    figures |= _beside_swapped("path_specialization", path_specialization(seen))
    edges = seen.carried
    if exam.has_loss:
        share, edges = path_attribution(exam, seen)
        figures |= _beside_swapped("path_attribution", share)
    results.keep(exam.out, KEPT, _picture(exam, seen, edges))
    return figures


def _beside_swapped(name: str, found: "tuple[float, float]") -> "dict[str, float]":
    return dict(zip((name, f"{name}_swapped"), found, strict=True))


class Seen:
    """What fired, and fired together, on the held-out activations."""

    def __init__(self, exam: "Examination", tree: Tree) -> None:
        import torch

        self.exam, self.tree, self.tokens = exam, tree, len(exam.activations)
        d_sae, device = exam.checkpoint.header.d_sae, exam.checkpoint.device
        self.fired, self.activation, self.carried = torch.zeros(3, d_sae, dtype=torch.float64, device=device)
        shapes = [(f.end - f.start, f.above_end - f.above) for f in tree.families]
        self.together = [torch.zeros(shape, device=device) for shape in shapes]  # tokens on which child and parent fire
        self.sent = [torch.zeros(shape, device=device) for shape in shapes]  # the child's activation, summed over these
        for latents in exam.latents():
            self.fired += (latents != 0).sum(0)
            self.activation += latents.double().sum(0) / self.tokens
            for family, together, sent in zip(tree.families, self.together, self.sent, strict=True):
                children, parents = family.split(latents)
                fires = (parents != 0).float()
                together += (children != 0).float().T @ fires
                sent += children.T @ fires
        for family, sent in zip(tree.families, self.sent, strict=True):
            to = sent[family.children, family.parents] * family.weights
            self.carried[family.start + family.children] = to.double() / self.tokens

    def like(self, start: int, end: int) -> "list[Tensor]":
        """For each latent of the level [start, end), counted within it, others that fire about as often."""
        return list(swapped(self.fired[start:end]))


def _share(parts: "Sequence[tuple[float, float]]") -> float:
    total = sum(whole for _, whole in parts)
    return sum(part for part, _ in parts) / total if total else math.nan


def parent_coverage(seen: Seen) -> "tuple[float, float]":
    """P(parent fires | child fires) over all edges, open and pruned, and with swapped parents."""
    own, other = [], []
    for family, together in zip(seen.tree.families, seen.together, strict=True):
        parents = seen.tree.parent[family.start : family.end] - family.above
        fired = seen.fired[family.start : family.end].sum().item()
        own.append((together.gather(1, parents[:, None]).sum().item(), fired))
        for like in seen.like(family.above, family.above_end):
            other.append((together.gather(1, like[parents][:, None]).sum().item(), fired))
    return _share(own), _share(other)


def feature_reuse(seen: Seen) -> "tuple[float, float]":
    """exp(entropy) of what the open paths of a parent carry, and with swapped children."""

    def reuse(family: Family, carried: "Tensor") -> "tuple[float, float]":
        sums = family.sums(carried[None])[0]
        parts = carried / sums[family.parents].clamp_min(1e-12)
        entropy = family.sums(-(parts * parts.clamp_min(1e-12).log())[None])[0]
        counted = family.several & (sums > 0)
        return entropy[counted].exp().sum().item(), counted.sum().item()

    own, other = [], []
    for family, sent in zip(seen.tree.families, seen.sent, strict=True):
        own.append(reuse(family, sent[family.children, family.parents] * family.weights))
        for like in seen.like(family.start, family.end):
            other.append(reuse(family, sent[like[family.children], family.parents] * family.weights))
    return _share(own), _share(other)


def path_specialization(seen: Seen) -> "tuple[float, float]":
    """The strongest path's share in what a parent is sent, and with swapped children."""
    from itertools import islice

    def of(family: Family, latents: "Tensor", chosen: "Tensor") -> "tuple[float, float]":
        children, parents = family.split(latents)
        sent = children[:, chosen] * family.weights
        total = family.sums(sent)
        counted = (parents != 0) & (total > 0) & family.several
        return (family.strongest(sent) / total.clamp_min(1e-12))[counted].sum().item(), counted.sum().item()

    own, other = [], []
    for latents in islice(seen.exam.latents(), SPECIALIZATION_BATCHES):
        for family in seen.tree.families:
            own.append(of(family, latents, family.children))
            for like in seen.like(family.start, family.end):
                other.append(of(family, latents, like[family.children]))
    return _share(own), _share(other)


def path_attribution(exam: "Examination", seen: Seen) -> "tuple[tuple[float, float], Tensor]":
    """The share of the upper levels' attribution that came along paths, and with swapped parents; and the attribution
    `[d_sae]` that came along each latent's edge to its parent, a token."""
    import torch

    rows, gradients = exam.loss_gradient()
    edges = torch.zeros(exam.checkpoint.header.d_sae, dtype=torch.float64, device=exam.checkpoint.device)
    own, other = [], []
    with torch.no_grad():
        for x, gradient in zip(rows.split(4096), gradients.split(4096), strict=True):
            latents = exam.sae.encode(x)
            attribution = (latents * (gradient.to(latents) @ exam.sae.W_dec.T)).abs()
            for family in seen.tree.families:
                children, parents = family.split(latents)
                _, attributed = family.split(attribution)
                sent = children[:, family.children] * family.weights
                sums, whole = family.sums(sent), attributed.sum().item()
                per_unit = attributed / torch.maximum(parents, sums).clamp_min(1e-12)  # 0 where the parent is silent
                own.append(((per_unit * sums).sum().item(), whole))
                at_child = (sent * per_unit[:, family.parents]).sum(0)
                edges[family.start + family.children] += at_child.double() / len(rows)
                for like in seen.like(family.above, family.above_end):
                    wrong = sums[:, like]
                    per_unit = attributed / torch.maximum(parents, wrong).clamp_min(1e-12)
                    other.append(((per_unit * wrong).sum().item(), whole))
    return (_share(own), _share(other)), edges


# What the pictures show


def _picture(exam: "Examination", seen: Seen, edges: "Tensor") -> "dict[str, Any]":
    """The trees whose paths carry most, as nodes and edges, and what their latents are on the tokens that move them."""
    import torch

    tree, top = seen.tree, seen.tree.levels[-1]
    below: dict[int, list[int]] = {}
    for child in tree.open.nonzero().flatten().tolist():
        if edges[child] > 0:
            below.setdefault(int(tree.parent[child]), []).append(child)

    def descend(latent: int) -> "list[int]":
        children = sorted(below.get(latent, []), key=lambda i: -edges[i].item())
        return [latent, *(each for child in children for each in descend(child))]

    def weight(latent: int) -> float:
        return sum(edges[i].item() for i in descend(latent)[1:])

    trees, leaves = [], 0
    for root in sorted(range(*top), key=weight, reverse=True)[:TREES_SHOWN]:
        nodes = descend(root)
        leaves += sum(not below.get(node) for node in nodes)
        if len(nodes) > 1 and (not trees or leaves <= LEAVES_SHOWN):
            trees.append(nodes)
    shown = [node for nodes in trees for node in nodes]
    values = torch.cat([latents[:, shown] for latents in exam.latents()]) if shown else torch.zeros(0, 0)
    tokens: list[int] = []
    for nodes in trees:
        columns = [shown.index(node) for node in nodes]
        part = values[:, columns] / values[:, columns].amax(0).clamp_min(1e-9)
        tokens += part.sum(1).topk(min(TOKENS_OF_A_TREE, len(part))).indices.tolist()
    level = [next(i for i, (a, b) in enumerate(tree.levels) if a <= node < b) for node in shown]
    largest = values.amax(0).clamp_min(1e-9) if shown else values
    return {
        "attributed": exam.has_loss,  # else edges are of the activation that they carry
        "closed": int((~tree.open[: top[0]]).sum()),
        "edges": top[0],
        "nodes": [
            {
                "latent": node,
                "level": at,
                "tree": next(i for i, nodes in enumerate(trees) if node in nodes),
                "activation": seen.activation[node].item(),
                "parent": int(tree.parent[node]),
                "edge": edges[node].item(),
            }
            for node, at in zip(shown, level, strict=True)
        ],
        "samples": tokens,
        "values": (values[tokens] / largest).T.round(decimals=3).tolist(),  # [nodes][samples], of each one's largest
    }
