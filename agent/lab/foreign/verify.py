"""A converted SAE beside the library that it is of, on the model's own activations."""

import torch
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.errors import UserError
from agent.lab.evaluation.sae_adapter import rows_at_once
from agent.lab.foreign.sae import Original
from agent.lab.results import Agreement

TOLERANCE = 1e-5  # relative, in float32
MOST_FLIPS = 1e-3  # share of active latents that rounding may carry over a threshold
CLOSE = 1e-3  # of a token's largest latent: what a latent may differ by from one that was chosen in the same turn


@torch.no_grad()
def compare(checkpoint: Checkpoint, original: Original, x: Tensor, in_turn: bool = False) -> Agreement:
    """Return how a checkpoint agrees with the original on unscaled activations `[rows, d_in]`.

    A latent that flips changes its row's reconstruction by its threshold, so reconstructions are compared on the rows
    without one, and values where both fire. Of latents that are chosen `in_turn`, one that flips changes those after
    it: a value that is not close is a flip too, and values are compared on the same rows as reconstructions.
    """
    original = original.to(x.device)
    error, norm, value_error, value_norm, flips, active = (0.0,) * 6
    for rows in x.split(rows_at_once(checkpoint.header.d_sae)):
        own, theirs = checkpoint.encode(rows), original.encode(rows).float()
        flipped = (own != 0) != (theirs != 0)
        if in_turn:
            flipped |= (own - theirs).abs() > CLOSE * theirs.abs().amax(1, keepdim=True)
        kept = ~flipped.any(1)
        compared = kept[:, None] if in_turn else ~flipped
        flips, active = flips + flipped.sum().item(), active + (theirs != 0).sum().item()
        value_error += (own - theirs).where(compared, 0).double().pow(2).sum().item()
        value_norm += theirs.where(compared, 0).double().pow(2).sum().item()
        rebuilt = original.decode(theirs).float()
        error += (checkpoint.decode(own) - rebuilt)[kept].double().pow(2).sum().item()
        norm += rebuilt[kept].double().pow(2).sum().item()
    return Agreement(
        rows=len(x),
        reconstruction=_ratio(error, norm),
        latents=_ratio(value_error, value_norm),
        flips=flips / max(active, 1),
    )


def require(found: Agreement, library: str) -> None:
    """Raise UserError unless a checkpoint computes what the library does."""
    if max(found.reconstruction, found.latents) > TOLERANCE or found.flips > MOST_FLIPS:
        raise UserError(
            f"the converted SAE is not that of {library}: on {found.rows:,} activations its reconstruction differs by "
            f"{found.reconstruction:.1e}, its latents by {found.latents:.1e} (at most {TOLERANCE:g}), and "
            f"{found.flips:.2%} of them flip; this is a fault of the conversion, or of the file"
        )


def _ratio(squares: float, of: float) -> float:
    return (squares / of) ** 0.5 if of else float(squares > 0)
