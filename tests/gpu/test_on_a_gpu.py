"""What only a GPU can show, beside a CPU's figures. Where there is none, a CPU stands in for it where it can.

Tolerances: float32 on a GPU differs from a CPU's in the order of sums; TF32 has 10 bits of mantissa, bfloat16 7.
"""

import copy
import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, HOOK, K, experiment, load, run, save, stream, train
from torch import Tensor, nn

from agent.lab import activations, checkpoint, models, precision, results
from agent.lab.activations import Manifest
from agent.lab.evaluation.bench import core
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.sparse import SparseLatents, affine, keep, kth_largest

D_IN = 32
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ON_GPU = pytest.param("cuda", marks=NEEDS_GPU)
FIRED = 1e-4  # share of latents that may lie on either side of a cut-off
MIB = 2**20


@pytest.fixture(params=["cpu", ON_GPU])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the lab, in float32 unless the test says otherwise."""
    monkeypatch.setenv("SAE_AGENT_DEVICE", request.param)
    return request.param


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), ON_GPU])
def device_of_a_model(request: pytest.FixtureRequest) -> str:
    """The device of a language model, which takes seconds to make."""
    return request.param


@pytest.fixture(autouse=True)
def _exact() -> Any:
    precision.allow_tf32(False)
    yield
    precision.allow_tf32(False)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The shipped baseline at a test's size."""
    return load(experiment(tmp_path_factory.mktemp("baseline"), "tiny-lm"))


def rows(count: int = BATCH, seed: int = 0) -> Tensor:
    """Sums of a few of many features `[count, D_IN]`, of norm about sqrt(D_IN)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(4 * D_IN, D_IN, generator=torch.Generator().manual_seed(99))
    x = torch.rand(count, 4 * D_IN, generator=generator).pow(32) @ features
    return x * D_IN**0.5 / x.norm(dim=1).mean()


def trained(baseline: ModuleType, device: str, steps: int = 30) -> tuple[Any, list[float]]:
    """The baseline's SAE after some steps as main() takes them, with dead latents from the start, and the losses."""
    torch.manual_seed(0)
    sae = baseline.SAE(D_IN, D_SAE, rows().mean(0)).to(device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3, fused=True)
    dead, losses = torch.arange(0, D_SAE, 5, device=device), []
    for step in range(steps):
        loss, _, _ = baseline.compute_loss(sae, rows(seed=step).to(device), dead)
        loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        baseline.constrain(sae)
        losses.append(loss.item())
    return sae, losses


def relative_error(values: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of what is exact."""
    exact = exact.detach().double().cpu()
    return ((values.detach().double().cpu() - exact).norm() / exact.norm()).item()


# A step


@pytest.mark.parametrize("k", [1, 7, 4000])
def test_the_plain_way_on_a_gpu_equals_the_quick_way_on_a_cpu(device: str, k: int):
    torch.manual_seed(0)
    x, W, b = rows(64), torch.randn(D_IN, D_SAE) / D_IN**0.5, torch.randn(D_SAE) / 10
    found: dict[str, list[Tensor]] = {}
    for where in ("cpu", device):
        leaves = [part.detach().clone().to(where).requires_grad_() for part in (x, W, b)]
        pre = affine(*leaves).relu()
        latents = keep(pre, cut := kth_largest(pre, k))
        dense = latents.to_dense() if isinstance(latents, SparseLatents) else latents
        (latents @ leaves[1].T).pow(2).sum().backward()
        found[where] = [cut, dense, *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    for ours, exact in zip(found[device], found["cpu"], strict=True):
        assert relative_error(ours, exact) < 1e-4


def test_a_training_on_a_gpu_goes_as_one_on_a_cpu(device: str, baseline: ModuleType):
    _, exact = trained(baseline, "cpu")
    _, losses = trained(baseline, device)
    assert losses[0] == pytest.approx(exact[0], rel=1e-5)
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses[-1] < losses[0] / 2
    precision.allow_tf32(True)
    assert trained(baseline, device)[1] == pytest.approx(exact, rel=0.05)


def test_the_same_seed_gives_the_same_training_twice_to_the_last_digit(device: str, baseline: ModuleType):
    precision.allow_tf32(True)
    once, twice = (trained(baseline, device)[0].state_dict() for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@NEEDS_GPU
def test_only_where_tf32_is_allowed_are_products_rounded_to_it():
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    exact, errors = a.double() @ b.double(), []
    for allowed in (False, True, False):
        precision.allow_tf32(allowed)
        errors.append(relative_error(a.cuda() @ b.cuda(), exact))
    assert errors[0] == errors[2] < 1e-5 < errors[1] < 1e-2


@NEEDS_GPU
def test_a_step_does_not_wait_for_the_gpu(baseline: ModuleType):
    """torch raises for each operation of a step that makes the host wait."""
    sae = baseline.SAE(D_IN, D_SAE, rows().mean(0)).to("cuda")
    optimizer = torch.optim.Adam(sae.parameters(), fused=True)
    x, dead = rows().cuda(), torch.arange(5, device="cuda")
    for mode in ("default", "error"):  # the first step makes what the others use
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, latents, _ = baseline.compute_loss(sae, x, dead)
            loss.backward()
            nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            baseline.constrain(sae)
            latents.detach().bool().count_nonzero()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# A checkpoint


def test_a_checkpoint_of_a_gpu_is_the_same_sae_on_either_device(device: str, baseline: ModuleType, tmp_path: Path):
    sae, _ = trained(baseline, device)
    exact = copy.deepcopy(sae).cpu().encode(rows(seed=50))
    saved = save(tmp_path / "run", sae, manifest(), W_enc=sae.W_enc, b_enc=sae.b_enc - sae.b_dec @ sae.W_enc)
    for where in ("cpu", device):
        loaded = checkpoint.load(saved / "checkpoint", where)
        checkpoint.check_behaviour(loaded, rows(seed=51).to(where))
        latents = loaded.encode(rows(seed=50).to(where))
        assert latents.device.type == where
        assert ((latents.cpu() > 0) != (exact > 0)).double().mean() < FIRED
        assert relative_error(latents, exact) < 1e-2
        assert relative_error(loaded.decode(latents), sae.decode(exact.to(device))) < 1e-2
    again = save(tmp_path / "again", sae, manifest(), W_enc=sae.W_enc, b_enc=sae.b_enc - sae.b_dec @ sae.W_enc)
    assert checkpoint.content_hash(again / "checkpoint") == checkpoint.content_hash(saved / "checkpoint")


def manifest() -> Manifest:
    return Manifest(
        format=activations.FORMAT,
        model="tiny-lm",
        hook_name=HOOK,
        d_in=D_IN,
        rows=BATCH,
        scale=1.0,
        stored_scale=1.0,
        mean=rows().mean(0).tolist(),
        shards=[],
    )


# A language model


@NEEDS_GPU
def test_a_gpu_is_used_where_there_is_one_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SAE_AGENT_DEVICE", raising=False)
    assert models.device_config() == models.DeviceConfig("cuda", torch.bfloat16)
    monkeypatch.setenv("SAE_AGENT_DEVICE", "cuda:0")
    assert models.device_config().device == "cuda:0"


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_a_harvest_is_that_of_a_cpu(
    device_of_a_model: str, dtype: str, error: float, small_model: Path, monkeypatch: pytest.MonkeyPatch
):
    exact, stored = (
        on(where, monkeypatch, lambda: stream(small_model), each)
        for where, each in (("cpu", "float32"), (device_of_a_model, dtype))
    )
    assert stored.manifest.rows == exact.manifest.rows
    assert stored.manifest.scale == pytest.approx(exact.manifest.scale, rel=error)
    assert relative_error(torch.tensor(stored.manifest.mean), torch.tensor(exact.manifest.mean)) < 5 * error
    x, expected = next(iter(stored)), next(iter(exact))
    assert x.device.type == device_of_a_model
    assert relative_error(x, expected) < 5 * error  # the same rows, in the same order


def test_core_in_bfloat16_is_near_that_of_a_cpu(
    device_of_a_model: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = load(experiment(tmp_path, small_model))
    data = on("cpu", monkeypatch, lambda: stream(small_model), "float32")
    sae = on("cpu", monkeypatch, lambda: train(module, data), "float32")
    saved = save(tmp_path / "run", sae, data.manifest, W_enc=sae.W_enc, b_enc=sae.b_enc - sae.b_dec @ sae.W_enc)

    def scored() -> Any:
        evaluator = Evaluator(str(small_model), HOOK)
        held_out = evaluator.held_out("dev", 2 * core.BATCH_WINDOWS)
        loaded = evaluator.checkpoint_sae(evaluator.load_checkpoint(saved, held_out), held_out)
        return evaluator.score_core(loaded, held_out, tmp_path / models.device_config().device, "sae")[0]

    exact = on("cpu", monkeypatch, scored, "float32")
    figures = on(device_of_a_model, monkeypatch, scored, "bfloat16")
    assert figures.l0 == pytest.approx(exact.l0, rel=0.02)
    assert figures.explained_variance_centered == pytest.approx(exact.explained_variance_centered, abs=0.01)
    assert figures.ce_loss_score == pytest.approx(exact.ce_loss_score, abs=0.03)
    assert figures.ce_loss_without_sae == pytest.approx(exact.ce_loss_without_sae, abs=0.02)


def on(device: str, patch: pytest.MonkeyPatch, work: Callable[[], Any], dtype: str) -> Any:
    """What a work gives on a device, in a dtype."""
    patch.setenv("SAE_AGENT_DEVICE", device)
    patch.setenv("SAE_AGENT_DTYPE", dtype)
    return work()


@NEEDS_GPU
def test_rows_that_lie_on_a_gpu_leave_it_with_their_stream(small_model: Path, monkeypatch: pytest.MonkeyPatch):
    on("cuda", monkeypatch, lambda: stream(small_model), "bfloat16")  # the model makes them, and is gone
    gc.collect()
    before = torch.cuda.memory_allocated()
    data = stream(small_model)
    assert sum(len(x) for x in data) == data.total
    assert torch.cuda.memory_allocated() > before
    del data
    assert torch.cuda.memory_allocated() == before


@NEEDS_GPU
def test_a_run_by_hand_is_trained_and_scored_on_the_gpu_and_leaves_it_free(small_model: Path, tmp_path: Path):
    script = experiment(tmp_path, small_model)
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    ended = run(script, f"--out_dir={tmp_path / 'run_0'}", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert ended.returncode == 0, ended.stderr
    info = results.read(tmp_path / "run_0")
    assert info.verdict.ok, info.verdict
    assert info.core is not None
    assert info.core.l0 == pytest.approx(K, rel=0.2)
    assert info.environment["device"] == torch.cuda.get_device_name()
    assert info.environment["dtype"] == "bfloat16"
    assert before - torch.cuda.mem_get_info()[0] < 64 * MIB
