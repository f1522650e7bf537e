"""The quick way through a training step of an SAE with few active latents, which equals the plain way.

Of a token's 1,024 latents some 16 are active, so most of what a plain step multiplies are zeros. On a CPU the functions
here leave zeros out; values and gradients are those of the plain way up to rounding. Elsewhere they are the plain way:
to list the active latents of a GPU the host would have to wait for it at every step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

GROUP = 4  # values; as quick as 16, and quicker than 2 or 8, at 1,024 and at 16,384 latents
MOST_DENSE = 1 / 16  # share of entries that are not 0 up to which leaving out the others is quicker


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of `values` of any shape, a scalar without gradient: BatchTopK's cut-off.

    The plain way is `values.flatten().topk(k).values.min()`, and one of the slowest parts of a plain step.
    """
    flat = values.detach().flatten()
    return (flat[_largest(flat, k)] if _quick(values) else flat.topk(k, sorted=False).values).min()


def keep(pre: Tensor, smallest: Tensor) -> "Tensor | SparseLatents":
    """Return `torch.where((pre >= smallest) & (pre > 0), pre, 0.0)`, a batch's active latents `[batch, d_sae]`.

    `smallest` is a scalar, or `[batch, 1]`: each token's own.
    """
    if _quick(pre):
        values = pre.detach().float().numpy()  # which compares six times as fast
        active = values >= smallest.detach().float().numpy()
        if not bool((smallest > 0).all()):
            active &= values > 0
        if np.count_nonzero(active) <= MOST_DENSE * active.size:
            return SparseLatents.gather(pre, active)
    return torch.where((pre >= smallest) & (pre > 0), pre, 0.0)


def affine(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return `x @ W + b` of `x [batch, d_in]`, W `[d_in, d_sae]` and b `[d_sae]`.

    Its gradient leaves zeros out: only active latents and dead ones that are revived have another gradient than 0.
    """
    return _Affine.apply(x, W, b) if _quick(x) and torch.is_grad_enabled() else x @ W + b  # pyright: ignore


class SparseLatents:
    """Latents `[batch, d_sae]` as a list of the active ones; the others are 0 and get no gradient.

    It has two operations of a tensor, `@` with a matrix and `to_dense()`, and `narrow` along the latents.
    """

    def __init__(self, values: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.values, self.rows, self.columns, self.shape = values, rows, columns, shape  # [active] each, rows ascending

    @classmethod
    def gather(cls, pre: Tensor, active: np.ndarray) -> "SparseLatents":
        """Return the entries of `pre` where `active` is true, both `[batch, d_sae]`."""
        places = torch.from_numpy(np.flatnonzero(active))  # four times as fast as torch.nonzero
        batch, d_sae = pre.shape
        return cls(pre.flatten().index_select(0, places), places // d_sae, places % d_sae, (batch, d_sae))

    def to_dense(self) -> Tensor:
        batch, d_sae = self.shape
        places = self.rows * d_sae + self.columns
        return self.values.new_zeros(batch * d_sae).scatter(0, places, self.values).view(batch, d_sae)

    def narrow(self, dim: int, start: int, length: int) -> "SparseLatents":
        """Return latents start to start + length of every token, as `Tensor.narrow` does along dimension 1."""
        assert dim == 1, "only the latents can be narrowed: call to_dense() first"
        inside = ((self.columns >= start) & (self.columns < start + length)).nonzero().flatten()
        values, rows, columns = (part.index_select(0, inside) for part in (self.values, self.rows, self.columns))
        return SparseLatents(values, rows, columns - start, (self.shape[0], length))

    def __matmul__(self, W: Tensor) -> Tensor:
        """Return the product `[batch, n]` with W `[d_sae, n]`."""
        product = _sums(self.values, self.columns, W.detach(), self.rows, self.shape[0])
        return _WithGradient.apply(product, W, self)  # pyright: ignore

    def transposed_product(self, other: Tensor) -> Tensor:
        """Return the transpose's product `[d_sae, n]` with `other [batch, n]`, without gradient."""
        small = np.uint16 if self.shape[1] <= 2**16 else np.int64
        order = torch.from_numpy(np.argsort(self.columns.numpy().astype(small), kind="stable"))  # uint16: by radix
        values = self.values.detach().index_select(0, order)
        rows, columns = self.rows.index_select(0, order), self.columns.index_select(0, order)
        return _sums(values, rows, other, columns, self.shape[1])

    def __getattr__(self, name: str) -> None:
        raise AttributeError(f"SparseLatents has no {name}: call to_dense() first")


class _WithGradient(torch.autograd.Function):
    """A product of sparse latents with W, to which it adds the gradient for W: embedding_bag's own is slow."""

    @staticmethod
    def forward(ctx, product: Tensor, W: Tensor, latents: SparseLatents) -> Tensor:  # noqa: ARG004
        ctx.latents = latents
        return product.view_as(product)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # pyright: ignore
        wanted = ctx.needs_input_grad[1]
        return gradient, ctx.latents.transposed_product(gradient.contiguous()) if wanted else None, None


class _Affine(torch.autograd.Function):
    """x @ W + b, whose gradient is computed as a product with sparse latents if it is mostly zeros."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.addmm(b, x, W)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # pyright: ignore
        x, W = ctx.saved_tensors
        of_x = ctx.needs_input_grad[0]
        active = gradient.bool().numpy()
        if np.count_nonzero(active) > MOST_DENSE * active.size:
            return gradient @ W.T if of_x else None, x.T @ gradient, gradient.sum(0)
        sparse = SparseLatents.gather(gradient, active)
        return sparse @ W.T.contiguous() if of_x else None, sparse.transposed_product(x).T, gradient.sum(0)


def _largest(values: Tensor, k: int) -> Tensor:
    """Return the places `[k]` of the k largest of `values [n]`, in any order.

    The k largest lie in the k groups with the largest maxima: any other value is at most as large as each of these
    maxima. So the cost is that of finding those groups, by the same way, and of a topk over their members.
    """
    groups, rest = divmod(len(values), GROUP)
    if rest or groups < 2 * k:
        return values.topk(k, sorted=False).indices
    members = values.view(GROUP, groups)  # a column is a group
    best = _largest(members.amax(0), k)
    chosen = members.index_select(1, best).flatten().topk(k, sorted=False).indices
    return chosen // k * groups + best[chosen % k]


def _sums(weights: Tensor, places: Tensor, table: Tensor, owners: Tensor, count: int) -> Tensor:
    """Return each owner's sum of weights times rows of the table, `[count, n]`; `owners` is ascending."""
    starts = torch.searchsorted(owners, torch.arange(count))
    return F.embedding_bag(places, table, starts, mode="sum", per_sample_weights=weights)


def _quick(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16)
