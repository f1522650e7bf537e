"""The template of adaptive_orthogonal_sae: each step of its plan trains, and each mechanism works as described."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_lab import BATCH, D_MODEL, D_SAE, HOOK, TOKENS, K, of_idea

from agent import ideas
from agent.ideas import Fixed
from agent.lab import activations, checkpoint, results
from agent.running import preflight

IDEA = ideas.load("adaptive_orthogonal_sae")
NAMES = [step.name for step in IDEA.plan]
NOTHING_DEAD = torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    return of_idea(tmp_path_factory.mktemp("steps"), small_model, IDEA.name)


@pytest.fixture(scope="module")
def runs(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of a smoke run of each module."""
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_SMOKE", "1")
        for name, module in modules.items():
            (directory / name).mkdir()
            module.main(directory / name)
    return {name: directory / name for name in modules}


@pytest.fixture
def adaptive(modules: dict[str, Any]) -> Any:
    return modules["adaptive"]


def build(module: Any, rows: torch.Tensor, group: list[int], alpha: float = 0.25) -> Any:
    """Return an SAE with these decoder rows `[d_sae, d_in]`, of norm 1, and groups."""
    torch.manual_seed(0)
    d_sae, d_in = rows.shape
    sae = module.GroupedSAE(d_in, d_sae, torch.zeros(d_in))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.group.copy_(torch.tensor(group))
    sae.alpha = alpha
    return sae


def pair(cosine: float) -> torch.Tensor:
    """Return two unit rows in four dimensions with this cosine."""
    return torch.tensor([[1.0, 0, 0, 0], [cosine, math.sqrt(1 - cosine**2), 0, 0]])


def ended(runs: dict[str, Path], name: str) -> checkpoint.Checkpoint:
    return checkpoint.load(runs[name] / "checkpoint")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_each_step_trains_and_leaves_a_checkpoint(modules: dict[str, Any], runs: dict[str, Path], name: str):
    loaded = ended(runs, name)
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    assert loaded.extra["group"].bincount().max() <= D_MODEL // 2
    rows = results.read_metrics(runs[name])
    assert rows[-1].own["alpha"] == pytest.approx(modules[name].ALPHA)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse


@pytest.mark.parametrize("model", ["tiny-lm", "synth2k"])
def test_the_steps_pass_preflight_and_differ(model: str):
    fixed = Fixed(model=model)
    earlier = {"run 0": ideas.render_baseline(fixed)}
    for step in IDEA.plan:
        source = ideas.render_step(IDEA, step, fixed)
        preflight.check(source, fixed, earlier)
        earlier[step.name] = source


def test_with_every_mechanism_off_it_equals_the_baseline_exactly(runs: dict[str, Path]):
    own, baseline = ended(runs, "off"), ended(runs, "baseline")
    assert torch.equal(own.W_dec, baseline.W_dec)
    assert own.threshold is not None
    assert baseline.threshold is not None
    assert torch.equal(own.threshold, baseline.threshold)


def test_training_reduces_cosines_across_groups(modules: dict[str, Any]):
    """The step is fixed, whose alpha is constant from the first step."""
    largest = {}
    for name in ("fixed", "off"):
        sae = trained(modules[name], stream(modules), steps=150)
        strangers = sae.group[:, None] != sae.group
        largest[name] = ((sae.W_dec @ sae.W_dec.T).abs() * strangers).amax(1).mean().item()
    assert largest["fixed"] < 0.9 * largest["off"]


def trained(module: Any, data: activations.Stream, steps: int) -> Any:
    """Return the experiment's SAE after some steps of its own loss."""
    torch.manual_seed(0)
    sae = module.GroupedSAE(data.d_in, D_SAE, data.mean)
    optimizer = torch.optim.Adam(sae.parameters(), lr=module.LEARNING_RATE)
    for _, x in zip(range(steps), data, strict=False):
        module.compute_loss(sae, x, NOTHING_DEAD)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        module.constrain(sae)
    return sae


def stream(modules: dict[str, Any]) -> activations.Stream:
    folder, manifest = activations.ensure_harvest(modules["adaptive"].MODEL, HOOK, TOKENS)
    return activations.stored_stream(folder, manifest, TOKENS, BATCH, seed=0)


# The orthogonality loss


def test_the_loss_is_the_mean_squared_excess_of_the_largest_cosines_over_alpha(adaptive: Any):
    rows = torch.cat([pair(0.75), torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]])])
    assert adaptive.orthogonality_loss(build(adaptive, rows, [0, 1, 0, 1])).item() == pytest.approx(2 * 0.5**2 / 4)
    assert adaptive.orthogonality_loss(build(adaptive, rows, [0, 1, 0, 1], alpha=0.5)).item() == pytest.approx(
        2 * 0.25**2 / 4
    )
    assert adaptive.orthogonality_loss(build(adaptive, rows, [0, 1, 0, 1], alpha=0.75)).item() == pytest.approx(0)
    assert adaptive.orthogonality_loss(build(adaptive, rows, [0, 0, 1, 1])).item() == 0  # the two share a group
    opposite = rows * torch.tensor([-1.0, 1, 1, 1])[:, None]
    assert adaptive.orthogonality_loss(build(adaptive, opposite, [0, 1, 0, 1])).item() == pytest.approx(2 * 0.5**2 / 4)


def test_the_loss_does_not_grow_with_the_number_of_latents(adaptive: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "CHUNK_SIZE", 0)  # the experiment's constant
    rows = F.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    group = [i % 4 for i in range(16)]
    once = adaptive.orthogonality_loss(build(adaptive, rows, group)).item()
    # A copy is in the group of its original, so no latent's closest one of another group comes closer.
    assert adaptive.orthogonality_loss(build(adaptive, rows.repeat(10, 1), group * 10)).item() == pytest.approx(once)


def test_a_single_group_has_no_loss(adaptive: Any):
    rows = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert adaptive.orthogonality_loss(build(adaptive, rows, [0] * 6, alpha=0.0)).item() == 0


def test_minimising_the_loss_separates_the_groups_and_changes_none_within(adaptive: Any):
    """Four latents, each with a near copy; of the first two pairs the copies are in another group."""
    rows = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    near = F.normalize(rows + 0.1 * torch.randn(4, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    sae = build(adaptive, torch.cat([rows, near]), [0, 0, 2, 2, 1, 1, 2, 2], alpha=0.4)
    optimizer = torch.optim.SGD([sae.W_dec], lr=1.0)
    for _ in range(100):
        adaptive.orthogonality_loss(sae).backward()
        optimizer.step()
        optimizer.zero_grad()
        adaptive.constrain(sae)
    cosines = F.cosine_similarity(sae.W_dec[:4], sae.W_dec[4:], dim=1).tolist()
    assert cosines[:2] == pytest.approx([0.4, 0.4], abs=0.05)
    assert min(cosines[2:]) > 0.85


def test_the_training_loss_includes_it(modules: dict[str, Any]):
    batch = next(iter(stream(modules)))
    for name, reached in (("fixed", True), ("off", False)):  # fixed: its alpha holds from the first step
        module = modules[name]
        torch.manual_seed(0)
        sae = module.GroupedSAE(D_MODEL, D_SAE, batch.mean(0))
        loss, latents, mse = module.compute_loss(sae, batch, NOTHING_DEAD)
        assert (loss > mse).item() is reached
        assert (latents > 0).sum() == K * len(batch)


# Chunks


def test_a_latent_is_compared_within_its_chunk_and_over_time_with_all(adaptive: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "CHUNK_SIZE", 2)
    rows, group = F.normalize(torch.randn(6, 4), dim=1), torch.arange(6)
    met = set()
    for _ in range(100):
        i, j = adaptive.closest_strangers(rows, group)
        assert sorted(i.tolist()) == list(range(6))
        assert dict(zip(i.tolist(), j.tolist(), strict=True)) == dict(zip(j.tolist(), i.tolist(), strict=True))
        met |= set(zip(i.tolist(), j.tolist(), strict=True))
    assert met == {(a, b) for a in range(6) for b in range(6) if a != b}


@pytest.mark.parametrize(("size", "d_sae"), [(0, 10), (4, 10), (256, 10), (10, 10), (9, 10)])
def test_chunks_of_any_size_cover_every_latent(adaptive: Any, monkeypatch: pytest.MonkeyPatch, size: int, d_sae: int):
    monkeypatch.setattr(adaptive, "CHUNK_SIZE", size)
    i, j = adaptive.closest_strangers(F.normalize(torch.randn(d_sae, 4), dim=1), torch.arange(d_sae))
    assert set(i.tolist()) == set(range(d_sae))
    assert not (i == j).any()
    assert len(i) < d_sae + max(size, 1)


def test_the_closest_of_another_group_is_found(adaptive: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "CHUNK_SIZE", 0)
    rows, group = F.normalize(torch.randn(40, 8), dim=1), torch.arange(40) % 5
    i, j = adaptive.closest_strangers(rows, group)
    cosines = (rows @ rows.T).abs().masked_fill(group[:, None] == group, 0)
    assert torch.equal(cosines[i].argmax(1), j)


# The curriculum


def test_alpha_falls_from_one_to_its_value_by_half_of_the_training(adaptive: Any, modules: dict[str, Any]):
    allowed = [adaptive.allowed_cosine(progress / 100) for progress in range(100)]
    assert allowed == sorted(allowed, reverse=True)
    assert allowed[0] == 1
    assert allowed[25] == pytest.approx((1 + adaptive.ALPHA) / 2)
    assert all(alpha == pytest.approx(adaptive.ALPHA) for alpha in allowed[50:])
    assert {modules["fixed"].allowed_cosine(progress / 100) for progress in range(100)} == {modules["fixed"].ALPHA}


# The groups


@pytest.mark.parametrize(("d_in", "d_sae"), [(192, 1024), (256, 512), (32, 128), (33, 40), (7, 20)])
def test_groups_are_even_and_of_at_most_half_of_the_dimensions(adaptive: Any, d_in: int, d_sae: int):
    sae = adaptive.GroupedSAE(d_in, d_sae, torch.zeros(d_in))
    active = torch.rand(300, d_sae) < 0.05
    for group in (sae.group, adaptive.coactivation_groups(active, sae.group, sae.groups)):
        sizes = group.bincount(minlength=sae.groups)
        assert sizes.sum() == d_sae
        assert sizes.max() <= d_in // 2
        assert sizes.max() - sizes.min() <= 1


def test_latents_that_fire_together_get_one_group(adaptive: Any):
    """Each token has one of five topics of eight latents; a topic's latents fire on half of its tokens."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randperm(40, generator=generator) % 5
    spoken = torch.randint(5, (2000,), generator=generator)
    active = (spoken[:, None] == topic) & (torch.rand(2000, 40, generator=generator) < 0.5)
    torch.manual_seed(0)
    group = adaptive.random_groups(40, 5)
    for _ in range(5):  # updates
        group = adaptive.coactivation_groups(active, group, 5)
    assert torch.equal(group[:, None] == group, topic[:, None] == topic)


def test_correct_groups_are_stable_and_follow_changes_of_use(adaptive: Any):
    generator = torch.Generator().manual_seed(0)
    spoken = torch.randint(2, (2000,), generator=generator)
    half = torch.rand(2000, 8, generator=generator) < 0.5
    before, after = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
    group = adaptive.coactivation_groups((spoken[:, None] == before) & half, before, 2)
    assert torch.equal(group, before)
    assert torch.equal(adaptive.coactivation_groups((spoken[:, None] == after) & half, group, 2), after)


def test_groups_are_the_same_whether_all_latents_are_read_at_once(adaptive: Any, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    active, drawn = torch.rand(2000, 40, generator=generator) < 0.3, torch.arange(40) % 5
    at_once = adaptive.coactivation_groups(active, drawn, 5)
    assert not torch.equal(at_once, drawn)
    monkeypatch.setattr(adaptive, "GROUP_CHUNK", 7)
    assert torch.equal(adaptive.coactivation_groups(active, drawn, 5), at_once)


def test_a_latent_that_never_fires_has_a_group(adaptive: Any):
    group = adaptive.coactivation_groups(torch.zeros(50, 12, dtype=torch.bool), torch.arange(12) % 3, 3)
    assert group.bincount().tolist() == [4, 4, 4]


def test_only_coactivation_groups_are_updated(modules: dict[str, Any], runs: dict[str, Path]):
    for name in NAMES:
        module = modules[name]
        torch.manual_seed(module.SEED)
        drawn = module.GroupedSAE(D_MODEL, D_SAE, torch.zeros(D_MODEL)).group
        assert torch.equal(ended(runs, name).extra["group"], drawn) is not module.COACTIVATION_GROUPS
    assert [step for step in range(100) if modules["adaptive"].groups_due(step, 100)] == list(range(4, 100, 4))
    assert all(modules["adaptive"].groups_due(step, 20) for step in range(1, 20))  # of a training as short as that
