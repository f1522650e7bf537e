"""Encoders that a researcher may honestly write, each for every row alone: 41 forms, by name in FORMS."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from small_sae import D_IN, D_SAE, Sae
from torch import Tensor, nn

K = 5


class Weights(Sae):
    """The small SAE with what the forms need besides: a Gram matrix, centroids, kernels, normalisations, indices."""

    gram: Tensor
    covariance: Tensor
    parents: Tensor
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(5)
        unit = F.normalize(self.W_dec.detach(), dim=1)
        self.register_buffer("gram", unit @ unit.T)
        self.register_buffer("covariance", unit.T @ unit + torch.eye(D_IN))
        self.register_buffer("parents", torch.arange(D_SAE) // 4)
        self.register_buffer("order", torch.randperm(D_SAE, generator=drawn))
        self.W_gate = nn.Parameter(torch.randn(D_IN, D_SAE, generator=drawn) / D_IN**0.5)
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, generator=drawn))
        self.layer_norm, self.group_norm = nn.LayerNorm(D_IN), nn.GroupNorm(3, D_IN)
        self.batch_norm, self.instance_norm = nn.BatchNorm1d(D_IN), nn.InstanceNorm1d(1)
        self.batch_norm.running_mean = torch.randn(D_IN, generator=drawn) / 4
        self.batch_norm.running_var = torch.rand(D_IN, generator=drawn) + 0.5

    def top(self, pre: Tensor, k: int = K) -> Tensor:
        values, indices = pre.relu().topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)


def affine_relu(s: Weights, x: Tensor) -> Tensor:
    return s.relu(x)


def jumprelu(s: Weights, x: Tensor) -> Tensor:
    return s.thresholded(x)


def jumprelu_with_its_own_thresholds(s: Weights, x: Tensor) -> Tensor:
    pre = s.pre(x)
    return pre * (pre > s.b_enc.exp())


def topk_per_row(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(x))


def topk_of_absolute_values(s: Weights, x: Tensor) -> Tensor:
    pre = s.pre(x)
    indices = pre.abs().topk(K, dim=-1).indices
    return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices).relu())


def gated(s: Weights, x: Tensor) -> Tensor:
    return (x @ s.W_gate > 0.3).float() * s.relu(x)


def soft_gated(s: Weights, x: Tensor) -> Tensor:
    return (x @ s.W_gate).sigmoid() * s.relu(x)


def softmax_gates(s: Weights, x: Tensor) -> Tensor:
    return (x @ s.W_gate).softmax(dim=-1) * s.relu(x)


def mixture_of_experts(s: Weights, x: Tensor) -> Tensor:
    scores = (x @ s.W_gate[:, :4]).softmax(-1)
    chosen = F.one_hot(scores.argmax(-1), 4).float() * scores
    return (s.relu(x).view(-1, 4, D_SAE // 4) * chosen[..., None]).flatten(1)


def soft_threshold(s: Weights, x: Tensor) -> Tensor:
    return F.softshrink(s.pre(x), 0.2).relu()


def hard_threshold(s: Weights, x: Tensor) -> Tensor:
    return F.threshold(s.pre(x), 0.3, 0.0)


def lista(s: Weights, x: Tensor) -> Tensor:
    drive = s.relu(x)
    latents = drive
    for _ in range(4):
        latents = (latents + 0.1 * (drive - latents @ s.gram)).relu()
    return latents


def ista_by_the_decoder(s: Weights, x: Tensor) -> Tensor:
    latents = torch.zeros(x.shape[0], D_SAE)
    for _ in range(4):
        latents = (latents + 0.1 * (x - latents @ s.W_dec) @ s.W_dec.T - 0.02).relu()
    return latents


def matching_pursuit(s: Weights, x: Tensor) -> Tensor:
    unit, residual = F.normalize(s.W_dec, dim=1), x
    latents = torch.zeros(x.shape[0], D_SAE)
    for _ in range(3):
        best, index = (residual @ unit.T).relu().max(dim=1, keepdim=True)
        latents = latents.scatter_add(1, index, best)
        residual = residual - best * unit[index[:, 0]]
    return latents


def sorted_threshold(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    smallest = pre.sort(dim=-1, descending=True).values[:, K - 1 : K]
    return torch.where(pre >= smallest, pre, 0.0)


def ranked(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    return pre * (pre.argsort(dim=-1, descending=True).argsort(dim=-1) < K)


def kth_value(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    return pre * (pre >= pre.kthvalue(D_SAE - K + 1, dim=-1, keepdim=True).values)


def quantile_threshold(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    return pre * (pre > pre.quantile(0.8, dim=-1, keepdim=True))


def share_of_the_sum(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    ordered, indices = pre.sort(dim=-1, descending=True)
    kept = ordered * (ordered.cumsum(-1) < 0.6 * ordered.sum(-1, keepdim=True))
    return torch.zeros_like(pre).scatter(1, indices, kept)


def layer_norm(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(s.layer_norm(x)))


def group_norm(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(s.group_norm(x)))


def instance_norm(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(s.instance_norm(x[:, None]).squeeze(1)))


def batch_norm_in_evaluation_mode(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(s.batch_norm(x)))


def unit_norm_rows(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(F.normalize(x, dim=-1) * D_IN**0.5))


def standardised_rows(s: Weights, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return s.relu(centred / (centred.std(-1, keepdim=True) + 1e-3))


def cosine_similarity(s: Weights, x: Tensor) -> Tensor:
    return (F.cosine_similarity(x[:, None], s.W_dec[None], dim=-1) - 0.2).relu()


def distance_to_centroids(s: Weights, x: Tensor) -> Tensor:
    return (5 - torch.cdist(x, 3 * s.W_dec)).relu()


def whitened_by_cholesky(s: Weights, x: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(s.covariance)
    return s.relu(torch.linalg.solve_triangular(factor, x.T, upper=False).T)


def solved_by_a_constant(s: Weights, x: Tensor) -> Tensor:
    return s.relu(torch.linalg.solve(s.covariance, x.T).T)


def solved_for_each_row(s: Weights, x: Tensor) -> Tensor:
    systems = s.covariance + x[:, :, None] * x[:, None, :]
    return s.relu(torch.linalg.solve(systems, x))


def least_squares(s: Weights, x: Tensor) -> Tensor:
    return torch.linalg.lstsq(s.W_dec.T, x.T, driver="gelsy").solution.T.relu()


def inverse_of_a_constant(s: Weights, x: Tensor) -> Tensor:
    return s.relu(x @ torch.linalg.inv(s.covariance))


def pseudo_inverse(s: Weights, x: Tensor) -> Tensor:
    return (x @ torch.linalg.pinv(s.W_dec)).relu()


def convolution_over_the_vector(s: Weights, x: Tensor) -> Tensor:
    channels = F.conv1d(x[:, None], s.kernel, padding=1)
    return F.pad(channels.flatten(1)[:, :D_SAE], (0, max(0, D_SAE - 4 * D_IN))).relu()


def mapped_over_rows(s: Weights, x: Tensor) -> Tensor:
    def one(row: Tensor) -> Tensor:
        pre = (row - s.b_dec) @ s.W_enc + s.b_enc
        return torch.where(pre > pre.mean(), pre.relu(), 0.0)

    return torch.vmap(one)(x)


def attention_between_latents_of_a_row(s: Weights, x: Tensor) -> Tensor:
    keys = s.relu(x)[:, :, None] * s.W_dec
    weights = (keys @ keys.transpose(1, 2)).softmax(-1)
    return (weights @ keys).mean(-1).relu()


def parents_gate_children(s: Weights, x: Tensor) -> Tensor:
    pre = s.relu(x)
    return pre * (pre[:, s.parents] > 0)


def permuted_latents(s: Weights, x: Tensor) -> Tensor:
    return s.top(s.pre(x))[:, s.order]


def two_layers(s: Weights, x: Tensor) -> Tensor:
    return s.mlp(x)


def groups_of_latents(s: Weights, x: Tensor) -> Tensor:
    grouped = s.relu(x).view(-1, 8, 5)
    norms = grouped.norm(dim=-1, keepdim=True)
    return (grouped * (norms > norms.mean(1, keepdim=True))).flatten(1)


def einsum_with_a_bias_of_the_norm(s: Weights, x: Tensor) -> Tensor:
    return (torch.einsum("bi,ij->bj", x, s.W_enc) - 0.1 * x.norm(dim=-1, keepdim=True)).relu()


FORMS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    form.__name__: form
    for form in list(globals().values())
    if callable(form) and getattr(form, "__module__", None) == __name__ and form is not Weights
}
