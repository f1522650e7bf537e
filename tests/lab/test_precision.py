"""A language model in bfloat16: what is in float32 nevertheless, and what is kept apart for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import CONTEXT, D_SAE, HOOK, TOKENS, K, experiment, load

from agent.ideas import Fixed
from agent.lab import activations, models, precision
from agent.lab.activations import HarvestKey
from agent.lab.evaluation.bench import probing
from agent.lab.evaluation.evaluator import artefact_folder
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import bench_config
from agent.lab.training import TrainingGuard, finish

IDS = torch.randint(1, 500, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
DATASET = "42_temp_sense"


@pytest.fixture(scope="module")
def low(small_model: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_DTYPE", "bfloat16")
        return models.load(str(small_model))


def test_the_layers_are_in_bfloat16_and_the_logits_are_not(small_model: Path, low: Any):
    exact = models.load(str(small_model))
    with torch.no_grad():
        logits, cached = low.run_with_cache(IDS, names_filter=[HOOK], prepend_bos=False)
        expected, loss = exact(IDS, return_type="both", prepend_bos=False)
    assert cached[HOOK].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.1)
    assert low.loss_fn(logits, IDS).item() == pytest.approx(loss.item(), rel=1e-3)


def test_the_unembedding_is_that_of_float32_on_the_same_residual_stream(low: Any):
    """A product of rounded weights, in float32 from the residual stream on."""
    with torch.no_grad():
        logits, cached = low.run_with_cache(IDS, names_filter=[f"blocks.{low.cfg.n_layers - 1}.hook_resid_post"])
        (residual,) = (activation.double() for activation in cached.values())
        residual = residual - residual.mean(-1, keepdim=True)
        normed = residual / (residual.pow(2).mean(-1, keepdim=True) + low.cfg.eps).sqrt()
        normed = normed * low.ln_final.w.double() + low.ln_final.b.double()
        expected = normed @ low.unembed.W_U.double() + low.unembed.b_U.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert {low.blocks[0].ln1.w.dtype, low.blocks[1].mlp.W_in.dtype, low.embed.W_E.dtype} == {torch.bfloat16}


def test_probing_reads_float32_from_a_model_in_bfloat16(low: Any, tmp_path: Path):
    """sae_probes hands what it reads to numpy, which has no bfloat16."""
    made = probing.prepare_model(low, "small", HOOK, tmp_path / "probing", (DATASET,))
    (stored,) = made.activations.rglob(f"{DATASET}_*.pt")
    assert torch.load(stored).dtype == torch.float32
    d_in = low.cfg.d_model
    sae = RandomSAE(bench_config("small", HOOK, d_in, D_SAE, CONTEXT), K, torch.zeros(d_in))
    scores, own = probing.run_probing(sae, made, tmp_path / "out", "sae", (DATASET,))
    assert 0.4 < scores[DATASET][5]["test_auc"] <= 1
    assert 0.4 < own[DATASET]["auc"] <= 1


def test_what_is_cached_is_kept_apart_by_dtype_where_a_language_model_is_run(monkeypatch: pytest.MonkeyPatch):
    def folders(model: str) -> list[str]:
        key = HarvestKey(model, "0123", HOOK, TOKENS)
        return [key.folder().name, artefact_folder(model, "0123", HOOK).name]

    exact, world = folders("tiny-lm"), HarvestKey("synth2k", "0123", "activations", TOKENS).folder()
    assert exact[1] == "tiny-lm-0123-blocks.1.hook-resid-post-cpu-v1"
    monkeypatch.setenv("SAE_AGENT_DTYPE", "bfloat16")
    assert not set(exact) & set(folders("tiny-lm"))
    assert HarvestKey("synth2k", "0123", "activations", TOKENS).folder() == world


def test_a_world_is_in_float32_whatever_its_idea_fixes():
    assert Fixed.model_validate({"model": "synth2k", "dtype": "bfloat16"}).dtype == "float32"
    fixed = Fixed.model_validate({"dtype": "bfloat16"})
    assert (fixed.with_changes(model="synth2k").dtype, fixed.model_in_words) == ("float32", "tiny-lm in bfloat16")
    assert Fixed(model="synth2k").with_changes(model="tiny-lm").dtype is None


# TF32


def test_tf32_is_allowed_in_the_steps_of_a_training_on_a_gpu_alone(small_model: Path, harvest: Any, tmp_path: Path):
    sae_module = load(experiment(tmp_path, small_model))
    data = activations.stored_stream(*harvest, 1000, 500, seed=0)
    sae = sae_module.SAE(data.d_in, D_SAE, data.mean)
    assert not torch.backends.cuda.matmul.allow_tf32
    data.device = torch.device("cuda")  # where its rows would be
    guard = TrainingGuard(tmp_path, sae, data, model=str(small_model), hook_name=HOOK, settings={})
    assert torch.backends.cuda.matmul.allow_tf32
    models.load(str(small_model))  # for a harvest, an evaluation or a check
    assert not torch.backends.cuda.matmul.allow_tf32
    precision.allow_tf32(True)
    numbers = dict.fromkeys(("loss", "l0", "mse", "alive_fraction", "grad_norm"), torch.tensor(1.0))
    guard.step(tokens=500, learning_rate=1e-3, **numbers)
    sae.requires_grad_(False).b_dec += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_DRIVEN", "1")
        finish(guard, sae.encode, W_dec=sae.W_dec, b_dec=sae.b_dec)
    assert not torch.backends.cuda.matmul.allow_tf32
