"""An untrained language model whose activations hold each word's first letter, and SAEs that represent it."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from agent.lab.evaluation.sae_adapter import BenchSAE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS_EACH, D_MODEL, CONTEXT = 12, 64, 96
HOOK = "blocks.1.hook_resid_post"
END = "<|endoftext|>"
WORDS = [f" {letter}{LETTERS[i]}{LETTERS[-1 - i]}" for letter in LETTERS for i in range(WORDS_EACH)]


def letter_directions() -> Tensor:
    """Return orthonormal directions `[26, d_model]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q[: len(LETTERS)]


def make_tokenizer(words: list[str], pattern: str = " ?[A-Za-z]+") -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words and those of the prompts: one token each, unless the pattern cuts them."""
    vocabulary = [END, "\n", ":", " has", " the", " first", " letter", *words]
    tokens = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=END))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\n|:|{pattern}"), "isolated")
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=END, eos_token=END, pad_token=END, unk_token=END, model_max_length=CONTEXT
    )


def make_model(directory: Path, letters: str = LETTERS) -> Path:
    """Save a GPTNeoX at its initial weights, with the direction of its letter added to the embedding of a word.

    Only words of the given `letters` have one.
    """
    tokenizer = make_tokenizer([*(f" {letter.upper()}" for letter in LETTERS), *WORDS])
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(vocabulary),
            hidden_size=D_MODEL,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=D_MODEL,
            max_position_embeddings=CONTEXT,
            use_parallel_residual=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    directions = letter_directions()
    with torch.no_grad():
        for word, i in vocabulary.items():
            if word.strip().isalpha() and (letter := word.strip()[0].lower()) in letters:
                model.gpt_neox.embed_in.weight[i] += directions[LETTERS.index(letter)]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class LetterSAE(BenchSAE):
    """An SAE with a latent for each letter and one for each word. On `absorbed` words only the word's latent fires.

    Both decode to the letter's direction. `words` are the names of the words' latents.
    """

    def __init__(self, cfg: Any, embedding: Tensor, vocabulary: dict[str, int], absorbed: set[str]) -> None:
        self.words = sorted(word for word in vocabulary if word.strip().isalpha())
        self.embedding = F.normalize(embedding[[vocabulary[word] for word in self.words]], dim=1)
        self.letters = torch.tensor([LETTERS.index(word.strip()[0].lower()) for word in self.words])
        self.absorbed = torch.tensor([word in absorbed for word in self.words])
        directions = letter_directions()
        W_dec = torch.cat([directions, directions[self.letters]])
        super().__init__(cfg, W_dec.T.contiguous(), torch.zeros(len(W_dec)), W_dec, torch.zeros(D_MODEL))

    def encode(self, x: Tensor) -> Tensor:
        word = (x @ self.embedding.T).argmax(-1)
        latent = torch.where(self.absorbed[word], len(LETTERS) + word, self.letters[word])
        return F.one_hot(latent, len(self.W_dec)).float()
