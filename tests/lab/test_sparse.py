"""The quick way through a training step beside the plain one: the same values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agent.lab.sparse import SparseLatents, affine, keep, kth_largest

D_IN, D_SAE, BATCH = 24, 256, 64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
DTYPES = [torch.float32, torch.bfloat16]


def plain_cut_off(pre: Tensor, k: int) -> Tensor:
    return pre.flatten().topk(k).values.min()


def plain_keep(pre: Tensor, smallest: Tensor) -> Tensor:
    return torch.where((pre >= smallest) & (pre > 0), pre, 0.0)


def ordinary() -> Tensor:
    return torch.randn(BATCH, D_SAE)


def crowded_rows() -> Tensor:
    """Two rows hold all of the largest values."""
    pre = torch.rand(BATCH, D_SAE)
    pre[3:5] += 10
    return pre


def neighbours() -> Tensor:
    """The largest values lie side by side."""
    return torch.arange(BATCH * D_SAE, 0, -1).float().view(BATCH, D_SAE)


def ties() -> Tensor:
    return torch.randint(5, (BATCH, D_SAE)).float()


def few_positive() -> Tensor:
    """Fewer values are positive than are to be kept."""
    return torch.randn(BATCH, D_SAE) - 3.5


def all_zero() -> Tensor:
    return torch.zeros(BATCH, D_SAE)


def all_negative() -> Tensor:
    return -1 - torch.rand(BATCH, D_SAE)


def one_token() -> Tensor:
    return torch.randn(1, D_SAE)


def odd_sizes() -> Tensor:
    return torch.randn(7, 257)


CASES = [ordinary, crowded_rows, neighbours, ties, few_positive, all_zero, all_negative, one_token, odd_sizes]


def drawn(make: Any, device: str, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return make().to(device, dtype)


def assert_close(quick: Tensor, plain: Tensor) -> None:
    """Compare up to the rounding of sums in another order, relative to the largest entry."""
    error = 1e-5 if plain.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(quick, plain, rtol=0, atol=error * plain.abs().max().item())


# The cut-off


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", CASES)
def test_the_cut_off_is_exactly_that_of_a_topk(make: Any, dtype: torch.dtype, device: str):
    pre = drawn(make, device, dtype)
    for k in {1, 2, len(pre), 3 * len(pre), pre.numel() // 2, pre.numel()}:
        assert kth_largest(pre, k) == plain_cut_off(pre, k)


def test_the_cut_off_has_no_gradient():
    assert not kth_largest(ordinary().requires_grad_(), BATCH).requires_grad


# Selecting and decoding


def step(pre: Tensor, W: Tensor, kept: Any, smallest: Tensor) -> dict[str, Tensor]:
    """Return the values and gradients of a decoding and of a loss on the latents themselves."""
    pre, W = pre.clone().requires_grad_(), W.clone().requires_grad_()
    latents = kept(pre, smallest)
    decoded = latents @ W
    (decoded.float().pow(2).sum() + latents.to_dense().float().pow(3).sum()).backward()
    assert pre.grad is not None
    assert W.grad is not None
    return {"latents": latents.to_dense().detach(), "decoded": decoded.detach(), "pre": pre.grad, "W": W.grad}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", CASES)
def test_sparse_latents_decode_and_learn_as_dense_ones_do(make: Any, dtype: torch.dtype, device: str):
    pre = drawn(make, device, dtype)
    W = torch.randn(pre.shape[1], D_IN).to(device, dtype)
    smallest = plain_cut_off(pre, 3 * len(pre))
    quick, plain = step(pre, W, keep, smallest), step(pre, W, plain_keep, smallest)
    assert torch.equal(quick["latents"], plain["latents"])
    for name in ("decoded", "pre", "W"):
        assert_close(quick[name], plain[name])


def test_few_latents_are_sparse_on_a_cpu_and_many_are_dense():
    pre = drawn(ordinary, "cpu", torch.float32)
    assert isinstance(keep(pre, plain_cut_off(pre, 3 * BATCH)), SparseLatents)
    assert isinstance(keep(pre, plain_cut_off(pre, D_SAE * BATCH // 2)), Tensor)


@pytest.mark.parametrize(("start", "length"), [(0, 10), (100, 56), (250, 6), (0, D_SAE), (7, 0)])
def test_a_range_of_latents_is_that_of_the_dense_ones(start: int, length: int):
    pre = drawn(ordinary, "cpu", torch.float32).requires_grad_()
    W = torch.randn(length, D_IN)
    smallest = plain_cut_off(pre, 3 * BATCH)
    parts = [kept(pre, smallest).narrow(1, start, length) for kept in (keep, plain_keep)]
    assert torch.equal(parts[0].to_dense(), parts[1])
    grads = [torch.autograd.grad((part @ W).pow(2).sum(), pre)[0] for part in parts]
    torch.testing.assert_close(*grads)


def test_what_sparse_latents_cannot_do_is_said():
    pre = drawn(ordinary, "cpu", torch.float32)
    with pytest.raises(AttributeError, match=r"SparseLatents has no abs: call to_dense\(\) first"):
        keep(pre, plain_cut_off(pre, 3 * BATCH)).abs()  # pyright: ignore


# Encoding


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5], ids=["no gradient", "few", "many"])
def test_the_encoders_gradient_is_the_plain_one(share: float, dtype: torch.dtype, device: str):
    torch.manual_seed(0)
    x, W, b = torch.randn(BATCH, D_IN), torch.randn(D_IN, D_SAE), torch.randn(D_SAE)
    weight = (torch.randn(BATCH, D_SAE) * (torch.rand(BATCH, D_SAE) < share)).to(device, dtype)
    results = []
    for encode in (affine, lambda x, W, b: x @ W + b):
        inputs = [part.to(device, dtype).requires_grad_() for part in (x, W, b)]
        pre = encode(*inputs)
        results.append([pre.detach(), *torch.autograd.grad((pre * weight).sum(), inputs)])
    for quick, plain in zip(*results, strict=True):
        assert_close(quick, plain)


def test_without_gradients_it_is_the_plain_product():
    x, W, b = torch.randn(BATCH, D_IN), torch.randn(D_IN, D_SAE, requires_grad=True), torch.randn(D_SAE)
    with torch.no_grad():
        assert torch.equal(affine(x, W, b), x @ W + b)
