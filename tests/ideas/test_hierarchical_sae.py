"""The template of hierarchical_sae: each step of its plan trains, and each mechanism works as described."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_lab import D_SAE, TOKENS, K, experiment, load, stream, train

from agent import ideas
from agent.lab import activations, checkpoint, results

PLAN = ideas.load("hierarchical_sae").plan
NOTHING_DEAD = torch.empty(0, dtype=torch.long)
MECHANISMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "composition": {"composition_coefficient": 0.03},
    "importance": {"composition_coefficient": 0.03, "learned_importance": True},
    "curriculum": {"tier_curriculum": True},
    "auto": {"composition_coefficient": 0.03, "learned_importance": True, "auto_tiers": True},
    "auto_curriculum": {"composition_coefficient": 0.03, "auto_tiers": True, "tier_curriculum": True},
}


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    """Each mechanism, and each step of the plan, as a module."""
    directory = tmp_path_factory.mktemp("steps")
    alone = [
        PLAN[0].model_copy(update={"name": name, "parameters": parameters}) for name, parameters in MECHANISMS.items()
    ]
    steps = {f"plan_{step.name}": step for step in PLAN} | {step.name: step for step in alone}
    return {name: load(experiment(directory / name, small_model, step)) for name, step in steps.items()}


@pytest.fixture
def batch(small_model: Path) -> torch.Tensor:
    return next(iter(stream(small_model)))


def build(module: Any, model: Path) -> Any:
    torch.manual_seed(0)
    data = stream(model)
    return module.TieredSAE(data.d_in, D_SAE, data.mean)


@pytest.mark.parametrize("name", [step.name for step in PLAN])
@pytest.mark.slow
def test_each_step_trains_and_leaves_a_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[f"plan_{name}"].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    assert list(loaded.header.groups) == ["tier_0", "tier_1", "tier_2"]
    assert [start for start, _ in loaded.header.groups.values()] == [
        0,
        *(end for _, end in loaded.header.groups.values()),
    ][:-1]
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    rows = results.read_metrics(tmp_path)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_tiers_are_disjoint_cover_all_latents_and_have_their_shares(
    modules: dict[str, Any], small_model: Path, name: str
):
    module = modules[f"plan_{name}"]
    tiers = build(module, small_model).tiers
    assert [start for start, _ in tiers] == [0, *(end for _, end in tiers[:-1])]
    assert tiers[-1][1] == D_SAE
    for (start, end), share in zip(tiers, module.TIER_FRACTIONS, strict=True):
        assert abs((end - start) - share * D_SAE) <= 1


def test_the_importance_of_the_maps_is_learned_and_weighs_their_losses(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    module = modules["importance"]
    sae = build(module, small_model)
    with torch.no_grad():
        torch.nn.init.normal_(sae.composition[slice(*sae.tiers[0]), slice(*sae.tiers[1])])  # the harder of the two
    latents = sae.select(sae.pre_activations(batch)).to_dense().detach()
    losses = []
    for logits in ([50.0, -50.0], [-50.0, 50.0], [0.0, 0.0]):
        with torch.no_grad():
            sae.importance_logits.copy_(torch.tensor(logits))
        losses.append(sae.composition_loss(latents).item())
    floor = module.IMPORTANCE_FLOOR
    first, second = ((1 - floor) * a - floor * b for a, b in (losses[:2], losses[1::-1]))
    first, second = first / (1 - 2 * floor), second / (1 - 2 * floor)  # solved for the two maps' own losses
    assert first > 2 * second
    assert losses[2] == pytest.approx((first + second) / 2, rel=1e-5)
    sae.composition_loss(latents).backward()
    assert sae.importance_logits.grad[0] > 0 > sae.importance_logits.grad[1]  # towards the easier


def test_no_importance_falls_below_the_floor(modules: dict[str, Any], small_model: Path):
    module = modules["importance"]
    sae = build(module, small_model)
    with torch.no_grad():
        sae.importance_logits.copy_(torch.tensor([50.0, -50.0]))
    importance = sae.importance()
    assert importance.mean().item() == pytest.approx(1)
    assert importance.min().item() == pytest.approx(2 * module.IMPORTANCE_FLOOR)


@pytest.mark.parametrize(("name", "moves"), [("importance", True), ("composition", False)])
def test_the_importance_moves_only_where_it_is_learned(
    modules: dict[str, Any], small_model: Path, name: str, moves: bool
):
    sae = train(modules[name], stream(small_model), steps=3)
    assert bool(sae.importance_logits.any()) == moves


def test_a_newly_opened_tier_starts_on_the_residuals(modules: dict[str, Any], small_model: Path, batch: torch.Tensor):
    module = modules["curriculum"]
    sae = train(module, stream(small_model), steps=60)
    start, end = sae.tiers[1]

    sae.open_tiers = 1
    others = sae.W_enc[:, :start].norm(dim=0).mean().item()
    residual = (batch - sae.decode(sae.select(sae.pre_activations(batch)))).detach()
    module.let_in(sae, 2, batch)
    assert sae.open_tiers == 2
    norms = sae.W_enc[:, start:end].norm(dim=0)
    assert norms.tolist() == pytest.approx([module.OPENING_SCALE * others] * (end - start))
    assert (F.normalize(residual, dim=1) @ sae.W_dec[start:end].T).amax(0).min() > 0.999
    assert (sae.select(sae.pre_activations(batch)).to_dense() > 0)[:, start:end].any()


def test_the_curriculum_opens_every_tier_by_half_of_the_training(modules: dict[str, Any]):
    opened = [modules["curriculum"].tiers_open(progress / 100) for progress in range(100)]
    assert opened == sorted(opened)
    assert opened[0] == 1
    assert 2 in opened
    assert set(opened[50:]) == {3}
    assert modules["composition"].tiers_open(0.0) == 3


def test_a_closed_tier_is_silent_and_unchanged(modules: dict[str, Any], small_model: Path, batch: torch.Tensor):
    module = modules["curriculum"]
    sae = build(module, small_model)
    for opened in (1, 2, 3):
        sae.open_tiers = opened
        end = sae.tiers[opened - 1][1]
        loss, latents, _ = module.compute_loss(sae, batch, torch.arange(end))  # all that is in is dead
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
    monkeypatch.setenv("SAE_AGENT_DRIVEN", "1")
    module = modules[name]
    monkeypatch.setattr(module, "OPENING_SCALE", 0.5)  # the experiment's constant: so few steps ask for a louder start
    module.main(tmp_path)
    fires = {row.tokens / TOKENS: row.own["tier_2_l0"] for row in results.read_metrics(tmp_path)}
    assert {all_in} == {bool(l0) for progress, l0 in fires.items() if progress <= module.CURRICULUM_END}
    assert all(l0 for progress, l0 in fires.items() if progress > 0.75)


def test_a_closed_tier_does_not_count_as_dead(modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_DRIVEN", "1")
    module = modules["curriculum"]
    monkeypatch.setattr(module, "DEAD_AFTER", 2000)  # the experiment's constant: a few steps
    module.main(tmp_path)
    closed = [row for row in results.read_metrics(tmp_path) if not row.own["tier_1_l0"]]
    assert closed
    assert min(row.alive_fraction or 0 for row in closed) > 2 / 3, "both tiers that are not in yet"


def test_the_composition_loss_falls_when_only_the_compositions_learn(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    sae = build(modules["composition"], small_model)
    latents = sae.select(sae.pre_activations(batch)).to_dense().detach()
    optimizer = torch.optim.Adam([sae.composition], lr=1e-2)
    losses = []
    for _ in range(50):
        loss = sae.composition_loss(latents)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1)  # W_l starts at zero and predicts nothing
    assert losses[-1] < 0.95 * losses[0]


def test_the_composition_loss_follows_its_formula(modules: dict[str, Any], small_model: Path, batch: torch.Tensor):
    module = modules["composition"]
    sae = build(module, small_model)
    torch.nn.init.normal_(sae.composition, std=0.1)
    latents = sae.select(sae.pre_activations(batch)).to_dense().detach()
    expected = []
    for W, ((lower, middle), (_, upper)) in zip(sae.maps(), itertools.pairwise(sae.tiers), strict=True):
        h = latents[: module.COMPOSITION_TOKENS]
        error = (h[:, lower:middle] @ W - h[:, middle:upper]).norm() ** 2 / h[:, middle:upper].norm() ** 2
        expected.append(error + module.W_L1_COEFFICIENT * W.abs().sum())
    torch.testing.assert_close(sae.composition_loss(latents), sum(expected) / 2)


def test_a_tier_that_hardly_fires_does_not_make_the_loss_explode(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    """One firing in a thousand, as in a newly opened tier, must not have an unbounded effect on the tier below."""
    sae = build(modules["composition"], small_model)
    torch.nn.init.normal_(sae.composition, std=0.01)
    pulled = []
    for kept in (1.0, 1e-3):
        latents = sae.select(sae.pre_activations(batch)).to_dense().detach()
        latents[:, slice(*sae.tiers[2])] *= kept
        latents.requires_grad_()
        sae.composition_loss(latents).backward()
        assert latents.grad is not None
        pulled.append(latents.grad[:, slice(*sae.tiers[1])].norm().item())
    assert 0 < pulled[1] < 2 * pulled[0]


def test_the_composition_loss_does_not_pull_on_its_target(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    """Otherwise shrinking the higher tier would lower it."""
    sae = build(modules["composition"], small_model)
    torch.nn.init.normal_(sae.composition)
    latents = sae.select(sae.pre_activations(batch)).to_dense().detach().requires_grad_()
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
    torch.nn.init.normal_(sae.composition)
    latents = sae.select(sae.pre_activations(batch)).to_dense().detach()
    torch.testing.assert_close(sae.composition_loss(latents * 0.01), sae.composition_loss(latents))


def test_only_the_maps_between_neighbouring_tiers_learn(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    module = modules["composition"]
    sae = build(module, small_model)
    loss, _, _ = module.compute_loss(sae, batch, NOTHING_DEAD)
    loss.backward()
    learning = sae.composition.grad.bool()
    for (start, end), (_, upper) in itertools.pairwise(sae.tiers):
        assert learning[: end - start, end:upper].any()
        learning[: end - start, end:upper] = False
    assert not learning.any()


def test_switched_off_the_composition_loss_has_no_effect(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    sae = build(modules["nothing"], small_model)
    modules["nothing"].compute_loss(sae, batch, NOTHING_DEAD)[0].backward()
    assert sae.composition.grad is None
    assert sae.maps() == []


def test_with_every_mechanism_off_training_equals_the_baseline_exactly(
    modules: dict[str, Any], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    baseline = load(experiment(tmp_path / "baseline", small_model))
    checkpoints = []
    for number, module in enumerate((baseline, modules["nothing"])):
        (tmp_path / str(number)).mkdir()
        module.main(tmp_path / str(number))
        checkpoints.append(checkpoint.load(tmp_path / str(number) / "checkpoint"))
    assert torch.equal(checkpoints[0].W_dec, checkpoints[1].W_dec)
    x = torch.randn(64, checkpoints[0].header.d_in)
    assert torch.equal(checkpoints[0].encode(x), checkpoints[1].encode(x))


# Automatic tiers


def used(module: Any, model: Path, uses: torch.Tensor) -> tuple[Any, torch.optim.Adam, torch.Tensor]:
    """Return an SAE and its optimizer after a few steps, its tiers moved by these `uses`, and the order."""
    sae = build(module, model)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    for x, _ in zip(stream(model), range(3), strict=False):
        module.compute_loss(sae, x, NOTHING_DEAD)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    moments = {
        name: optimizer.state[p]["exp_avg"].clone() for name, p in sae.named_parameters() if p in optimizer.state
    }
    order = module.follow_use(sae, optimizer, uses)
    sae.before, sae.moments = before, moments
    return sae, optimizer, order


@pytest.fixture
def uses() -> torch.Tensor:
    """The firing rates of a few frequent and many rare latents, unsorted."""
    generator = torch.Generator().manual_seed(1)
    return (1 / torch.arange(1, D_SAE + 1))[torch.randperm(D_SAE, generator=generator)]


def test_the_most_used_latents_move_to_the_lowest_tier(modules: dict[str, Any], small_model: Path, uses: torch.Tensor):
    sae, _, order = used(modules["auto"], small_model, uses)
    assert (uses[order].diff() <= 0).all()
    sizes = [end - start for start, end in sae.tiers]
    assert sizes == sorted(sizes), "few latents fire as often as many"
    assert sae.tiers[-1][1] == D_SAE


def test_each_tier_has_its_share_of_the_firings(modules: dict[str, Any], small_model: Path, uses: torch.Tensor):
    module = modules["auto"]
    sae, _, order = used(module, small_model, uses)
    for share, (start, end) in zip(module.TIER_FRACTIONS, sae.tiers, strict=True):
        held = uses[order][start:end].sum() / uses.sum()
        assert held == pytest.approx(share, abs=(uses.max() / uses.sum()).item())


def test_a_tier_keeps_its_minimum_size(modules: dict[str, Any]):
    module = modules["auto"]
    one_fires = torch.zeros(D_SAE)
    one_fires[0] = 1.0
    least = module.LEAST_TIER
    assert least > 0
    assert module.ends_by_use(one_fires, 3) == [least, 2 * least, D_SAE]
    all_alike = module.ends_by_use(torch.ones(D_SAE), 3)
    assert [abs(end - D_SAE * share) < 2 for end, share in zip(all_alike, (1 / 3, 2 / 3, 1), strict=True)] == [True] * 3


def test_moving_the_tiers_changes_no_reconstruction(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor, uses: torch.Tensor
):
    sae = build(modules["auto"], small_model)
    before = sae.decode(sae.pre_activations(batch))
    order = modules["auto"].follow_use(sae, torch.optim.Adam(sae.parameters()), uses)
    assert not torch.equal(order, torch.arange(D_SAE))
    torch.testing.assert_close(sae.decode(sae.pre_activations(batch)), before, rtol=1e-4, atol=1e-4)


def test_the_optimizer_moves_with_the_latents(modules: dict[str, Any], small_model: Path, uses: torch.Tensor):
    sae, optimizer, order = used(modules["auto"], small_model, uses)
    assert not torch.equal(order, torch.arange(D_SAE))
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        moment = optimizer.state[getattr(sae, name)]["exp_avg"]
        assert torch.equal(moment, sae.moments[name].index_select(axis, order)), name
    assert torch.equal(sae.W_dec, sae.before["W_dec"][order])
    assert torch.equal(sae.W_enc, sae.before["W_enc"][:, order])


def test_a_composition_is_kept_between_neighbouring_tiers_and_reset_elsewhere(
    modules: dict[str, Any], small_model: Path, uses: torch.Tensor
):
    tiers = build(modules["auto"], small_model).tiers
    sae, optimizer, order = used(modules["auto"], small_model, uses)
    now, moments = sae.composition, optimizer.state[sae.composition]["exp_avg"]
    for kept, before in ((now, sae.before["composition"]), (moments, sae.moments["composition"])):
        carried = between_latents(before, tiers)[order][:, order]
        neighbours = between_latents(torch.ones(D_SAE, D_SAE), sae.tiers).bool()
        assert torch.equal(between_latents(kept, sae.tiers), torch.where(neighbours, carried, 0.0))
        assert carried[neighbours].any()
        assert carried[~neighbours].any()
        assert kept.count_nonzero() == between_latents(kept, sae.tiers).count_nonzero(), "nothing elsewhere"


def test_of_a_wide_tier_the_first_latents_alone_are_parts(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor, uses: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """A map has no more rows, and where it has all rows of interest it moves as the whole one does."""
    module = modules["auto"]
    sae, _, order = used(module, small_model, uses)
    whole, tiers = sae.before["composition"], build(module, small_model).tiers
    monkeypatch.setattr(module, "COMPOSED_OF", 5)
    narrow = build(module, small_model)
    assert [W.shape[0] for W in narrow.maps()] == [5, 5]
    loss, _, _ = module.compute_loss(narrow, batch, NOTHING_DEAD)
    loss.backward()
    assert narrow.composition.grad.any()
    with torch.no_grad():
        narrow.composition.copy_(whole[:5])
    module.follow_use(narrow, torch.optim.Adam(narrow.parameters()), uses)
    among_first = torch.cat([torch.arange(end - start) < 5 for start, end in tiers])
    carried = (between_latents(whole, tiers) * among_first[:, None])[order][:, order]
    for W, (lower, upper) in zip(narrow.maps(), narrow.pairs(), strict=True):
        assert torch.equal(W, carried[lower, upper])


def between_latents(composition: torch.Tensor, tiers: list[tuple[int, int]]) -> torch.Tensor:
    """Return all maps as one `[d_sae, d_sae]`, from parts to wholes."""
    whole = torch.zeros(D_SAE, D_SAE)
    for (start, end), (_, upper) in itertools.pairwise(tiers):
        whole[start:end, end:upper] = composition[: end - start, end:upper]
    return whole


def test_a_closed_tier_keeps_its_latents(modules: dict[str, Any], small_model: Path, uses: torch.Tensor):
    module = modules["auto_curriculum"]
    sae = build(module, small_model)
    sae.open_tiers, last = 2, sae.tiers[2]
    order = module.follow_use(sae, torch.optim.Adam(sae.parameters()), uses)
    assert torch.equal(order[last[0] :], torch.arange(*last))
    assert sae.tiers[2] == last
    assert sae.tiers[0][1] < last[0] / 2, "the two that are in share out their firings"


def test_the_tiers_move_only_between_start_and_end(modules: dict[str, Any]):
    module = modules["auto"]
    moves = [step for step in range(1, 1001) if module.tiers_move(step / 1000, (step - 1) / 1000)]
    assert moves[0] >= 1000 * module.AUTO_START
    assert moves[-1] <= 1000 * module.AUTO_END
    assert len(moves) == pytest.approx((module.AUTO_END - module.AUTO_START) / module.AUTO_EVERY + 1, abs=1)
    assert not any(modules["nothing"].tiers_move(step / 1000, (step - 1) / 1000) for step in range(1, 1001))


def test_training_moves_the_boundaries_and_records_its_tiers(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules["auto"].main(tmp_path)
    first, *_, last = results.read_metrics(tmp_path)
    sizes = [[row.own[f"tier_{i}_size"] for i in range(3)] for row in (first, last)]
    assert sizes[0] != sizes[1]
    for row in (first, last):
        assert sum(row.own[f"tier_{i}_size"] or 0 for i in range(3)) == D_SAE
        assert sum(row.own[f"tier_{i}_l0"] or 0 for i in range(3)) == pytest.approx(row.l0, abs=0.01)
    groups = checkpoint.load(tmp_path / "checkpoint").header.groups
    assert [end - start for start, end in groups.values()] == sizes[1]
