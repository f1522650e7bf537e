"""What adaptive_orthogonal_sae measures: cosines of the decoder, condition numbers of groups of latents, forgetting."""

from agent.lab.results import Measure

DRAWS = 5  # random partitions that the groups are compared with
BINS = 50  # of cosines, from 0 to 1
KEPT = "decoder.json"  # what analysis.py leaves for figures.py
LATENTS = 8192  # live latents whose rows are compared: of more, a seeded sample

_GROUPS = "groups of at most d_in / 2 live latents that fire together on held-out activations, formed alike for any SAE"
_CONDITION = "the largest over the smallest singular value of its decoder rows, each of norm 1"

NEEDS = {
    "extra group": "the groups that training ended with, from the number of each latent's [d_sae]",
}

MEASURES = {
    "decoder_cosine_mean": Measure(
        title="mean decoder |cosine|",
        definition="the mean of |cos(W_i, W_j)| over pairs of live latents' decoder rows; of more than "
        f"{LATENTS:,} live latents, all figures of rows and groups are those of a seeded sample of so many",
        digits=4,
    ),
    "decoder_cosine_largest": Measure(
        title="largest decoder |cosine|",
        main=True,
        definition="the largest |cos(W_i, W_j)| of a live latent with another, mean over the live latents (OrtSAE, "
        "arXiv 2509.22033)",
        digits=4,
    ),
    "decoder_cosine_max": Measure(
        title="maximum decoder |cosine|", definition="the largest |cos(W_i, W_j)| of any two live latents", digits=4
    ),
    "across_group_cosine": Measure(
        title="|cosine| across groups",
        definition=f"the largest |cos| of a latent with one of another group, mean over the latents; {_GROUPS}",
        digits=4,
    ),
    "within_group_cosine": Measure(
        title="|cosine| within groups",
        definition="the mean |cos| over pairs in the same group, minus the same in random groups of the same sizes; "
        f"{_GROUPS}",
        digits=4,
    ),
    "group_coactivation": Measure(
        title="co-activation within groups",
        main=True,
        definition="the mean phi coefficient (the correlation of two latents' firing) over pairs in the same group of "
        "training, minus the same in random groups of the same sizes",
        digits=4,
    ),
    "condition_number": Measure(
        title="condition number of groups",
        control="condition_number_random",
        main=True,
        definition=f"the median over groups of {_CONDITION}; {_GROUPS}",
        digits=2,
    ),
    "condition_number_max": Measure(
        title="condition number of groups, largest",
        definition=f"the largest over groups of {_CONDITION}; {_GROUPS}",
        digits=2,
    ),
    "condition_number_random": Measure(
        title="condition number of random groups",
        definition=f"the median of the same over random groups of the same sizes, {DRAWS} partitions",
        digits=2,
    ),
    "condition_number_own": Measure(
        title="condition number of training's groups",
        definition=f"the median over the groups at the end of training of {_CONDITION}, live latents only",
        digits=2,
    ),
    "forgetting_score": Measure(
        title="forgetting",
        main=True,
        definition="the loss that clamping a topic's latents adds on that topic, while the loss on other text rises by "
        "at most 1% (Farrell et al. 2024, arXiv 2410.19278); higher where one latent stands for one thing",
        unit="nats/token",
    ),
}
