"""A model that is loaded is the user's: what it computes, and what its hooks hold, is what transformers computes."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_lab import CONTEXT, HOOK
from transformers import AutoModelForCausalLM

from agent.lab import activations, models, parity
from agent.lab.errors import UserError

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "model_parity.py"
table = SimpleNamespace(**runpy.run_path(str(BENCHMARK)))
QUICK = (
    "GPT-2, without n_ctx",
    "GPT-NeoX, no attention biases",
    "Llama, MLP biases",
    "Llama, yarn rope",
    "Qwen2, window",
    "Gemma 2, window",
    "Phi-3, partial rotary",
    "OLMo 2",
)


@pytest.fixture(scope="module")
def loaded(small_model: Path) -> Any:
    return models.load(str(small_model))


@pytest.fixture(scope="module")
def reference(small_model: Path) -> parity.Reference:
    hf_model = AutoModelForCausalLM.from_pretrained(small_model)
    tokenizer = models.load(str(small_model)).tokenizer
    return parity.run_transformers(hf_model, parity.sample_ids(tokenizer, CONTEXT))


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.parametrize("variant", QUICK)
def test_a_variant_is_equal_to_transformers(variant: str, tmp_path: Path):
    table.save(variant, tmp_path)
    status, text = table.compare(tmp_path)
    assert status == "equal", text


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.slow
@pytest.mark.parametrize("variant", [variant for variant in table.VARIANTS if variant not in QUICK])
def test_every_other_variant_is_equal_or_refused(variant: str, tmp_path: Path):
    table.save(variant, tmp_path)
    status, text = table.compare(tmp_path)
    assert status == ("refused" if variant == "Cohere" else "equal"), text


def test_a_model_that_computes_something_else_is_refused(small_model: Path, reference: parity.Reference):
    model: Any = models.load(str(small_model))
    parity.check_model(model, reference, "mine", torch.float32)
    model.blocks[1].ln1.original_component.weight *= 1.01
    with pytest.raises(UserError, match=r"mine would be studied as another model: .* by up to \S+, .*unembedding"):
        parity.check_model(model, reference, "mine", torch.float32)
    model.blocks[0].ln1.original_component.weight *= 1.01
    with pytest.raises(UserError, match="from the input of layer 1 on"):
        parity.check_model(model, reference, "mine", torch.float32)


def test_the_sample_is_a_few_hundred_tokens(reference: parity.Reference, loaded: Any):
    assert reference.ids.shape == (2, CONTEXT)
    assert parity.sample_ids(loaded.tokenizer, 1024).shape == (2, 128)


@pytest.mark.parametrize("hook", [f"blocks.1.{name}" for name in table.HOOKS])
def test_a_sequential_model_has_every_hook(loaded: Any, hook: str):
    models.check_hook(loaded, hook)


def test_the_hook_of_attention_is_flattened(loaded: Any):
    width = loaded.cfg.n_heads * loaded.cfg.d_head
    assert models.hook_width(loaded, "blocks.0.attn.hook_z") == width
    ids = torch.ones(2, 5, dtype=torch.long)
    assert activations.run_to_hook(loaded, ids, "blocks.0.attn.hook_z").shape == (2, 5, width)


@pytest.mark.usefixtures("cache_dir")
def test_a_hook_whose_replacement_would_not_be_read_is_refused(tmp_path: Path):
    table.save("Phi", tmp_path)  # its MLP reads what attention reads
    model = models.load(str(tmp_path))
    with pytest.raises(UserError, match=r"no hook 'blocks\.0\.hook_resid_mid'"):
        models.check_hook(model, "blocks.0.hook_resid_mid")
    with pytest.raises(UserError, match=r"blocks\.0\.hook_mlp_in cannot be studied .* use one like"):
        models.check_hook(model, "blocks.0.hook_mlp_in")


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_run_resumed_at_a_layer_ends_as_the_whole_run(loaded: Any, reference: parity.Reference, layer: int):
    name = f"blocks.{layer}.hook_resid_pre" if layer < 2 else HOOK
    logits, cached = loaded.run_with_cache(reference.ids, names_filter=[name])
    run = []
    with loaded.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: run.append(hook.name))]):  # noqa: ARG005
        resumed, loss = loaded(cached[name], start_at_layer=layer, tokens=reference.ids, return_type="both")
    torch.testing.assert_close(resumed, logits)
    torch.testing.assert_close(loss, loaded(reference.ids, return_type="loss"))
    assert len(run) == (layer == 0), "blocks below the layer are not run"
    torch.testing.assert_close(loaded(reference.ids), logits)  # the model is as it was


@torch.no_grad()
def test_reading_the_last_layer_needs_no_logits(loaded: Any, reference: parity.Reference):
    unembedded = []
    with loaded.hooks(fwd_hooks=[("unembed.hook_in", lambda x, hook: unembedded.append(x))]):  # noqa: ARG005
        last = activations.run_to_hook(loaded, reference.ids, "blocks.1.hook_resid_post")
        assert not unembedded
        loaded(reference.ids)
    assert len(unembedded) == 1
    assert last.shape == (*reference.ids.shape, loaded.cfg.d_model)
