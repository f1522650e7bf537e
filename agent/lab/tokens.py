"""Windows of token ids from text, the same way for harvesting and for evaluation."""

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import models, text

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CHUNK = 2000  # documents tokenized at once


def special_ids(model: "HookedTransformer") -> set[int]:
    """Return the ids whose activations are neither trained on nor scored: beginning, end, padding."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return {i for i in ids if isinstance(i, int)}


def text_split_for(model_name: str, purpose: text.Split) -> list[text.Split]:
    """Return the splits that serve a purpose: only tiny-lm must not see the text it was itself trained on."""
    return ["sae", "lm"] if purpose == "sae" and model_name != "tiny-lm" else [purpose]


def windows(model: "HookedTransformer", splits: list[text.Split], context: int, tokens: int, seed: int) -> Tensor:
    """Pack the documents of some splits in a seeded order.

    Returns token ids `[windows, context]` with at least `tokens` ordinary tokens, or all there are.
    """
    documents = list(text.prompts(*splits))
    random.Random(seed).shuffle(documents)
    return pack(model, documents, context, tokens)


def pack(model: "HookedTransformer", documents: list[str], context: int, tokens: int) -> Tensor:
    """Pack documents one after another, an end token after each, a beginning token before each window.

    Returns token ids `[windows, context]` with at least `tokens` ordinary tokens, or all there are.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert isinstance(end, int)
    begin = begin if isinstance(begin, int) else end
    stream: list[int] = []
    body = context - 1
    for start in range(0, len(documents), CHUNK):
        encoded = tokenizer(documents[start : start + CHUNK], add_special_tokens=False)["input_ids"]
        for ids in encoded:
            stream += [*ids, end]
        if len(stream) - start - CHUNK > tokens + body:  # end tokens are not ordinary ones
            break
    count = len(stream) // body
    packed = torch.tensor(stream[: count * body]).view(count, body)
    if count:
        models.require_embedded(packed, model.cfg.d_vocab)
    return torch.cat([torch.full((count, 1), begin), packed], dim=1)
