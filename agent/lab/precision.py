"""Float32 where figures come from, whatever the dtype of the language model.

A model in bfloat16 computes its layers in bfloat16. Its logits, and all that is computed from them or from activations,
are in float32: a logit of 16 in bfloat16 has a step of 0.125, and a loss of 4 one of 0.03.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def unembed_in_float32(model: "HookedTransformer") -> None:
    """Have the final norm and the unembedding of a model in bfloat16 compute in float32, from its weights as they are.

    This takes as much memory again as the unembedding in bfloat16: 1.2 GB for 256,000 tokens and a width of 2,304.
    """
    for part in filter(None, (getattr(model, "ln_final", None), model.unembed)):
        part.float()
        part.register_forward_pre_hook(_in_float32)
        if hasattr(part, "cfg"):  # by which a norm chooses the dtype of its output
            own: Any = copy.copy(part.cfg)
            own.dtype = torch.float32
            part.cfg = own


def _in_float32(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].float(), *arguments[1:])


class Float32Model:
    """A language model whose activations are read in float32.

    sae_probes and SAE-Bench compute in the dtype of what they read, and hand it to numpy, which has no bfloat16.
    """

    def __init__(self, model: "HookedTransformer") -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run_with_cache(self, *arguments: Any, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the output and the activations by hook, in float32."""
        output, cached = self.model.run_with_cache(*arguments, **options)
        return output, {name: activation.float() for name, activation in cached.items()}

    def run_with_hooks(self, *arguments: Any, fwd_hooks: list[Any], **options: Any) -> Any:
        """Return the output; `fwd_hooks` are `(hook, function)`, whose functions read float32 and return nothing."""

        def reading(read: Any) -> Any:
            def hooked(activation: Tensor, hook: Any) -> None:
                read(activation.float(), hook=hook)

            return hooked

        return self.model.run_with_hooks(
            *arguments, fwd_hooks=[(name, reading(read)) for name, read in fwd_hooks], **options
        )


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32, which multiplies float32 matrices on a GPU with the 10 bits of float16's mantissa.

    It is allowed in the steps of a training alone: harvest, evaluation and checks of a checkpoint are exact.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
