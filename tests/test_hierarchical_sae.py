"""The template of hierarchical_sae: each step of its plan trains, and its mechanisms do what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, HOOK, TOKENS, K, experiment, load, train

from agent import ideas
from agent.ideas import Step
from agent.lab import activations, checkpoint, results

PLAN = ideas.load("hierarchical_sae").plan
NOTHING_DEAD = torch.empty(0, dtype=torch.long)


def step_named(name: str) -> Step:
    return next(step for step in PLAN if step.name == name)


def stream(model: Path, size: int = TOKENS, batch: int = BATCH) -> activations.Stream:
    folder, manifest = activations.ensure(str(model), HOOK, TOKENS)
    return activations.Stream(folder, manifest, size, batch, seed=0)


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    """Each step of the plan as a module."""
    directory = tmp_path_factory.mktemp("steps")
    return {step.name: load(experiment(directory / step.name, small_model, step)) for step in PLAN}


@pytest.fixture
def batch(small_model: Path) -> torch.Tensor:
    return next(iter(stream(small_model)))


def build(module: Any, model: Path) -> Any:
    torch.manual_seed(0)
    data = stream(model)
    return module.TieredSAE(data.d_in, D_SAE, data.mean)


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_each_step_trains_and_leaves_a_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    assert list(loaded.header.groups) == ["tier_0", "tier_1", "tier_2"]
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    rows = results.read_metrics(tmp_path)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_tiers_are_disjoint_whole_and_of_their_shares(modules: dict[str, Any], small_model: Path, name: str):
    module = modules[name]
    tiers = build(module, small_model).tiers
    assert [start for start, _ in tiers] == [0, *(end for _, end in tiers[:-1])]
    assert tiers[-1][1] == D_SAE
    for (start, end), share in zip(tiers, module.TIER_FRACTIONS, strict=True):
        assert abs((end - start) - share * D_SAE) <= 1


def test_decoding_weighs_each_tier(modules: dict[str, Any], small_model: Path):
    """What the module decodes in training is one affine map with the weights folded into its rows."""
    sae = build(modules["learned_weights"], small_model)
    with torch.no_grad():
        sae.tier_logits.copy_(torch.tensor([1.0, 0.0, -1.0]))
    latents = torch.rand(5, D_SAE)
    expected = sae.b_dec.expand(5, -1)
    for weight, (start, end) in zip(sae.tier_weights(), sae.tiers, strict=True):
        expected = expected + weight * (latents[:, start:end] @ sae.W_dec[start:end])
    torch.testing.assert_close(sae.decode(latents), expected)


def test_learned_tier_weights_reach_the_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows have norm 1 in training, so in the checkpoint their norms are the tiers' weights."""
    module = modules["learned_weights"]
    monkeypatch.setattr(module, "LEARNING_RATE", 2e-2)  # the experiment's constant, to move the weights in few steps
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    module.main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    norms = loaded.W_dec.norm(dim=1)
    weights = torch.stack([norms[start:end].mean() for start, end in loaded.header.groups.values()])
    for weight, (start, end) in zip(weights, loaded.header.groups.values(), strict=True):
        torch.testing.assert_close(norms[start:end], weight.expand(end - start))
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    assert (weights - 1).abs().max() > 0.01
    assert weights.min() >= 3 * module.TIER_WEIGHT_FLOOR


def test_no_tier_weight_falls_below_the_floor(modules: dict[str, Any], small_model: Path):
    module = modules["learned_weights"]
    sae = build(module, small_model)
    with torch.no_grad():
        sae.tier_logits.copy_(torch.tensor([50.0, 0.0, -50.0]))
    weights = sae.tier_weights()
    assert weights.mean().item() == pytest.approx(1)
    assert weights.min().item() == pytest.approx(3 * module.TIER_WEIGHT_FLOOR)


def test_without_learned_weights_they_stay_alike(modules: dict[str, Any], small_model: Path):
    sae = train(modules["composition"], stream(small_model), steps=3)
    torch.testing.assert_close(sae.tier_weights(), torch.ones(3))


def test_the_curriculum_lets_the_tiers_in_by_half_of_the_training(modules: dict[str, Any]):
    opened = [modules["curriculum"].tiers_open(progress / 100) for progress in range(100)]
    assert opened == sorted(opened)
    assert opened[0] == 1
    assert opened[49] == 2
    assert set(opened[50:]) == {3}
    assert modules["composition"].tiers_open(0.0) == 3


def test_a_tier_that_is_not_in_yet_is_silent_and_untouched(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    module = modules["no_composition"]
    sae = build(module, small_model)
    everything_dead = torch.arange(D_SAE)
    for opened in (1, 2, 3):
        sae.open_tiers = opened
        end = sae.tiers[opened - 1][1]
        loss, latents, _ = module.compute_loss(sae, batch, everything_dead)
        sae.zero_grad()
        loss.backward()
        assert (latents > 0).sum() == K * len(batch)  # the open tiers take the whole budget
        assert not latents[:, end:].any()
        assert not sae.W_enc.grad[:, end:].any()
        assert not sae.W_dec.grad[end:].any()
        assert sae.W_enc.grad[:, :end].any()


@pytest.mark.parametrize(("name", "all_in"), [("composition", True), ("curriculum", False)])
def test_a_run_with_the_curriculum_starts_without_its_last_tier(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, all_in: bool
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    module = modules[name]
    module.main(tmp_path)
    rows = results.read_metrics(tmp_path)
    before = [r for r in rows if module.DEAD_AFTER + BATCH < r.tokens <= activations.SMOKE_TOKENS / 2]
    assert before
    assert all((row.alive_fraction > 0.7) == all_in for row in before if row.alive_fraction is not None)


def test_the_composition_loss_falls_when_only_the_compositions_learn(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    sae = build(modules["composition"], small_model)
    latents = sae.select(sae.pre_activations(batch)).detach()
    optimizer = torch.optim.Adam(sae.compositions.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = sae.composition_loss(latents)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1)  # W_l starts at zero and predicts nothing
    assert losses[-1] < 0.95 * losses[0]


def test_the_composition_loss_does_not_pull_on_its_target(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    """Otherwise it would be lowered by shrinking the higher tier."""
    sae = build(modules["composition"], small_model)
    torch.nn.init.normal_(sae.compositions[0])
    torch.nn.init.normal_(sae.compositions[1])
    latents = sae.select(sae.pre_activations(batch)).detach().requires_grad_()
    sae.composition_loss(latents).backward()
    assert latents.grad is not None
    for number, (start, end) in enumerate(sae.tiers):
        pulled = latents.grad[:, start:end].abs().sum().item()
        assert (pulled > 0) == (number < 2)


def test_the_composition_loss_does_not_change_with_the_size_of_the_latents(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    module = modules["composition"]
    sae = build(module, small_model)
    torch.nn.init.normal_(sae.compositions[0])
    torch.nn.init.normal_(sae.compositions[1])
    latents = sae.select(sae.pre_activations(batch)).detach()
    torch.testing.assert_close(sae.composition_loss(latents * 0.01), sae.composition_loss(latents))


def test_switched_off_it_does_not_enter_the_loss(modules: dict[str, Any], small_model: Path, batch: torch.Tensor):
    for name, touched in (("composition", True), ("no_composition", False)):
        module = modules[name]
        sae = build(module, small_model)
        loss, _, _ = module.compute_loss(sae, batch, NOTHING_DEAD)
        loss.backward()
        assert (sae.compositions[0].grad is not None) == touched
