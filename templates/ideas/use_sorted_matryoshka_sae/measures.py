"""What use_sorted_matryoshka_sae measures: how far the latents are sorted by use, and what the first prefix holds."""

from agent.lab.results import Measure

NEEDS = {
    "groups prefix_0": "the order by use and what the first holds, from the latents that prefix_0, prefix_1, ... add",
}

MEASURES = {
    "order_by_use": Measure(
        title="order by use",
        main=True,
        definition="Spearman's rank correlation, over the latents, of coming early in the order with firing often on "
        "the evaluation text or samples: 1 if they are sorted by use",
    ),
    "first_prefix_l0_share": Measure(
        title="first prefix: share of L0",
        control="most_used_l0_share",
        main=True,
        definition="the share of the active latents that are in the first prefix",
    ),
    "most_used_l0_share": Measure(
        title="as many most used latents: share of L0",
        definition="the same for as many latents that fire most often, which no order can exceed",
    ),
    "first_prefix_explained_variance": Measure(
        title="first prefix alone: explained variance",
        control="most_used_explained_variance",
        main=True,
        definition="1 - sum ||x - x_0||^2 / sum ||x - mean||^2, where x_0 is decoded from the latents of the first "
        "prefix alone (Bussmann et al. 2025, arXiv 2503.17547)",
    ),
    "most_used_explained_variance": Measure(
        title="as many most used latents: explained variance",
        definition="the same for as many latents that fire most often",
    ),
    "frequent_in_first": Measure(
        title="frequent features in the first prefix",
        control="frequent_in_first_by_chance",
        main=True,
        definition="of a world's features that have a latent, as many of the most often present as the first prefix "
        "holds: the share that it holds (a latent that fires has the feature that is closest to its decoder row, with "
        "a cosine of at least 0.5; a feature the closest of its latents)",
    ),
    "frequent_in_first_by_chance": Measure(
        title="frequent features in the first prefix, by chance",
        definition="the share of all features with a latent that the first prefix holds",
    ),
}
