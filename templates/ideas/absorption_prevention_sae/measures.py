"""What absorption_prevention_sae measures: dead and duplicate latents, decoder cosines, merging and resampling."""

from agent.lab.results import Measure

DUPLICATE = 0.9  # cosine of two decoder rows from which they are duplicates

NEEDS = {
    "extra merged": "how many latents training merged, from one number",
    "extra resampled": "how often training restarted a dead latent, from one number",
}

MEASURES = {
    "dead_fraction": Measure(
        title="dead fraction",
        main=True,
        definition="the share of the latents that never fire on the evaluation text or samples",
    ),
    "duplicate_pairs": Measure(
        title="duplicate pairs left",
        definition=f"pairs of live latents whose decoder rows have a cosine above {DUPLICATE}",
        digits=0,
    ),
    "nearest_cosine": Measure(
        title="nearest decoder cosine",
        control="nearest_cosine_random",
        main=True,
        definition="the highest cosine of a live latent's decoder row with another's, mean over the live latents",
    ),
    "nearest_cosine_random": Measure(
        title="nearest decoder cosine, random",
        definition="the same for as many random directions: what unrelated rows would show",
    ),
    "duplicates_merged": Measure(
        title="duplicates merged", main=True, definition="latents merged into another one during training", digits=0
    ),
    "latents_resampled": Measure(
        title="latents resampled",
        main=True,
        definition="how often training restarted a dead latent on a badly reconstructed input",
        digits=0,
    ),
}
