"""Matching pursuit (Mallat and Zhang 1993), as an encoder that is tied to its decoder (Costa et al. 2025, MP-SAE)."""

import torch
from torch import Tensor


def matching_pursuit(
    x: Tensor, W_dec: Tensor, iterations: int, residual_threshold: float = 0.0, stop_on_duplicate_support: bool = False
) -> Tensor:
    """Return the latents `[batch, d_sae]` of activations `[batch, d_in]` without b_dec, by the rows of W_dec.

    Each iteration takes away the row whose product with what is left of a token is the largest, times that product. A
    token ends when what is left is shorter than `residual_threshold`, or, with `stop_on_duplicate_support`, once a row
    is taken again. With rows of length 1 a token's latents of `scale * x` are `scale` times those of x. Equal to
    sae_lens.saes.matching_pursuit_sae, and a loop that torch.export unrolls.
    """
    residual, indices, sizes = x, [], []
    taken = torch.full((x.shape[0], 1), -1, dtype=torch.long, device=x.device)
    for _ in range(iterations):
        index = (residual @ W_dec.T).argmax(dim=1, keepdim=True)
        row = W_dec[index[:, 0]]
        size = (residual * row).sum(dim=1, keepdim=True).relu()
        residual = residual - size * row
        # Of a residual that is set to zero nothing more is taken.
        if stop_on_duplicate_support:
            residual = residual * (taken != index).all(dim=1, keepdim=True)
            taken = torch.cat([taken, index], dim=1)
        if residual_threshold > 0:
            residual = residual * (residual.norm(dim=1, keepdim=True) >= residual_threshold)
        indices.append(index)
        sizes.append(size)
    nothing = torch.zeros(x.shape[0], W_dec.shape[0], dtype=x.dtype, device=x.device)
    return nothing.scatter_add(1, torch.cat(indices, dim=1), torch.cat(sizes, dim=1))
