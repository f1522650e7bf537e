"""What the tiers of a hierarchical SAE do: how the active latents spread over them, and what predicts what."""

from typing import TYPE_CHECKING

from agent.lab.results import Measure

if TYPE_CHECKING:
    from torch import Tensor

    from agent.lab.checkpoint import Checkpoint

ROWS = 4096  # activations encoded at once

MEASURES = {
    **{
        f"tier_{i}_l0_share": Measure(
            title=f"tier {i}: share of L0", says=f"the share of the active latents that belong to tier {i}"
        )
        for i in range(3)
    },
    **{
        f"tier_{i}_alive_fraction": Measure(
            title=f"tier {i}: alive fraction", says=f"the share of tier {i}'s latents that fire on the evaluation text"
        )
        for i in range(3)
    },
    **{
        f"composition_{i}_r2": Measure(
            title=f"composition R², tier {i} to {i + 1}",
            says=f"1 - sum ||h_{i} W - h_{i + 1}||^2 / sum ||h_{i + 1} - mean||^2: how much of the latents h_{i + 1} of "
            f"tier {i + 1} the learned map W predicts from those of tier {i}; 0 is what their mean would predict",
        )
        for i in range(2)
    },
}


def measure(checkpoint: "Checkpoint", activations: "Tensor") -> "dict[str, float]":
    """Each of MEASURES on activations `[tokens, d_in]`, unscaled; nothing for an SAE without tiers.

    Latents are those of the scaled activations, as in training, where W was learned on them.
    """
    import torch

    tiers = list(checkpoint.header.groups.values())
    if not tiers:
        return {}
    compositions = [checkpoint.extra[f"composition_{i}"].double() for i in range(len(tiers) - 1)]
    d_sae, tokens = checkpoint.header.d_sae, len(activations)
    fired, total, squares = torch.zeros(3, d_sae, dtype=torch.float64, device=checkpoint.device)
    errors = [0.0 for _ in compositions]
    with torch.no_grad():
        for x in activations.split(ROWS):
            latents = checkpoint.encode(x).double()
            fired += (latents != 0).sum(0)
            total += latents.sum(0)
            squares += latents.pow(2).sum(0)
            for i, W in enumerate(compositions):
                (a, b), (c, d) = tiers[i], tiers[i + 1]
                errors[i] += (latents[:, a:b] @ W - latents[:, c:d]).pow(2).sum().item()
    deviations = squares - total.pow(2) / tokens  # sum over the tokens of (h - mean)^2
    figures = {}
    for i, (start, end) in enumerate(tiers):
        figures[f"tier_{i}_l0_share"] = (fired[start:end].sum() / fired.sum()).item()
        figures[f"tier_{i}_alive_fraction"] = (fired[start:end] > 0).double().mean().item()
    for i, (start, end) in enumerate(tiers[1:]):
        figures[f"composition_{i}_r2"] = (1 - errors[i] / deviations[start:end].sum()).item()
    return figures
