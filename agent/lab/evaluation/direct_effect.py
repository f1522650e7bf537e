"""The tokens whose logits a decoder row raises and lowers most by its direct effect, through no layer above the hook.

The row goes to the residual stream (from `attn.hook_z` through W_O, from `mlp.hook_post` through W_out), through the
final norm with its scale frozen, and through the unembedding: the logit lens (nostalgebraist 2020, "interpreting GPT:
the logit lens") of a direction, as dashboards of SAEs have it. With x the row in the residual stream, w the norm's
weight and W_U the unembedding it is ((x - mean(x)) * w) W_U, less its mean over the vocabulary, which moves no
probability; a norm without centring (RMSNorm) has no mean(x). To be a change of logits it lacks the factor
1 / (standard deviation, or root mean square, of the residual stream), which is the token's own and changes no order.
"""

import re
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab import models

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

INTO_RESIDUAL = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
ROWS = 64  # decoder rows at once: a vocabulary can have 256,000 tokens


class NoDirectEffect(Exception):
    """The reason why decoder rows of a hook have no direct effect on the logits that means something."""


@torch.no_grad()
def logits(model: "HookedTransformer", hook_name: str, rows: Tensor) -> Tensor:
    """Return the direct effect `[n, d_vocab]`, float32, of decoder rows `[n, d_in]`, each made of norm 1.

    Raises NoDirectEffect.
    """
    residual = into_residual(model, hook_name, F.normalize(rows.float(), dim=1))
    return torch.cat([_from_residual(model, part) for part in residual.split(ROWS)])


def into_residual(model: "HookedTransformer", hook_name: str, rows: Tensor) -> Tensor:
    """Return what rows `[n, d_in]` at a hook add to the residual stream, `[n, d_model]`. Raises NoDirectEffect."""
    if INTO_RESIDUAL.fullmatch(hook_name):
        return rows
    block: Any = model.blocks[models.layer_of(hook_name)]
    kind = hook_name.split(".", 2)[2]
    if kind not in ("attn.hook_z", "mlp.hook_post"):
        raise NoDirectEffect(f"{hook_name} is what a part of the layer reads: its rows reach no logit by themselves")
    if any(hasattr(block, norm) for norm in ("ln1_post", "ln2_post")):
        raise NoDirectEffect(f"a norm stands between {hook_name} and the residual stream")
    if kind == "attn.hook_z":
        output = getattr(block.attn, "o", None)
        return _linear(output, rows) if output is not None else rows @ block.attn.W_O.flatten(0, 1).float()
    output = getattr(block.mlp, "out", None)
    return _linear(output, rows) if output is not None else rows @ block.mlp.W_out.float()


def _from_residual(model: "HookedTransformer", rows: Tensor) -> Tensor:
    """Return the logits, less their mean, of directions in the residual stream `[n, d_model]`."""
    norm = getattr(model, "ln_final", None)
    if norm is not None:
        weight, centres = _norm(norm, rows)
        rows = (rows - rows.mean(1, keepdim=True) if centres else rows) * weight
    effect = _linear(model.unembed, rows)
    return effect - effect.mean(1, keepdim=True)


def _norm(norm: Any, like: Tensor) -> tuple[Tensor, bool]:
    """Return the weight `[d_model]` of a norm, and whether it subtracts the mean, as its own outputs show.

    Its weight is read off an input of ones with alternating signs, whose scale is 1, so that a norm whose parameter is
    kept otherwise (Gemma's is 1 + w) or was folded gives its weight too.
    """
    width = like.shape[1]
    signs = torch.ones(width, device=like.device)
    signs[1::2] = -1
    weight = _odd_part(norm, signs) * signs
    return weight, bool(_odd_part(norm, torch.ones_like(signs)).abs().max() < 1e-3 * weight.abs().max())


def _odd_part(module: Any, x: Tensor) -> Tensor:
    """Return what a module makes of one vector, without its bias."""
    return (_call(module, x[None]) - _call(module, -x[None]))[0] / 2


def _linear(module: Any, rows: Tensor) -> Tensor:
    """Return what an affine module makes of rows `[n, in]`, without its bias."""
    return _call(module, rows) - _call(module, torch.zeros_like(rows[:1]))


def _call(module: Any, rows: Tensor) -> Tensor:
    """Call a module of the model on rows `[n, in]`, as positions of one window, in the dtype of its weights."""
    dtype = next(module.parameters(), rows).dtype
    return module(rows.to(dtype)[None])[0].float()
