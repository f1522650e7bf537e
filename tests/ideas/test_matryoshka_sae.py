"""The template of matryoshka_sae: each step of its plan trains, and each mechanism works as described."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import D_SAE, K, of_idea, stream, train

from agent import ideas
from agent.lab import checkpoint, results

IDEA = "matryoshka_sae"
PLAN = {step.name: step for step in ideas.load(IDEA).plan}
NOTHING_DEAD = torch.empty(0, dtype=torch.long)
ENDS = [16, 48, 128]  # an eighth, three eighths and all of D_SAE


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    return of_idea(tmp_path_factory.mktemp("steps"), small_model, IDEA)


@pytest.fixture(scope="module")
def trained(modules: dict[str, Any], small_model: Path) -> dict[str, Any]:
    """The SAEs of two steps, one after its whole training, one after half of it."""
    steps = {"eighths": None, "random_prefixes": 150}
    return {name: train(modules[name], stream(small_model), count) for name, count in steps.items()}


@pytest.fixture
def batch(small_model: Path) -> torch.Tensor:
    return next(iter(stream(small_model)))


def build(module: Any, model: Path) -> Any:
    torch.manual_seed(0)
    data = stream(model)
    return module.SAE(data.d_in, D_SAE, data.mean)


@pytest.mark.parametrize("name", PLAN)
def test_each_step_trains_and_leaves_its_prefixes_in_the_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    ends = [round(share * D_SAE) for share in modules[name].PREFIXES]
    assert list(loaded.header.groups.values()) == list(zip([0, *ends[:-1]], ends, strict=True))
    assert ends[-1] == D_SAE
    rows = results.read_metrics(tmp_path)
    first, last = rows[0].mse, rows[-1].mse
    assert first
    assert last
    assert last < first
    shares = [share for share in rows[-1].own.values() if share is not None]
    assert list(rows[-1].own) == [f"{group}_l0_share" for group in loaded.header.groups]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_switched_off_it_equals_the_baseline_exactly(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    for name in ("baseline", "off"):
        (tmp_path / name).mkdir()
        modules[name].main(tmp_path / name)
    contents = {checkpoint.content_hash(tmp_path / name / "checkpoint") for name in ("baseline", "off")}
    assert len(contents) == 1
    losses = [[row.loss for row in results.read_metrics(tmp_path / name)] for name in ("baseline", "off")]
    assert losses[0] == losses[1]


# Nested prefixes


def test_the_error_of_a_prefix_is_that_of_its_latents_alone(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    sae = build(modules["eighths"], small_model)
    latents = sae.select(sae.pre_activations(batch)).to_dense()
    errors, residual = modules["eighths"].prefix_errors(sae, batch, latents, ENDS)
    for error, end in zip(errors, ENDS, strict=True):
        alone = torch.where(torch.arange(D_SAE) < end, latents, 0.0)
        torch.testing.assert_close(error, (batch - sae.decode(alone)).pow(2).mean())
    torch.testing.assert_close(residual, batch - sae.decode(latents))


def test_only_the_latents_of_a_prefix_learn_from_its_error(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    sae = build(modules["eighths"], small_model)
    for i, end in enumerate(ENDS):
        latents = sae.select(sae.pre_activations(batch))
        sae.zero_grad()
        modules["eighths"].prefix_errors(sae, batch, latents, ENDS)[0][i].backward()
        assert sae.W_dec.grad[:end].any(dim=1).sum() > 0.9 * end
        assert not sae.W_dec.grad[end:].any()
        assert not sae.W_enc.grad[:, end:].any()


@torch.no_grad()
def explained_alone(sae: Any, x: torch.Tensor, chosen: torch.Tensor) -> float:
    """Return the explained variance of the chosen latents alone."""
    latents = sae.encode(x)
    left = x - sae.b_dec - latents[:, chosen] @ sae.W_dec[chosen]
    return 1 - (left.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


@pytest.mark.parametrize("name", ["eighths", "random_prefixes"])
def test_training_makes_the_first_latents_reconstruct_alone(trained: dict[str, Any], batch: torch.Tensor, name: str):
    drawn = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))[: ENDS[0]]
    own = explained_alone(trained[name], batch, torch.arange(ENDS[0]))
    assert own > explained_alone(trained[name], batch, drawn) + 0.2


@torch.no_grad()
def test_inference_keeps_the_sparsity_of_training(trained: dict[str, Any], small_model: Path):
    active = torch.cat([trained["eighths"].encode(x) > 0 for x in stream(small_model)]).sum(1).float()
    assert active.mean().item() == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize(
    ("prefixes", "why"),
    [
        ([0.5, 0.25, 1.0], "prefixes that do not grow: \\[64, 32, 128\\]"),
        ([0.001, 1.0], "prefixes that do not grow: \\[0, 128\\]"),
        ([0.25, 0.5], "the last of PREFIXES has 64 of 128 latents: make it 1.0"),
    ],
)
def test_invalid_prefixes_are_refused(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, prefixes: list[float], why: str
):
    monkeypatch.setattr(modules["eighths"], "PREFIXES", prefixes)  # the experiment's constant
    with pytest.raises(AssertionError, match=why):
        modules["eighths"].prefix_ends()


# Weights of the prefixes


def test_prefixes_have_equal_weights_by_default(modules: dict[str, Any]):
    assert modules["eighths"].prefix_weights(ENDS) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(("power", "weights"), [(1.0, [1 / 12, 3 / 12, 8 / 12]), (-1.0, [24 / 35, 8 / 35, 3 / 35])])
def test_the_weights_favour_the_whole_or_the_small(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, power: float, weights: list[float]
):
    monkeypatch.setattr(modules["eighths"], "PREFIX_WEIGHT_POWER", power)  # the experiment's constant
    assert modules["eighths"].prefix_weights(ENDS) == pytest.approx(weights)


def test_the_loss_is_the_weighted_mean_of_the_prefixes_errors(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    for name in ("eighths", "favour_whole"):
        module = modules[name]
        sae = build(module, small_model)
        loss, latents, mse = module.compute_loss(sae, batch, NOTHING_DEAD)
        errors, _ = module.prefix_errors(sae, batch, latents, ENDS)
        assert loss.item() == pytest.approx(sum(map(float.__mul__, module.prefix_weights(ENDS), errors.tolist())))
        assert mse.item() == pytest.approx(errors[-1].item())


def test_the_plan_tries_unequal_weights(modules: dict[str, Any]):
    weights = modules["favour_whole"].prefix_weights(ENDS)
    assert weights == sorted(weights)
    assert weights[-1] > 1.5 * weights[0]


# Random prefixes


def test_random_prefixes_change_and_include_the_whole(modules: dict[str, Any]):
    module = modules["random_prefixes"]
    torch.manual_seed(0)
    drawn = [module.random_prefix_ends() for _ in range(20)]
    assert len({tuple(ends) for ends in drawn}) == 20
    for ends in drawn:
        assert ends == sorted(set(ends))
        assert 1 <= ends[0] < ends[-1] == D_SAE
        assert len(ends) <= module.RANDOM_PREFIXES + 1


def test_short_prefixes_are_drawn_more_often_than_long_ones(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Half of the lengths are at most a quarter of the latents."""
    module = modules["random_prefixes"]
    monkeypatch.setattr(module, "RANDOM_PREFIXES", 1)  # the experiment's constant
    torch.manual_seed(0)
    lengths = torch.tensor([module.random_prefix_ends()[0] for _ in range(4000)])
    assert (lengths <= D_SAE / 4).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (lengths <= D_SAE / 16).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_loss_of_a_step_depends_on_its_random_prefixes(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    for name, draws in (("random_prefixes", 5), ("eighths", 1)):
        sae = build(modules[name], small_model)
        losses = {modules[name].compute_loss(sae, batch, NOTHING_DEAD)[0].item() for _ in range(5)}
        assert len(losses) == draws
