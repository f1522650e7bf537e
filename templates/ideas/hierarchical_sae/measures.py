"""What hierarchical_sae measures: how tiers are used, how one is composed of the one below, and what that causes."""

from agent.lab.results import Measure

TIERS = range(3)
MOST_PARTS = 5  # of a pattern
LOWER, UPPER = 2048, 4096  # latents of a tier, its first and a seeded sample, that are looked at as parts and as wholes
COMPOSED = 0.5  # R² from which a latent counts as composed
TRACED = 8  # patterns that are ablated in the model

NEEDS = {
    "groups tier_0, tier_1": "the tiers (tier_2 is the third), what composes, and what that causes",
    "extra composition_0": "what the learned map from tier 0 to 1 predicts (composition_1 is that from tier 1 to 2), "
    f"each [latents of the tier, its first {LOWER:,} if it has more, of the next]",
}

MEASURES = {
    **{
        f"tier_{i}_latents_share": Measure(
            title=f"tier {i}: share of the latents", definition=f"the share of all latents that are in tier {i}"
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_l0_share": Measure(
            title=f"tier {i}: share of L0", definition=f"the share of the active latents that are in tier {i}"
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_alive_fraction": Measure(
            title=f"tier {i}: alive fraction",
            definition=f"the share of tier {i}'s latents that fire on the evaluation text",
        )
        for i in TIERS
    },
    **{
        f"tier_{i}_forgetting": Measure(
            title=f"tier {i}: forgetting",
            unit="nats/token",
            definition=f"the forgetting score of tier {i}'s latents as if there were no others: the loss that clamping "
            "a topic's latents adds on that topic, while the loss on other text rises by at most 1%",
        )
        for i in TIERS
    },
    **{
        f"composition_{i}_r2": Measure(
            title=f"composition R², tier {i} to {i + 1}",
            definition=f"1 - sum ||h_{i} W - h_{i + 1}||^2 / sum ||h_{i + 1} - mean||^2: how well the learned map W "
            f"predicts the latents h_{i + 1} of tier {i + 1} from those of tier {i}; their mean would give 0",
        )
        for i in TIERS[:-1]
    },
    **{
        f"composition_{i}_coverage": Measure(
            title=f"composition coverage, tier {i} to {i + 1}",
            main=True,
            definition=f"the share of tier {i + 1}'s activity (sum of h^2 where it fires) that parts predict to within "
            f"half of h, minus the same with parts from other tokens; parts are up to {MOST_PARTS} latents of the tier "
            "below, found on other text by orthogonal matching pursuit (Pati et al. 1993); of wider tiers the first "
            f"{LOWER:,} latents are looked at as parts, and a seeded sample of {UPPER:,} as what they compose",
        )
        for i in TIERS[:-1]
    },
    **{
        f"composition_{i}_nmi": Measure(
            title=f"NMI, tier {i} to {i + 1}",
            definition=f"normalised mutual information I / sqrt(H H) (Strehl and Ghosh 2002) of the firing of a latent "
            f"of tier {i + 1} and of its strongest part in tier {i}, mean over the patterns, minus the same with the "
            "part of a random other pattern",
        )
        for i in TIERS[:-1]
    },
    "composed_fraction": Measure(
        title="share of composed latents",
        definition=f"the share of the upper tiers' live latents that their parts predict with an R² of {COMPOSED} or "
        f"more, on other text than the parts were found on; of a tier of more than {UPPER:,}, of a seeded sample",
    ),
    "parts_mean": Measure(
        title="parts of a pattern",
        definition="the mean number of parts of a pattern, which is a latent with its parts",
        digits=2,
    ),
    "parts_two_to_five": Measure(
        title="patterns of 2 to 5 parts", definition="the share of the patterns with more than one part"
    ),
    "parts_shared": Measure(
        title="patterns that share a part", definition="the share of the parts that belong to more than one pattern"
    ),
    "learned_parts_agree": Measure(
        title="patterns in the learned maps",
        definition="the share of the patterns whose largest entry in the learned map (|w| times the part's mean "
        "activation) is one of their parts, minus the same with the entry of a random other pattern",
    ),
    "residual_share": Measure(
        title="what does not compose",
        definition="the share of the variance of the upper tiers' contributions to the reconstruction that is left "
        "after subtracting what each latent's parts predict",
    ),
    "residual_missed": Measure(
        title="what does not compose: latents that fire",
        definition="the share of the squared prediction errors on tokens where the latent fires; the rest is on tokens "
        "where its parts predict it but it is silent",
    ),
    "residual_dimensions": Measure(
        title="what does not compose: dimensions",
        definition="the effective dimensions (sum e)^2 / sum e^2, e the eigenvalues of the covariance, of what is left "
        "of a tier's contribution, over those of the whole contribution; mean over the upper tiers",
        digits=2,
    ),
    "causal_cosine": Measure(
        title="causal tracing: cosine",
        definition="where a latent with parts fires: the cosine between the changes of the model's log-probabilities "
        "when it is ablated and when its parts are, minus the same with as many other latents of the parts' tier that "
        f"are about as active there; mean over the {TRACED} patterns that explain most",
    ),
    **{
        f"causal_{name}_loss": Measure(
            title=f"causal tracing, loss of {ablated}",
            control="" if name == "control" else "causal_control_loss",
            unit="nats/1000 tokens",
            definition=f"what ablating {ablated} where it fires adds to the model's loss, mean over {TRACED} patterns",
        )
        for name, ablated in (
            ("whole", "a latent with parts"),
            ("parts", "its parts"),
            ("control", "other latents as active"),
        )
    },
}
