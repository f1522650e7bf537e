"""Compare what the lab loads with transformers: every architecture and variant that is supposed to load.

    python benchmarks/model_parity.py [PART OF A NAME]

Small random models are saved with a small tokenizer, loaded by the lab's own loader, and run on the same tokens as the
transformers model, loaded apart, with its usual attention. A line for each: `equal` with the largest difference of
logits and of the residual stream after each layer, in standard deviations, and the hooks that cannot be studied;
`refused` with the reason; or `different`, which must not be there (exit code 1). Takes two minutes on one core.
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from agent.lab import models, parity  # before transformers, as the lab's settings have to be
from agent.lab.errors import UserError

# isort: split
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, END = 320, 128, "<|endoftext|>"
NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in")
HOOKS = (*(f"hook_{name}" for name in NAMES), "mlp.hook_post", "attn.hook_z", "ln2.hook_normalized")
TOLERANCE = 1e-4

Settings = dict[str, Any]
BASE: Settings = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
}
GROUPED = BASE | {"num_key_value_heads": 2}
GPT2: Settings = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
OPT = BASE | {"ffn_dim": 64, "word_embed_proj_dim": 32}
GEMMA2 = GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 24}


def rope(**parameters: Any) -> Settings:
    return {"rope_parameters": {"rope_theta": 10_000.0} | parameters}


YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
LONGROPE = rope(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4)
VARIANTS: dict[str, tuple[str, Settings]] = {
    "GPT-2, without n_ctx": ("GPT2", GPT2),
    "GPT-2, n_inner, gelu": ("GPT2", GPT2 | {"n_inner": 48, "activation_function": "gelu"}),
    "GPT-2, attention scaled by layer": ("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "GPT-NeoX": ("GPTNeoX", BASE),
    "GPT-NeoX, sequential": ("GPTNeoX", BASE | {"use_parallel_residual": False}),
    "GPT-NeoX, rope_theta, half rotary": ("GPTNeoX", BASE | rope(rope_theta=500.0, partial_rotary_factor=0.5)),
    "GPT-NeoX, no attention biases": ("GPTNeoX", BASE | {"attention_bias": False}),
    "GPT-NeoX, tied embeddings": ("GPTNeoX", BASE | {"tie_word_embeddings": True}),
    "Llama, grouped keys": ("Llama", GROUPED),
    "Llama, attention biases": ("Llama", BASE | {"attention_bias": True}),
    "Llama, MLP biases": ("Llama", BASE | {"mlp_bias": True}),
    "Llama, head_dim": ("Llama", GROUPED | {"head_dim": 16}),
    "Llama, tied embeddings": ("Llama", BASE | {"tie_word_embeddings": True}),
    "Llama, rope_theta": ("Llama", BASE | rope(rope_theta=500_000.0)),
    "Llama, linear rope": ("Llama", BASE | rope(rope_type="linear", factor=4.0)),
    "Llama, dynamic rope": ("Llama", BASE | rope(rope_type="dynamic", factor=4.0)),
    "Llama, yarn rope": ("Llama", BASE | YARN),
    "Llama, llama3 rope": ("Llama", BASE | LLAMA3),
    "Mistral, window": ("Mistral", GROUPED | {"sliding_window": 16}),
    "Mistral, no window, head_dim": ("Mistral", GROUPED | {"sliding_window": None, "head_dim": 16}),
    "Mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4}),
    "Qwen2": ("Qwen2", GROUPED),
    "Qwen2, window": ("Qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    "Qwen2, yarn rope": ("Qwen2", GROUPED | YARN),
    "Qwen3": ("Qwen3", GROUPED | {"head_dim": 16}),
    "Qwen3, attention biases": ("Qwen3", GROUPED | {"head_dim": 16, "attention_bias": True}),
    "Gemma": ("Gemma", BASE | {"head_dim": 16, "num_key_value_heads": 1}),
    "Gemma 2, window": ("Gemma2", GEMMA2 | {"sliding_window": 8}),
    "Gemma 2, no caps": ("Gemma2", GEMMA2 | {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "Gemma 3, window": ("Gemma3Text", GROUPED | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7}),
    "Phi": ("Phi", BASE | {"partial_rotary_factor": 0.5}),
    "Phi-3": ("Phi3", GROUPED),
    "Phi-3, partial rotary": ("Phi3", BASE | rope(partial_rotary_factor=0.5)),
    "Phi-3, longrope": ("Phi3", BASE | {"original_max_position_embeddings": 64} | LONGROPE),
    "OLMo": ("Olmo", BASE),
    "OLMo, clipped": ("Olmo", BASE | {"clip_qkv": 0.1}),
    "OLMo 2": ("Olmo2", GROUPED),
    "OLMo 3, window": ("Olmo3", GROUPED | {"sliding_window": 8}),
    "OLMoE": ("Olmoe", BASE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "OPT": ("OPT", OPT),
    "OPT, projected embeddings": ("OPT", OPT | {"word_embed_proj_dim": 16}),
    "GPT-Neo, window": ("GPTNeo", BASE | {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "GPT-J": ("GPTJ", GPT2 | {"rotary_dim": 4}),
    "BLOOM": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon": ("Falcon", BASE),
    "StableLM": ("StableLm", BASE | {"num_key_value_heads": 4}),
    "SmolLM 3": ("SmolLM3", GROUPED),
    "Cohere": ("Cohere", GROUPED),
    "Granite": ("Granite", GROUPED | {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0}),
    "StarCoder 2": ("Starcoder2", GROUPED),
    "Nemotron": ("Nemotron", GROUPED),
    "GLM": ("Glm", GROUPED | {"head_dim": 8}),
    "EXAONE 4": ("Exaone4", GROUPED),
    "ERNIE 4.5": ("Ernie4_5", GROUPED),
    "Apertus": ("Apertus", GROUPED),
    "Arcee": ("Arcee", GROUPED),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes."""
    alphabet = enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)
    tokenizer = Tokenizer(BPE(vocab={END: 0} | {byte: number for number, byte in alphabet}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def save(variant: str, directory: Path) -> None:
    """Save a random model of a variant, whose biases and norms are not what training starts from."""
    architecture, settings = VARIANTS[variant]
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**({"bos_token_id": 0, "eos_token_id": 0} | settings))
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 0.1)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


@torch.no_grad()
def compare(directory: Path) -> tuple[str, str]:
    """Return how a directory's model loads, and the differences or the reason."""
    try:
        model = models.load(str(directory))
    except UserError as error:
        return "refused", str(error).replace(str(directory), "it")
    ids = torch.randint(1, 257, (3, 100), generator=torch.Generator().manual_seed(0))
    expected = AutoModelForCausalLM.from_pretrained(directory)(ids, output_hidden_states=True)
    layers = range(len(expected.hidden_states) - 1)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    output, cached = model.run_with_cache(ids, names_filter=names, prepend_bos=False)
    logits: Any = output
    residual = max(parity.difference(cached[name], expected.hidden_states[layer]) for layer, name in enumerate(names))
    differences = parity.difference(logits, expected.logits), residual
    unusable = [name for name in HOOKS if not usable(model, name, (0, len(layers) - 1))]
    text = "logits {:.0e}, residual stream {:.0e}".format(*differences)
    text += f"; not {', '.join(unusable)}" if unusable else ""
    return "equal" if max(differences) <= TOLERANCE else "different", text


def usable(model: Any, name: str, layers: tuple[int, int]) -> bool:
    try:
        for layer in layers:
            models.check_hook(model, f"blocks.{layer}.{name}")
    except UserError:
        return False
    return True


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    counts: dict[str, int] = {"equal": 0, "refused": 0, "different": 0}
    for variant in VARIANTS:
        if all(part in variant for part in sys.argv[1:]):
            with tempfile.TemporaryDirectory() as folder:
                save(variant, Path(folder))
                status, text = compare(Path(folder))
            counts[status] += 1
            print(f"{variant:36} {status:10} {text}", flush=True)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    sys.exit(counts["different"] > 0)


if __name__ == "__main__":
    main()
