"""The template of tree_sae: each step of its plan trains, and its mechanisms do what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, K, of_idea, stream

from agent import ideas
from agent.lab import activations, checkpoint, results

PLAN = ideas.load("tree_sae").plan
NOTHING_DEAD = torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    return of_idea(tmp_path_factory.mktemp("steps"), small_model, "tree_sae")


@pytest.fixture
def batch(small_model: Path) -> torch.Tensor:
    return next(iter(stream(small_model)))


@pytest.fixture
def full(modules: dict[str, Any]) -> Iterator[Any]:
    """The module of the step with all mechanisms; constants that a test sets are as they were afterwards."""
    module = modules["full"]
    kept = {name: value for name, value in vars(module).items() if name.isupper()}
    yield module
    vars(module).update(kept)


def small_tree(module: Any) -> Any:
    """Twelve latents on six inputs: leaves 0 to 5, level 1 of 6 to 9, the top 10 and 11."""
    module.LEVEL_RATIOS, module.LEVEL_SHARES = [6, 4, 2], [0.5, 0.3, 0.2]
    torch.manual_seed(0)
    return module.TreeSAE(6, 12, torch.zeros(6))


def optimizer_of(sae: Any) -> torch.optim.Adam:
    """Adam after a step in which every entry of its averages became what no other is."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.0)
    for parameter in sae.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def trained(module: Any, model: Path, steps: int, progress: float) -> Any:
    """The SAE after some steps of the experiment's own loss, all as at one place in the training."""
    torch.manual_seed(0)
    data = stream(model)
    sae = module.TreeSAE(data.d_in, D_SAE, data.mean)
    optimizer = torch.optim.Adam(sae.parameters(), lr=module.LEARNING_RATE)
    sae.progress = progress
    for step, x in enumerate(data):
        if step == steps:
            break
        module.compute_loss(sae, x, NOTHING_DEAD)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        module.constrain(sae)
    return sae


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_each_step_trains_and_leaves_a_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    groups, parent = loaded.header.groups, loaded.extra["parent"]
    assert list(groups) == ["level_0", "level_1", "level_2"]
    assert [start for start, _ in groups.values()] == [0, *(end for _, end in groups.values())][:-1]
    assert groups["level_2"][1] == D_SAE
    for (start, end), (above, above_end) in zip(list(groups.values()), list(groups.values())[1:], strict=False):
        assert ((parent[start:end] >= above) & (parent[start:end] < above_end)).all()
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    rows = results.read_metrics(tmp_path)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse
    assert sum(rows[-1].own[f"level_{i}_l0"] or 0 for i in range(3)) == pytest.approx(K, rel=0.01)
    assert sum(rows[-1].own[f"level_{i}_size"] or 0 for i in range(3)) == D_SAE
    assert rows[-1].own["consistency"]


def test_with_every_mechanism_off_it_is_the_baseline_to_the_digit(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    for name in ("off", "baseline"):
        (tmp_path / name).mkdir()
        modules[name].main(tmp_path / name)
    off, base = (checkpoint.load(tmp_path / name / "checkpoint") for name in ("off", "baseline"))
    assert torch.equal(off.W_dec, base.W_dec)
    assert torch.equal(off.b_dec, base.b_dec)
    x = torch.randn(64, off.header.d_in)
    assert torch.equal(off.encode(x), base.encode(x))
    losses = [[row.loss for row in results.read_metrics(tmp_path / name)] for name in ("off", "baseline")]
    assert losses[0] == losses[1]


def test_each_level_fires_within_its_share_of_k_and_the_higher_the_less(
    modules: dict[str, Any], small_model: Path, batch: torch.Tensor
):
    data = stream(small_model)
    sae = modules["skip_connections"].TreeSAE(data.d_in, D_SAE, data.mean)
    _, latents = sae.climb(batch, training=True)
    fired = [(part > 0).sum().item() for part in latents.split(sae.sizes, 1)]
    assert sum(fired) == K * len(batch)
    assert fired == sorted(fired, reverse=True)
    for count, share in zip(fired, sae.shares, strict=True):
        assert count == pytest.approx(share * K * len(batch), abs=1)


def test_a_child_that_fires_raises_its_parent(full: Any):
    sae = small_tree(full)
    x = torch.randn(50, 6)
    pre, latents = sae.climb(x, training=False)  # thresholds are 0 yet: everything fires
    child, parent = 2, int(sae.parent[2])
    with torch.no_grad():
        sae.projections[child] += 1.0
    raised, _ = sae.climb(x, training=False)
    told = raised[:, parent] - pre[:, parent]
    direct = (x @ sae.W_enc + sae.b_enc)[:, parent]
    fires = latents[:, child] > 0
    assert fires.any()
    assert not told[~fires].any()
    assert (told[fires & (direct > 0)] > 0).all()
    torch.testing.assert_close(told[fires & (direct > 0)], latents[fires & (direct > 0), child])
    others = [i for i in range(12) if i not in (parent, int(sae.parent[parent]))]
    assert torch.equal(raised[:, others], pre[:, others])


def test_without_skip_connections_only_the_leaves_read_the_activations(full: Any):
    full.SKIP_CONNECTIONS = False
    sae = small_tree(full)
    x = torch.randn(50, 6)
    before, _ = sae.climb(x, training=False)
    assert (before[:, 6:] > 0).any()
    with torch.no_grad():
        sae.W_enc[:, 6:] += 1.0
        sae.b_enc[6:] += 1.0
    assert torch.equal(sae.climb(x, training=False)[0], before)
    sae.thresholds[0] = 1e9  # the leaves are silent
    assert not sae.climb(x, training=False)[0][:, 6:].any()


def test_a_pruned_path_carries_nothing_from_then_on(full: Any):
    sae = small_tree(full)
    sae.carried.copy_(torch.tensor([5.0, 4.0, 0.01, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.02, 0.0, 0.0]))
    full.prune(sae)
    assert (~sae.open).nonzero().flatten().tolist() == [2, 9, 10, 11]
    x = torch.randn(50, 6)
    pre, _ = sae.climb(x, training=False)
    pre[:, 6:].sum().backward()
    assert sae.projections.grad[[2, 9]].tolist() == [0, 0]
    assert sae.projections.grad[[0, 1, 3]].all()
    with torch.no_grad():
        sae.projections[[2, 9]] = 100.0
    assert torch.equal(sae.climb(x, training=False)[0], pre)
    assert not sae.weights()[[2, 9]].any()
    sae.carried[2] = 100.0
    full.prune(sae)
    assert not sae.open[2]


def test_the_consistency_loss_brings_parents_and_children_together(full: Any, small_model: Path):
    found = []
    for full.CONSISTENCY_COEFFICIENT in (0.0, 0.03):
        found.append(trained(full, small_model, steps=60, progress=1.0).consistency.item())
    assert found[1] < 0.8 * found[0]


def test_the_consistency_loss_is_not_lowered_by_shrinking(full: Any, batch: torch.Tensor, small_model: Path):
    data = stream(small_model)
    sae = full.TreeSAE(data.d_in, D_SAE, data.mean)
    pre, latents = sae.climb(batch, training=True)
    loss = sae.consistency_loss(pre, latents)
    torch.testing.assert_close(sae.consistency_loss(0.01 * pre, 0.01 * latents), loss)
    assert sae.consistency_loss(torch.zeros_like(pre), torch.zeros_like(latents)).item() == pytest.approx(0, abs=1e-5)


def test_the_consistency_loss_is_least_where_parents_follow_their_children(full: Any):
    sae = small_tree(full)
    latents = torch.zeros(4, 12)
    latents[range(4), range(4)] = 1.0  # a leaf fires on each token
    following, other = latents.clone(), latents.clone()
    following[range(4), sae.parent[:4]] = 3.0  # its parent with it
    other[range(4), sae.parent[:4].roll(1)] = 3.0
    for each in (following, other):
        each[:, 10:] = 1.0
    assert sae.consistency_loss(following, following) < 0.5 * sae.consistency_loss(other, other)


def test_the_consistency_loss_warms_up(modules: dict[str, Any], small_model: Path, batch: torch.Tensor):
    module, losses = modules["consistency"], []
    data = stream(small_model)
    torch.manual_seed(0)
    sae = module.TreeSAE(data.d_in, D_SAE, data.mean)
    for progress in (0.0, 0.5 * module.CONSISTENCY_WARMUP, module.CONSISTENCY_WARMUP, 1.0):
        sae.progress = progress
        loss, _, mse = module.compute_loss(sae, batch, NOTHING_DEAD)
        losses.append((loss - mse).item() / (module.CONSISTENCY_COEFFICIENT * sae.consistency.item()))
    assert losses == pytest.approx([0, 0.5, 1, 1], abs=1e-2)


def test_children_choose_the_parent_they_fire_with_and_not_the_busiest(full: Any):
    full.MOST_CHILDREN = 2
    sae = small_tree(full)
    fires = torch.zeros(4000, 12)
    generator = torch.Generator().manual_seed(0)
    fires[torch.arange(4000), torch.randint(6, (4000,), generator=generator)] = 1.0
    wanted = torch.tensor([9, 8, 7, 9, 8, 7])
    fires[:, 6] = 1.0  # always there
    for child, parent in enumerate(wanted):
        fires[fires[:, child] > 0, parent] = 1.0
    fires[:, 10] = (fires[:, 7] > 0).float()
    fires[:, 11] = ((fires[:, 8] + fires[:, 9]) > 0).float()
    for _ in range(20):
        sae.observe(fires)
    sae.choose_parents(sae.open.nonzero().flatten())
    assert torch.equal(sae.parent[:6], wanted)
    assert sae.parent[7:10].tolist() == [10, 11, 11]
    assert sae.parent[10:].tolist() == [-1, -1]
    full.MOST_CHILDREN = 1  # there is room for all the same
    sae.choose_parents(sae.open.nonzero().flatten())
    assert torch.bincount(sae.parent[:6], minlength=10)[6:].max() <= 2


def test_a_latent_takes_everything_it_has_to_its_new_place(full: Any):
    sae = small_tree(full)
    optimizer = optimizer_of(sae)
    averages = {name: optimizer.state[p]["exp_avg"].clone() for name, p in sae.named_parameters()}
    silent = torch.arange(12.0)
    sae.open[3] = False
    x = torch.randn(50, 6)
    with torch.no_grad():
        sae.projections.uniform_(0.1, 1.0)
        decoded = sae.decode(sae.climb(x, training=False)[1])
        order = torch.tensor([5, 3, 0, 1, 2, 4, 9, 6, 8, 7, 11, 10])
        W_enc, W_dec = sae.W_enc.clone(), sae.W_dec.clone()
        full.reorder(sae, optimizer, silent, order)
        assert torch.equal(sae.W_enc, W_enc[:, order])
        assert torch.equal(sae.W_dec, W_dec[order])
        torch.testing.assert_close(sae.decode(sae.climb(x, training=False)[1]), decoded)
    assert silent.tolist() == order.tolist()
    assert (~sae.open).nonzero().flatten().tolist() == [1, 10, 11]
    for name, parameter in sae.named_parameters():
        average = optimizer.state[parameter]["exp_avg"]
        if name == "W_enc":
            assert torch.equal(average, averages[name][:, order])
        elif name != "b_dec":
            assert torch.equal(average, averages[name][order])


def test_latents_that_are_not_used_change_to_the_level_that_is_used_most(full: Any):
    full.MOST_MOVED, full.SMALLEST_LEVEL = 2 / 12, 0.1
    sae = small_tree(full)
    optimizer, silent = optimizer_of(sae), torch.arange(12.0)
    rate = torch.tensor([0.2, 0.001, 0.2, 0.0, 0.2, 0.002, 0.2, 0.2, 0.2, 0.2, 0.5, 0.5])
    sae.together.copy_(torch.diag(rate))
    directions = sae.W_dec.detach().clone()
    full.adapt_ratios(sae, optimizer, silent)
    assert sae.sizes == [4, 4, 4]
    assert set(silent[8:].tolist()) == {1.0, 3.0, 10.0, 11.0}  # the two that fired least, and the old top
    assert torch.equal(sae.W_dec.detach(), directions[silent.long()])
    assert sae.open.tolist() == [True] * 8 + [False] * 4
    assert sae.parent[8:].tolist() == [-1] * 4
    assert ((sae.parent[:4] >= 4) & (sae.parent[:4] < 8)).all()
    assert ((sae.parent[4:8] >= 8) & (sae.parent[4:8] < 12)).all()
    for _ in range(20):
        full.adapt_ratios(sae, optimizer, silent)
    assert min(sae.sizes) >= 1
    assert sum(sae.sizes) == 12


def test_sparsity_moves_to_the_levels_whose_paths_carry_more_and_adds_up_to_k(full: Any):
    sae = small_tree(full)
    sae.together.copy_(torch.diag(torch.full((12,), 0.1)))
    sae.activation.copy_(torch.tensor([0.1] * 6 + [0.4] * 4 + [0.1] * 2))
    full.adapt_sparsity(sae)
    assert sum(sae.shares) == pytest.approx(1)
    assert sae.shares[1] > 0.3
    assert sae.shares[0] < 0.5
    sae.open[:10] = False  # no path carries anything: nothing moves but to what is left
    for _ in range(50):
        full.adapt_sparsity(sae)
    assert sum(sae.shares) == pytest.approx(1)
    assert sae.shares == sorted(sae.shares, reverse=True)
    x = torch.randn(500, 6)
    full.K = 2
    _, latents = sae.climb(x, training=True)
    assert (latents > 0).sum().item() == 1000


def test_what_may_change_is_settled_in_time(modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Levels by half of the training, edges after it: the thresholds have the rest of it to settle."""
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    module = modules["full"]
    monkeypatch.setattr(module, "PRUNE_BELOW", 1.0)  # the experiment's constants, so that much happens in few steps
    monkeypatch.setattr(module, "UNUSED", 2.0)
    module.main(tmp_path)
    rows = results.read_metrics(tmp_path)
    half, end = activations.SMOKE_TOKENS * module.ADAPT_UNTIL, activations.SMOKE_TOKENS * module.PRUNE_UNTIL
    early = [row.own for row in rows if row.tokens <= half]
    late = [row.own for row in rows if row.tokens > half + BATCH]
    for name in ("level_0_size", "level_0_l0"):
        before, after = ([own[name] or 0 for own in part] for part in (early, late))
        assert max(before) - min(before) > 0.02
        assert max(after) - min(after) < 0.01  # a share of the last, smaller batch is rounded otherwise
    assert {own["open_edges"] for own in early[:-1]} == {1.0}
    last = {row.own["open_edges"] for row in rows if row.tokens > end + BATCH}
    assert len(last) == 1
    assert (last.pop() or 0) < 1
