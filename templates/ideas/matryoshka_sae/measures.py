"""What matryoshka_sae measures: each nested prefix alone, what it adds, and the parent features in the first."""

from agent.lab.results import Measure

DRAWS = 8  # random orders of the latents, besides their own
MOST = 5  # prefixes that are measured

NEEDS = {
    "groups prefix_0": "the prefixes and what the first holds, from the latents that prefix_0, prefix_1, ... add",
}

MEASURES = {
    **{
        f"prefix_{i}_explained_variance": Measure(
            title=f"prefix {i} alone: explained variance",
            control="" if i == MOST - 1 else f"prefix_{i}_random_explained_variance",
            main=True,
            definition=f"1 - sum ||x - x_{i}||^2 / sum ||x - mean||^2, where x_{i} is decoded from the latents of "
            f"prefix {i} alone (Bussmann et al. 2025, arXiv 2503.17547)",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_random_explained_variance": Measure(
            title=f"as many random latents as prefix {i}: explained variance",
            definition=f"the same for as many latents as prefix {i} has, drawn at random from the whole SAE; mean of "
            f"{DRAWS} draws",
        )
        for i in range(MOST - 1)
    },
    **{
        f"prefix_{i}_l0_share": Measure(
            title=f"added by prefix {i}: share of L0",
            definition=f"the share of the active latents that are in prefix {i} and in no shorter one",
        )
        for i in range(MOST)
    },
    **{
        f"prefix_{i}_alive_fraction": Measure(
            title=f"added by prefix {i}: alive fraction",
            definition=f"of the latents in prefix {i} and in no shorter one, the share that fires on the evaluation "
            "samples",
        )
        for i in range(MOST)
    },
    "parents_learned": Measure(
        title="parents with a latent",
        definition="the share of the world's parent features (those with descendants) that have a latent: one that "
        "fires and whose decoder row is closest to this feature, with a cosine of at least 0.5",
    ),
    "parents_in_first": Measure(
        title="parents in the first prefix",
        control="parents_in_first_by_rate",
        main=True,
        definition="of the parents with a latent, the share whose latent (the closest, if there are several) is in the "
        "first prefix",
    ),
    "parents_in_first_by_chance": Measure(
        title="parents in the first prefix, by chance",
        definition="the same share of all features with a latent: what to expect if it made no difference to be a "
        "parent",
    ),
    "parents_in_first_by_rate": Measure(
        title="parents in the first prefix, by firing rate",
        definition="the same share of the parents if the features with a latent were sorted by how often they are "
        "present; parents are present more often than their descendants, so a share above chance but not above this "
        "one shows an order by firing rate, not by hierarchy",
    ),
}
