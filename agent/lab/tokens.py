"""Windows of token ids from text, the same way for harvesting and for evaluation."""

import os
import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import models, text
from agent.lab.defaults import BEGIN_VARIABLE

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CHUNK = 2000  # documents tokenized at once
TYPICAL_WINDOWS = 128  # of the training text, from which the usual norm of an activation is measured


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
    """Pack documents one after another, an end token after each, a beginning token before each window if `begins()`.

    Returns token ids `[windows, context]` with at least `tokens` ordinary tokens, or all there are.
    """
    stream: list[int] = []
    for start in range(0, len(documents), CHUNK):
        for ids in encode(model, documents[start : start + CHUNK]):
            stream += ids
        if len(stream) - start - CHUNK > tokens + context - 1:  # end tokens are not ordinary ones
            break
    return as_windows(model, torch.tensor(stream, dtype=torch.long), context)


def encode(model: "HookedTransformer", documents: list[str]) -> list[list[int]]:
    """Return the token ids of each document, with the end token after them."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if not documents:
        return []
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return [[*ids, end] for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]]


def as_windows(model: "HookedTransformer", stream: Tensor, context: int) -> Tensor:
    """Cut a stream of token ids into windows `[windows, context]`, each with the beginning token if `begins()`."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert isinstance(end, int)
    begin = begin if isinstance(begin, int) else end
    body = context - begins()
    count = len(stream) // body
    packed = stream[: count * body].view(count, body)
    if count:
        models.require_embedded(packed, model.cfg.d_vocab)
    if not begins():
        return packed
    return torch.cat([torch.full((count, 1), begin, dtype=stream.dtype), packed], dim=1)


def begins() -> bool:
    """Return whether a window of text begins with the beginning token: not if SAE_AGENT_BEGIN is 0."""
    return os.environ.get(BEGIN_VARIABLE) != "0"


def with_some_to_spare(rows: int) -> int:
    """Return the ordinary tokens to read for `rows` activations: those of a few tokens are dropped."""
    return rows + rows // 50


def documents_in(model: "HookedTransformer", ids: Tensor) -> int:
    """Count the documents that end in windows `[windows, context]`."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return int(ids[:, 1:].eq(end).sum())
