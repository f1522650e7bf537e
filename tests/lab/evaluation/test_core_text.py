"""Core with the model's part cached: SAE-Bench's own figures at every hook."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import K
from transformer_lens import HookedTransformer, HookedTransformerConfig

from agent.lab import activations, models, tokens
from agent.lab.evaluation.bench import core
from agent.lab.evaluation.bench.core_text import AT_ONCE_BYTES, CoreText, TokenStore
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import bench_config

D_SAE = 64
HOOKS = {
    "blocks.0.hook_resid_pre": 32,
    "blocks.0.hook_attn_out": 32,
    "blocks.1.hook_resid_mid": 32,
    "blocks.0.mlp.hook_post": 128,
    "blocks.0.hook_resid_post": 32,
    "blocks.1.hook_resid_post": 32,
}


@pytest.fixture(scope="module")
def ids(evaluator: Evaluator) -> torch.Tensor:
    """Return two batches of windows."""
    return evaluator.held_out("dev", 2 * core.BATCH_WINDOWS).ids


def text_on(model: Any, ids: torch.Tensor, hook_name: str) -> CoreText:
    mean = activations.run_to_hook(model, ids, hook_name).flatten(0, 1).float().mean(0)
    return CoreText(model, ids, hook_name, mean)


def random_sae(text: CoreText, seed: int = 0) -> RandomSAE:
    context = models.context_size(text.model)
    return RandomSAE(bench_config("small", text.hook_name, len(text.mean), D_SAE, context), K, text.mean, seed)


def stock(
    sae: RandomSAE, model: Any, ids: torch.Tensor, batches: int = 2, special: set[int] | None = None
) -> dict[str, float]:
    """Return the figures of SAE-Bench core on the model itself."""
    from sae_bench.evals.core import main
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    config = CoreEvalConfig(
        batch_size_prompts=core.BATCH_WINDOWS,
        n_eval_reconstruction_batches=batches,
        n_eval_sparsity_variance_batches=batches,
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    ignored: Any = special or tokens.special_ids(model)
    metrics, _ = main.run_evals(sae, TokenStore(ids), model, config, {}, ignore_tokens=ignored)  # type: ignore[arg-type]
    return {name: value for group in metrics.values() for name, value in group.items()}


def ours(sae: RandomSAE, text: CoreText, out: Path) -> dict[str, Any]:
    scores, _ = core.run_core(sae, text, out, "sae")
    figures = scores.model_dump()
    return figures | {"mse": figures["mse_sae_bench"]}


def assert_same(figures: dict[str, Any], expected: dict[str, float]) -> None:
    shared = set(figures) & set(expected)
    assert len(shared) >= 13
    for name in shared:
        assert figures[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("hook_name", HOOKS)
def test_core_equals_sae_bench_at_every_hook(evaluator: Evaluator, ids: torch.Tensor, hook_name: str, tmp_path: Path):
    text = text_on(evaluator.model, ids, hook_name)
    assert len(text.mean) == HOOKS[hook_name]
    for seed in (0, 1):  # the cache of the first is right for the second
        sae = random_sae(text, seed)
        assert_same(ours(sae, text, tmp_path), stock(sae, evaluator.model, ids))


def test_core_of_a_model_in_bfloat16_is_computed_in_float32(
    evaluator: Evaluator, small_model: Path, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The layers are in bfloat16. What is computed of activations and logits is not: SAE-Bench's own is in part."""
    text = text_on(evaluator.model, ids, "blocks.0.hook_resid_post")
    sae, exact = random_sae(text), ours(random_sae(text), text, tmp_path / "float32")
    monkeypatch.setenv("SAE_AGENT_DTYPE", "bfloat16")
    low = models.load(str(small_model))
    text = text_on(low, ids, "blocks.0.hook_resid_post")
    assert text.hidden(torch.arange(2)).dtype == torch.bfloat16
    figures, theirs = ours(sae, text, tmp_path), stock(sae, low, ids)
    for name in ("ce_loss_with_sae", "ce_loss_without_sae", "ce_loss_with_ablation", "ce_loss_score", "kl_div_score"):
        assert figures[name] == pytest.approx(theirs[name], rel=1e-6), name
        assert figures[name] == pytest.approx(exact[name], rel=2e-3), name
    for name in ("explained_variance_centered", "mse", "cossim", "l2_ratio", "l0", "l1"):
        assert figures[name] == pytest.approx(exact[name], rel=2e-3), name
    steps = torch.tensor([batch.fixed["ce_loss_without_sae"].mean().item() for batch in itertools.chain(*text.batches)])
    assert not torch.equal(steps, steps.bfloat16().float())


def test_logits_too_large_to_keep_are_computed_again(evaluator: Evaluator, ids: torch.Tensor, tmp_path: Path):
    text = text_on(evaluator.model, ids, "blocks.0.hook_resid_post")
    assert text.keeps_logits
    kept = ours(random_sae(text), text, tmp_path)
    text.batches = [[replace(part, logits=None) for part in batch] for batch in text.batches]
    assert ours(random_sae(text), text, tmp_path) == kept


def test_a_later_sae_runs_no_layer_below_the_hook(evaluator: Evaluator, ids: torch.Tensor, tmp_path: Path):
    text, run = text_on(evaluator.model, ids, "blocks.0.hook_resid_post"), []
    blocks = evaluator.model.blocks
    handles = [block.mlp.register_forward_hook(lambda *_, i=i: run.append(i)) for i, block in enumerate(blocks)]
    ours(random_sae(text), text, tmp_path)
    for handle in handles:
        handle.remove()
    assert run == [1, 1]  # once for each batch


def test_usage_counted_during_core_is_that_of_the_activations(evaluator: Evaluator, ids: torch.Tensor, tmp_path: Path):
    text = text_on(evaluator.model, ids, "blocks.1.hook_resid_post")
    sae = random_sae(text)
    _, usage = core.run_core(sae, text, tmp_path, "sae")
    x = text.hidden(torch.arange(len(text.ids)))[text.scored]
    latents = sae.encode(x)
    assert usage.tokens == len(x)
    assert usage.squared_error == pytest.approx((x - sae.decode(latents)).double().pow(2).sum().item(), rel=1e-6)
    assert torch.equal(usage.fired, (latents != 0).sum(0).double())


@pytest.mark.slow
def test_a_large_vocabulary_is_scored_in_parts(evaluator: Evaluator, tmp_path: Path):
    """65,536 ids: the logits of a whole batch would take twice what may be in memory at once."""
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=64, d_head=4, n_heads=2, d_vocab=2**16, act_fn="gelu", seed=0, device="cpu"
    )
    model = HookedTransformer(config)
    model.tokenizer = evaluator.model.tokenizer
    ids = torch.randint(2**16, (core.BATCH_WINDOWS, 64), generator=torch.Generator().manual_seed(0))
    text, bytes_of_logits = text_on(model, ids, "blocks.0.hook_resid_post"), []
    text.batches = [[replace(part, logits=None) for part in batch] for batch in text.batches]  # as if too large to keep
    handle = model.unembed.register_forward_hook(lambda *call: bytes_of_logits.append(call[-1].nbytes))
    figures = ours(random_sae(text), text, tmp_path)
    handle.remove()
    assert len(bytes_of_logits) == 4  # the model's own and those with the SAE, each in two parts
    assert max(bytes_of_logits) <= AT_ONCE_BYTES
    assert_same(figures, stock(random_sae(text), model, ids, batches=1))


def test_tokens_that_are_left_out_keep_their_activations_and_are_not_scored(
    evaluator: Evaluator, ids: torch.Tensor, tmp_path: Path
):
    """As core does it with special tokens: the figures are those of a text in which the tokens are special ones."""
    hook, common = "blocks.0.hook_resid_post", int(ids[:, 1:].flatten().mode().values)
    whole = text_on(evaluator.model, ids, hook)
    scored = whole.scored & (ids != common)
    assert 0 < scored.sum() < whole.scored.sum()
    text = CoreText(evaluator.model, ids, hook, whole.mean, scored)
    expected = stock(random_sae(whole), evaluator.model, ids, special={*tokens.special_ids(evaluator.model), common})
    assert_same(ours(random_sae(whole), text, tmp_path), expected)
