"""TransformerLens' bridge around a transformers model, with the hooks and the resuming that evaluations need.

The bridge runs the transformers model itself, with hook points in it. This module adds what a HookedTransformer has
beyond that: a run may start at a layer, it stops before the unembedding, and `hook_resid_mid`, `attn.hook_z` and
`ln2.hook_normalized` are hooks whose replacement reaches all that reads them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException


class Bridge(TransformerBridge):
    """A transformers model with hook points, in the form of a HookedTransformer without weight processing."""

    @classmethod
    def wrap(cls, hf_model: Any, name: str, **settings: Any) -> "Bridge":
        """Wrap a transformers model, whose attention must be eager; its modules are replaced in place."""
        _add_zero_biases(hf_model)
        if hf_model.dtype != torch.float32:
            _untie(hf_model)
        bridge: Any = cls.boot_transformers(name, hf_model=hf_model, **settings)
        bridge.__class__ = cls  # boot_transformers makes its own class
        bridge.set_use_hook_mlp_in(True)
        for layer in range(bridge.cfg.n_layers):
            # Their own replaces what the MLP reads, and not the residual stream.
            bridge.hook_dict.pop(f"blocks.{layer}.hook_resid_mid", None)
            own = dict(bridge._add_hooks(layer))
            bridge.hook_dict.update(own)
            bridge._hook_registry.update(own)  # so that reset_hooks knows them
        return bridge

    @functools.cached_property
    def hook_dict(self) -> dict[str, HookPoint]:  # type: ignore[override]
        """Every hook point by its name and its aliases, collected once."""
        inherited: Any = TransformerBridge.hook_dict
        return inherited.fget(self)

    def forward(  # type: ignore[override]
        self,
        input: Any,
        *args: Any,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model on token ids `[batch, context]`.

        With `start_at_layer` the input is the residual stream `[batch, context, d_model]` that enters this layer, and
        `tokens` are the ids, which a loss is taken of.
        """
        with ExitStack() as stack:
            if start_at_layer is not None:
                stack.enter_context(self._entering(start_at_layer, input))
                input = input.new_zeros(input.shape[:2], dtype=torch.long) if tokens is None else tokens
            if stop_at_layer == self.cfg.n_layers:
                stop_at_layer = None
                stack.enter_context(self._stopping_before_the_end())
            return super().forward(input, *args, stop_at_layer=stop_at_layer, **kwargs)

    def run_with_cache(  # type: ignore[override]
        self, *args: Any, names_filter: Any = None, stop_at_layer: int | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Run the model and return its output and the cached activations, by the names that were asked for."""
        with ExitStack() as stack:
            if stop_at_layer == self.cfg.n_layers:
                stop_at_layer = None
                stack.enter_context(self._stopping_before_the_end())
            output, cached = super().run_with_cache(
                *args, names_filter=names_filter, stop_at_layer=stop_at_layer, **kwargs
            )
        if isinstance(names_filter, list):
            cached.cache_dict = {name: cached.cache_dict[name] for name in names_filter}
        return output, cached

    @contextmanager
    def _entering(self, layer: int, residual: Tensor) -> Iterator[None]:
        """Replace what enters a layer, or the end, by `residual`, and run no block below it."""

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((residual, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": residual})

        blocks = list(self.blocks)
        handle = [*blocks, self._end][layer].register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
        try:
            with ExitStack() as stack:
                for block in blocks[:layer]:
                    stack.enter_context(patch.dict(block.__dict__, forward=self._skipped))
                yield
        finally:
            handle.remove()

    @functools.cached_property
    def _skipped(self) -> Callable[..., Any]:
        """A block's forward that returns its input, in the form in which this architecture's blocks return theirs."""
        outputs: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            with torch.no_grad():
                TransformerBridge.forward(self, torch.zeros(1, 1, dtype=torch.long, device=self.cfg.device))
        finally:
            handle.remove()
        others = outputs[0][1:] if isinstance(outputs[0], tuple) else None

        def skipped(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if others is None else (hidden, *(None for _ in others))

        return skipped

    @property
    def _end(self) -> nn.Module:
        return getattr(self, "ln_final", None) or self.unembed

    @contextmanager
    def _stopping_before_the_end(self) -> Iterator[None]:
        """Stop a run after its last block, as no logits are needed."""

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise StopAtLayerException(args[0])

        handle = self._end.register_forward_pre_hook(stop)
        try:
            yield
        finally:
            handle.remove()

    def _add_hooks(self, layer: int) -> Iterator[tuple[str, HookPoint]]:
        """Add the hooks of a layer that the bridge lacks, or whose replacement does not reach all that reads them."""
        block = self.blocks[layer]
        attention, normalization = block._modules.get("attn"), block._modules.get("ln2")
        z, normalized, middle = (
            _named(f"blocks.{layer}.{name}") for name in ("attn.hook_z", "ln2.hook_normalized", "hook_resid_mid")
        )
        if attention and (output := attention._modules.get("o")):  # flattened: [batch, context, heads * d_head]
            output.register_forward_pre_hook(lambda _, args: (z(args[0]), *args[1:]))
            yield z.name, z
        if normalization:
            normalization.register_forward_hook(lambda _module, _args, output: normalized(output))
            yield normalized.name, normalized
            # What attention adds is the output of a norm in some architectures, or of a product that is no module.
            adding = str(self.hook_dict[f"blocks.{layer}.hook_attn_out"].name).split(".")[2:]
            if len(adding) == 2 and adding[1] == "hook_out":
                _add_resid_mid(block.hook_in, block._modules[adding[0]], middle)
                yield middle.name, middle


def _named(name: str) -> Any:
    hook = HookPoint()
    hook.name = name
    return hook


def _add_resid_mid(entering: HookPoint, attention: nn.Module, middle: HookPoint) -> None:
    """Make `middle` the residual stream after a block's attention: what entered the block, and what attention adds.

    What replaces it reaches the rest of the block as a change of what attention adds.
    """
    entered: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, residual: Tensor) -> None:
        entered[:] = [residual] if middle.fwd_hooks or middle.bwd_hooks else []

    def add(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not entered:
            return None
        (residual,), added = entered, output[0] if isinstance(output, tuple) else output
        entered.clear()
        before = residual + added
        if (after := middle(before)) is before:
            return None
        return (after - residual, *output[1:]) if isinstance(output, tuple) else after - residual

    entering.register_forward_hook(keep)
    attention.register_forward_hook(add)


def _add_zero_biases(hf_model: nn.Module) -> None:
    """Give attention without biases biases of zero, as the bridge splits a joint bias of query, key and value."""
    for name, module in hf_model.named_modules():
        if name.endswith("query_key_value") and isinstance(module, nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_features))


def _untie(hf_model: Any) -> None:
    """Give the unembedding weights of its own, so that it can be computed in another dtype than the embedding."""
    embedding, unembedding = hf_model.get_input_embeddings(), hf_model.get_output_embeddings()
    if unembedding is not None and unembedding.weight is embedding.weight:
        unembedding.weight = nn.Parameter(embedding.weight.clone())
