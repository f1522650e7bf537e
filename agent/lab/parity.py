"""Checks of a loaded model: it computes what transformers computes, and its hooks are what their names say."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agent.lab.errors import UserError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Root mean square of a difference, in standard deviations of what is compared. Equal models differ by 1e-6 at most in
# float32 and by 0.02 in bfloat16; one with another rotary base or without its biases by about 1.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
CONTEXT, WINDOWS = 128, 2  # a few hundred tokens
HOOK_TOKENS = 48  # that hooks are checked on

TEXT = """The museum opened its new wing on a rainy Tuesday in March, and by noon the line of visitors reached the
river. Most of them had come for the clocks. "There are 412 of them," said the curator, Ines Okafor, "and no two agree."
One, made in Lisbon in 1768, shows the tides; another, no larger than a walnut, has struck the quarter hours for 230
years. Nobody knows who built it. The catalogue (12 euros, paperback) gives three names and rejects them all.

To keep the collection running, two people wind it every morning. They start at 6:40 with the tower clock, whose weights
are as heavy as a small car, and end with the watches. If a spring breaks, a new one is drawn from steel wire, hardened
at 820 degrees, and cooled in oil. "You learn to listen," says one of them. "A clock that is about to stop sounds so."

def seconds(hours, minutes):
    return 3600 * hours + 60 * minutes

In the evening, when the doors are closed, the rooms are not quiet: they tick, slowly and out of step, like rain."""


@dataclass(frozen=True)
class Reference:
    """What transformers computes on TEXT, in the dtype of its model."""

    ids: Tensor  # [windows, context]
    logits: Tensor  # [windows, context, vocabulary]
    entering: list[Tensor]  # [windows, context, d_model], the residual stream that enters each layer


def sample_ids(tokenizer: Any, context: int) -> Tensor:
    """Return TEXT as two windows of token ids `[2, context]`, or as many as it fills; each starts with a beginning
    token, if there is one."""
    begin = [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    body = min(context, CONTEXT, len(ids) + len(begin)) - len(begin)
    return torch.tensor([begin + ids[start : start + body] for start in range(0, len(ids) - body + 1, body)][:WINDOWS])


@torch.no_grad()
def run_transformers(hf_model: Any, ids: Tensor) -> Reference:
    """Run a transformers model. It must not have been wrapped yet."""
    output = hf_model.eval()(ids.to(hf_model.device), output_hidden_states=True)
    return Reference(ids, output.logits, list(output.hidden_states[:-1]))  # the last one is behind the final norm


@torch.no_grad()
def check_model(model: "HookedTransformer", reference: Reference, name: str, dtype: torch.dtype) -> None:
    """Raise UserError unless the model's logits, and the residual stream at every layer, are those of transformers."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(len(reference.entering))]
    ids = reference.ids.to(model.cfg.device)
    output, cached = model.run_with_cache(ids, names_filter=names, prepend_bos=False)
    logits: Any = output
    differing = [
        f"from the input of layer {layer} on"
        for layer, (hook, expected) in enumerate(zip(names, reference.entering, strict=True))
        if difference(cached[hook], expected) > TOLERANCES[dtype]
    ]
    if difference(logits, reference.logits) > TOLERANCES[dtype]:
        differing.append("in the last layer or the unembedding")
    if differing:
        expected = reference.logits.float().to(logits.device)
        largest = (logits.float() - expected).abs().max().item()
        raise UserError(
            f"{name} would be studied as another model: its logits in TransformerLens differ from those in "
            f"transformers by up to {largest:.3g}, where they vary by {expected.std().item():.3g}, {differing[0]}; "
            "TransformerLens does not know something of its config.json: use another model"
        )


def difference(values: Tensor, expected: Tensor) -> float:
    """Return the root mean square of a difference, in standard deviations of what is expected; inf if not finite."""
    values, expected = values.float(), expected.float().to(values.device)
    if values.shape != expected.shape:
        return float("inf")
    ratio = ((values - expected).pow(2).mean().sqrt() / expected.std().clamp_min(1e-12)).item()
    return ratio if ratio == ratio else float("inf")


@torch.no_grad()
def check_hook(model: "HookedTransformer", hook_name: str, ids: Tensor) -> None:
    """Raise UserError unless what replaces the hook's activations reaches all that reads them, and nothing else.

    `ids [windows, context]`. The residual stream after a block is what enters it and what attention and MLP add,
    whichever of them is replaced; and a run that is resumed above the replacement ends as the whole run does.
    """
    ids, layer = ids[:1, :HOOK_TOKENS].to(model.cfg.device), hook_name.split(".")[1]
    usual = f"blocks.{layer}.hook_resid_post"
    own = _run(model, ids, [f"blocks.{layer}.hook_resid_pre", hook_name])
    if hook_name in own and own[hook_name].dim() != 3:
        raise UserError(f"hook {hook_name} has no per-token activation vector: use one like {usual}")
    if hook_name in own and _is_replaceable(model, ids, hook_name, own):
        return
    raise UserError(
        f"hook {hook_name} cannot be studied on this model: what replaces its activations does not reach all that "
        f"reads them; use one like {usual}"
    )


def _is_replaceable(model: "HookedTransformer", ids: Tensor, hook_name: str, own: dict[str, Tensor]) -> bool:
    noise = torch.randn(own[hook_name].shape, generator=torch.Generator().manual_seed(0)).to(own[hook_name])
    replacement = own[hook_name] + own[hook_name].std() * noise
    replaced = _run(model, ids, _parts(model, hook_name), {hook_name: replacement})
    try:
        resumed = _resumed(model, ids, hook_name, own, replacement)
    except RuntimeError:  # something between the last layer and the unembedding is no module of TransformerLens
        return False
    equal = [*_sums(replaced, hook_name), (resumed, replaced["logits"])]
    effect = difference(replaced["logits"], own["logits"])
    tolerance = TOLERANCES[replacement.dtype] * min(effect, 1)
    return effect > 0 and all(difference(*pair) <= tolerance for pair in equal)


def _parts(model: "HookedTransformer", hook_name: str) -> list[str]:
    """Return the hooks of the residual stream around the hook's block, those that the model has."""
    layer = int(hook_name.split(".")[1])
    names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    parts = [*(f"blocks.{layer}.{name}" for name in names), f"blocks.{layer + 1}.hook_resid_pre"]
    return [part for part in parts if part in model.hook_dict]


def _sums(run: dict[str, Tensor], hook_name: str) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of activations of a run that are equal if a replacement at the hook has reached all of them."""
    _, layer, kind = hook_name.split(".", 2)
    names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    entering, attention, mlp, after = (run[f"blocks.{layer}.{name}"] for name in names)
    next_layer = run.get(f"blocks.{int(layer) + 1}.hook_resid_pre")
    pairs = [] if next_layer is None else [(next_layer, after)]
    if kind != "hook_resid_post":
        after_attention = run[hook_name] if kind == "hook_resid_mid" else entering + attention
        pairs.append((after_attention + mlp, after))
    return pairs


def _run(
    model: "HookedTransformer", ids: Tensor, names: list[str], replaced: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the logits of a run, the activations at some hooks, and those that `replaced` others."""
    read = dict(replaced or {})

    def hooked(name: str) -> Any:
        def replace_or_keep(x: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            return read.setdefault(name, x)

        return name, replace_or_keep

    hooks = [hooked(name) for name in dict.fromkeys([*read, *names])]
    read["logits"] = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)
    return read


def _resumed(
    model: "HookedTransformer", ids: Tensor, hook_name: str, own: dict[str, Tensor], replacement: Tensor
) -> Tensor:
    """Return the logits of a run that starts at the hook's layer, or at the next one if the hook ends its layer."""
    _, layer, kind = hook_name.split(".", 2)
    if kind == "hook_resid_post":
        return model(replacement, start_at_layer=int(layer) + 1, tokens=ids)
    with model.hooks(fwd_hooks=[(hook_name, lambda _, hook: replacement)]):  # noqa: ARG005
        return model(own[f"blocks.{layer}.hook_resid_pre"], start_at_layer=int(layer), tokens=ids)
