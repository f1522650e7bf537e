"""The shape of a language model, from its config.json alone: what a study's default settings follow from. No torch."""

import re
from dataclasses import dataclass
from typing import Any

from agent.lab.errors import UserError

# What architectures of transformers call the same number.
D_MODEL = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
D_HEAD = ("head_dim",)
D_MLP = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")
POSITIONS = ("n_positions", "max_position_embeddings")
HOOK = re.compile(  # in TransformerLens' one spelling
    r"blocks\.(0|[1-9][0-9]*)\.(hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_in|mlp_out)|"
    r"attn\.hook_z|ln2\.hook_normalized|mlp\.hook_post)"
)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that an SAE depends on."""

    d_model: int
    layers: int
    d_heads: int  # all heads of a layer together
    d_mlp: int
    positions: int | None  # None: its config does not limit them

    def width_at(self, hook_name: str) -> int:
        """Return d_in, the width of the activations at a hook."""
        if hook_name.endswith("attn.hook_z"):
            return self.d_heads
        return self.d_mlp if hook_name.endswith("mlp.hook_post") else self.d_model


def shape_of(config: dict[str, Any], name: str) -> ModelShape:
    """Return the shape in a model's config.json; of a model of text and images, that of its language model.

    Raises UserError if the config does not say how wide and deep the model is.
    """
    text = next((config[part] for part in ("text_config", "llm_config") if isinstance(config.get(part), dict)), config)
    d_model, layers = _first(text, D_MODEL), _first(text, LAYERS)
    if d_model is None or layers is None:
        raise UserError(f"the config.json of {name} does not give its width and layers: give --d-sae and --layer")
    heads, d_head = _first(text, HEADS), _first(text, D_HEAD)
    return ModelShape(
        d_model=d_model,
        layers=layers,
        d_heads=heads * d_head if heads and d_head else d_model,
        d_mlp=_first(text, D_MLP) or 4 * d_model,  # as in GPT-2, whose config leaves it out
        positions=_first(text, POSITIONS),
    )


def layer_of(hook_name: str) -> int:
    """Return the layer of a hook. Raises UserError for one without an activation vector for each token."""
    if not (found := HOOK.fullmatch(hook_name)):
        raise UserError(f"hook {hook_name!r} has no per-token activation vector: use one like blocks.1.hook_resid_post")
    return int(found[1])


def middle_hook(layers: int) -> str:
    """Return the hook of the residual stream after half of the layers."""
    return resid_post((layers - 1) // 2)


def resid_post(layer: int) -> str:
    """Return the hook of the residual stream after a layer."""
    return f"blocks.{layer}.hook_resid_post"


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of these that is a positive whole number; some configs give a list, one number a layer."""
    numbers = (config.get(name) for name in names)
    return next((number for number in numbers if type(number) is int and number > 0), None)
