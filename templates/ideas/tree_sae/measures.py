"""What tree_sae measures: its levels, whether parents and children fire together, and what the paths carry."""

from agent.lab.results import Measure

TOKENS_OF_A_TREE = 6  # shown for each tree
KEPT = "tree.json"  # what analysis.py leaves for figures.py

_SWAPPED = "for others of the same level that fire about as often, mean of ten swaps"

NEEDS = {
    "groups level_0, level_1": "the levels (level_0 are the leaves, level_2 is the third) and the paths between them",
    "extra parent, projections, open": "the same, from each latent's parent (-1 at the top), the weight of the edge to "
    "it, and whether it is open, all [d_sae]",
}

MEASURES = {
    **{
        f"level_{i}_size": Measure(
            title=f"level {i}: size", definition=f"the share of the latents in level {i}; level 0 are the leaves"
        )
        for i in range(3)
    },
    **{
        f"level_{i}_l0": Measure(
            title=f"level {i}: L0", definition=f"active latents of level {i} per token", unit="latents/token"
        )
        for i in range(3)
    },
    **{
        f"level_{i}_alive_fraction": Measure(
            title=f"level {i}: alive fraction",
            definition=f"the share of level {i}'s latents that fire on the evaluation text",
        )
        for i in range(3)
    },
    **{
        f"level_{i}_probing_accuracy": Measure(
            title=f"level {i}: probing accuracy",
            definition=f"mean test accuracy of sparse probing on the top 5 latents of level {i}, without the other "
            "levels; a larger level has more to choose from",
        )
        for i in range(3)
    },
    "open_edges": Measure(title="open edges", definition="the share of the tree's edges that were not pruned"),
    "parent_coverage": Measure(
        title="parent coverage",
        control="parent_coverage_swapped",
        main=True,
        definition="P(parent fires | child fires) over all firings of the latents below the top; pruned edges count "
        "too, so that pruning weak ones does not raise it",
    ),
    "parent_coverage_swapped": Measure(
        title="parent coverage, swapped parents",
        definition=f"the same with each parent swapped {_SWAPPED}",
    ),
    "hierarchical_consistency": Measure(
        title="hierarchical consistency",
        definition="parent coverage minus that of swapped parents, over open and pruned edges: the coverage beyond "
        "what the parents' firing rates explain (on false parents by coverage alone: arXiv 2605.07922)",
    ),
    "path_attribution": Measure(
        title="path attribution",
        control="path_attribution_swapped",
        main=True,
        definition="the share of the attribution of the levels above the leaves that came along their paths: sum of "
        "|a_p| min(1, sum_c p_c h_c / h_p) over sum of |a_p|, where a_p = -h_p (W_dec_p . gradient of the loss) is the "
        "attribution of latent p on a token (attribution patching) and p_c h_c is what child c sends",
    ),
    "path_attribution_swapped": Measure(
        title="path attribution, swapped parents",
        definition=f"the same with the children's sums sent to other parents: each parent swapped {_SWAPPED}",
    ),
    "feature_reuse": Measure(
        title="feature reuse",
        control="feature_reuse_swapped",
        main=True,
        definition="the effective number of children of a parent: exp(entropy) of what its open paths carry when it "
        "fires, mean over the parents with two or more open paths",
        unit="children",
    ),
    "feature_reuse_swapped": Measure(
        title="feature reuse, swapped children",
        definition=f"the same with each child swapped {_SWAPPED}",
        unit="children",
    ),
    "path_specialization": Measure(
        title="path specialization",
        control="path_specialization_swapped",
        main=True,
        definition="the share of the strongest path in what a parent with two or more open paths is sent, mean over "
        "the tokens on which it fires and is sent anything: 1 if one path is used at a time, lower than with swapped "
        "children if siblings fire together",
    ),
    "path_specialization_swapped": Measure(
        title="path specialization, swapped children",
        definition=f"the same with each child swapped {_SWAPPED}",
    ),
}
