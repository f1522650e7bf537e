"""Measure the levels of a tree SAE, whether children and parents fire together, and what the paths carry.

Figures about the tree are compared with the same figures after swapping latents for others of their level that fire
about as often: a parent that fires with its child most of the time shows little if it often fires anyway (Cao et al.
2026, "Tree SAE", arXiv 2605.07922).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from measures import KEPT, TOKENS_OF_A_TREE
from torch import Tensor

from agent.lab import results
from agent.lab.evaluation.idea_analysis import Examination

SWAPS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)  # ranks by firing rate from a latent to the one that takes its place
SPECIALIZATION_TOKENS = 16_384
ALL_PAIRS = 2**24  # of children and parents, up to which all are counted at once; of more, those that are read
LEAVES_SHOWN, TREES_SHOWN = 30, 6  # at most, in the figures


@dataclass(frozen=True)
class Tree:
    """The tree of a checkpoint: `parent [d_sae]` is the index of each latent's parent, -1 at the top; `weights [d_sae]`
    the weight of its edge to that parent, 0 if it was pruned; `open [d_sae]` is False for pruned edges."""

    levels: list[tuple[int, int]]
    parent: Tensor
    weights: Tensor
    open: Tensor

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
    def children(self) -> Tensor:
        """The children with an open edge, counted from the start of their level."""
        return self.tree.open[self.start : self.end].nonzero().flatten()

    @cached_property
    def parents(self) -> Tensor:
        """The parents of these children, counted from the start of theirs."""
        return self.tree.parent[self.start + self.children] - self.above

    @cached_property
    def weights(self) -> Tensor:
        """The weights of these children's edges."""
        return self.tree.weights[self.start + self.children]

    @cached_property
    def several(self) -> Tensor:
        """Which parents have two or more open paths, `[parents]`."""
        return torch.bincount(self.parents, minlength=self.above_end - self.above) > 1

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return latents[:, self.start : self.end], latents[:, self.above : self.above_end]

    def sums(self, sent: Tensor) -> Tensor:
        """Return the sum of what the children send each parent `[tokens, parents]`, of `sent [tokens, children]`."""
        return sent.new_zeros(len(sent), self.above_end - self.above).index_add(1, self.parents, sent)

    def strongest(self, sent: Tensor) -> Tensor:
        """Return the largest of what the children send each parent `[tokens, parents]`."""
        zeros = sent.new_zeros(len(sent), self.above_end - self.above)
        return zeros.scatter_reduce(1, self.parents.expand(len(sent), -1), sent, "amax")


def swapped(fired: Tensor) -> Iterator[Tensor]:
    """Yield, for each of SWAPS, the latent in each one's place by firings `[latents]`; none for a level of one."""
    order, n = fired.argsort(stable=True), len(fired)
    rank = torch.arange(n, device=fired.device)
    for ranks in SWAPS:
        if abs(ranks) < n / 2 or (abs(ranks) == 1 and n > 1):
            target = rank + ranks
            target = torch.where((target < 0) | (target >= n), rank - ranks, target)
            yield torch.empty_like(order).scatter(0, order, order[target])


def measure(exam: Examination) -> dict[str, float]:
    """Return those of MEASURES that apply on the held-out activations; nothing for an SAE without a tree."""
    checkpoint = exam.checkpoint
    levels = [group for name, group in checkpoint.header.groups.items() if name.startswith("level_")]
    edges = ("parent", "projections", "open")
    if len(levels) < 2 or not checkpoint.extra.keys() >= set(edges):
        return {}
    tree = Tree(levels, *(checkpoint.extra[name] for name in edges))
    activity = Activity(exam, tree)
    figures = {"open_edges": tree.open.double().sum().item() / levels[-1][0]}
    for i, (start, end) in enumerate(levels):
        figures[f"level_{i}_size"] = (end - start) / checkpoint.header.d_sae
        figures[f"level_{i}_l0"] = activity.fired[start:end].sum().item() / activity.tokens
        figures[f"level_{i}_alive_fraction"] = (activity.fired[start:end] > 0).double().mean().item()
        if exam.has_loss:
            figures[f"level_{i}_probing_accuracy"] = exam.probing_accuracy(exam.part(start, end), f"level_{i}")
    coverage, swapped_coverage = parent_coverage(activity)
    figures |= {
        "parent_coverage": coverage,
        "parent_coverage_swapped": swapped_coverage,
        "hierarchical_consistency": coverage - swapped_coverage,
    }
    figures |= _with_swapped("feature_reuse", feature_reuse(activity))
    figures |= _with_swapped("path_specialization", path_specialization(activity))
    edges = activity.carried
    if exam.has_loss:
        share, edges = path_attribution(exam, activity)
        figures |= _with_swapped("path_attribution", share)
    picture = _picture(exam, activity, edges)
    results.keep(exam.out, KEPT, picture)
    name_trees(exam, picture["nodes"])
    return figures


def name_trees(exam: Examination, nodes: list[dict[str, Any]]) -> None:
    """Name the latents of the trees that figures.py draws: each with its level, its parent and its children there."""
    shown = {node["latent"]: node for node in nodes}
    labels, related = {}, {}
    for latent, node in shown.items():
        children = [other for other, below in shown.items() if below["parent"] == latent]
        parents = [node["parent"]] if node["parent"] in shown else []
        labels[latent] = f"level {node['level']}"
        labels[latent] += f", child of {parents[0]}" if parents else ""
        labels[latent] += f", parent of {', '.join(map(str, children))}" if children else ""
        related[latent] = [*parents, *children]
    exam.name_latents(labels, related)


def _with_swapped(name: str, values: tuple[float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_swapped"), values, strict=True))


class Activity:
    """What fired, and fired together, on the held-out activations."""

    def __init__(self, exam: Examination, tree: Tree) -> None:
        self.exam, self.tree, self.tokens = exam, tree, len(exam.activations)
        d_sae, device = exam.checkpoint.header.d_sae, exam.checkpoint.device
        self.fired, self.activation, self.carried = torch.zeros(3, d_sae, dtype=torch.float64, device=device)
        for latents in exam.latents():
            self.fired += (latents != 0).sum(0)
            self.activation += latents.double().sum(0) / self.tokens
        pairs = [self.pairs(family) for family in tree.families]
        self.together = [torch.zeros(each.shape[1:], device=device) for each, _ in pairs]  # tokens on which both fire
        self.sent = [torch.zeros(each.shape[1:], device=device) for _, each in pairs]  # the child's sum over these
        for latents in exam.latents():
            for i, family in enumerate(tree.families):
                children, parents = family.split(latents)
                fires = (parents != 0).float()
                self.together[i] += products((children != 0).float(), fires, *pairs[i][0])
                self.sent[i] += products(children, fires, *pairs[i][1])
        for family, sent in zip(tree.families, self.sent, strict=True):
            self.carried[family.start + family.children] = (sent[0] * family.weights).double() / self.tokens

    def pairs(self, family: Family) -> tuple[Tensor, Tensor]:
        """Return the pairs of a child and a parent that are read: of each child its parent, then those swapped for it,
        and of each open edge its child, then those swapped for it; `[2, 1 + swaps, children]`."""
        own = self.tree.parent[family.start : family.end] - family.above
        parents = torch.stack([own, *(swap[own] for swap in self.swaps(family.above, family.above_end))])
        below = [swap[family.children] for swap in self.swaps(family.start, family.end)]
        children = torch.stack([family.children, *below])
        every = torch.arange(len(own), device=own.device)
        return torch.stack([every.expand_as(parents), parents]), torch.stack(
            [children, family.parents.expand_as(children)]
        )

    def swaps(self, start: int, end: int) -> list[Tensor]:
        """Return the swaps of the level [start, end), whose latents count from its start; see swapped."""
        return list(swapped(self.fired[start:end]))


def products(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the entries `[i, j]` of `a.T @ b`, of the shape of i and j; `a [tokens, n]`, `b [tokens, m]`."""
    if a.shape[1] * b.shape[1] <= ALL_PAIRS:
        return (a.T @ b)[i, j]
    return torch.stack([(a[:, one] * b[:, other]).sum(0) for one, other in zip(i, j, strict=True)])


def _share(parts: Sequence[tuple[float, float]]) -> float:
    total = sum(whole for _, whole in parts)
    return sum(part for part, _ in parts) / total if total else math.nan


def parent_coverage(activity: Activity) -> tuple[float, float]:
    """Return P(parent fires | child fires) over open and pruned edges, and the same with swapped parents."""
    own, other = [], []
    for family, (with_parent, *with_swapped) in zip(activity.tree.families, activity.together, strict=True):
        fired = activity.fired[family.start : family.end].sum().item()
        own.append((with_parent.sum().item(), fired))
        other += [(together.sum().item(), fired) for together in with_swapped]
    return _share(own), _share(other)


def feature_reuse(activity: Activity) -> tuple[float, float]:
    """Return exp(entropy) of what the open paths of a parent carry, and the same with swapped children."""

    def reuse(family: Family, carried: Tensor) -> tuple[float, float]:
        sums = family.sums(carried[None])[0]
        parts = carried / sums[family.parents].clamp_min(1e-12)
        entropy = family.sums(-(parts * parts.clamp_min(1e-12).log())[None])[0]
        counted = family.several & (sums > 0)
        return entropy[counted].exp().sum().item(), counted.sum().item()

    own, other = [], []
    for family, (from_child, *from_swapped) in zip(activity.tree.families, activity.sent, strict=True):
        own.append(reuse(family, from_child * family.weights))
        other += [reuse(family, sent * family.weights) for sent in from_swapped]
    return _share(own), _share(other)


def path_specialization(activity: Activity) -> tuple[float, float]:
    """Return the strongest path's share in what a parent is sent, and the same with swapped children."""

    def specialization(family: Family, latents: Tensor, chosen: Tensor) -> tuple[float, float]:
        children, parents = family.split(latents)
        sent = children[:, chosen] * family.weights
        total = family.sums(sent)
        counted = (parents != 0) & (total > 0) & family.several
        return (family.strongest(sent) / total.clamp_min(1e-12))[counted].sum().item(), counted.sum().item()

    own, other = [], []
    for latents in islice(activity.exam.latents(), SPECIALIZATION_TOKENS // activity.exam.rows):
        for family in activity.tree.families:
            own.append(specialization(family, latents, family.children))
            for swap in activity.swaps(family.start, family.end):
                other.append(specialization(family, latents, swap[family.children]))
    return _share(own), _share(other)


def path_attribution(exam: Examination, activity: Activity) -> tuple[tuple[float, float], Tensor]:
    """Return the share of the upper levels' attribution that came along paths, and the same with swapped parents; and
    the attribution per token that came along each latent's edge to its parent, `[d_sae]`."""
    rows, gradients = exam.loss_gradient()
    edges = torch.zeros(exam.checkpoint.header.d_sae, dtype=torch.float64, device=exam.checkpoint.device)
    own, other = [], []
    with torch.no_grad():
        for x, gradient in zip(rows.split(exam.rows), gradients.split(exam.rows), strict=True):
            latents = exam.sae.encode(x)
            attribution = (latents * (gradient.to(latents) @ exam.sae.W_dec.T)).abs()
            for family in activity.tree.families:
                children, parents = family.split(latents)
                _, attributed = family.split(attribution)
                sent = children[:, family.children] * family.weights
                sums, whole = family.sums(sent), attributed.sum().item()
                per_unit = attributed / torch.maximum(parents, sums).clamp_min(1e-12)  # 0 where the parent is silent
                own.append(((per_unit * sums).sum().item(), whole))
                at_child = (sent * per_unit[:, family.parents]).sum(0)
                edges[family.start + family.children] += at_child.double() / len(rows)
                for swap in activity.swaps(family.above, family.above_end):
                    swapped_sums = sums[:, swap]
                    per_unit = attributed / torch.maximum(parents, swapped_sums).clamp_min(1e-12)
                    other.append(((per_unit * swapped_sums).sum().item(), whole))
    return (_share(own), _share(other)), edges


# What figures.py draws


def _picture(exam: Examination, activity: Activity, edges: Tensor) -> dict[str, Any]:
    """Return the nodes and edges of the trees whose paths carry most, and their activations on their top tokens."""
    tree, top = activity.tree, activity.tree.levels[-1]
    below: dict[int, list[int]] = {}
    for child in tree.open.nonzero().flatten().tolist():
        if edges[child] > 0:
            below.setdefault(int(tree.parent[child]), []).append(child)

    def descend(latent: int) -> list[int]:
        children = sorted(below.get(latent, []), key=lambda i: -edges[i].item())
        return [latent, *(node for child in children for node in descend(child))]

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
        "attributed": exam.has_loss,  # otherwise an edge is the activation that it carries
        "nodes": [
            {
                "latent": node,
                "level": at,
                "tree": next(i for i, nodes in enumerate(trees) if node in nodes),
                "activation": activity.activation[node].item(),
                "parent": int(tree.parent[node]),
                "edge": edges[node].item(),
            }
            for node, at in zip(shown, level, strict=True)
        ],
        "samples": tokens,
        "values": (values[tokens] / largest)
        .T.round(decimals=3)
        .tolist(),  # [nodes][samples], as a share of the node's largest
    }
