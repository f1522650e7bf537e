"""The template of tree_sae: each step of its plan trains, and each mechanism works as described."""

import math
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
    """The module of the step with all mechanisms; constants that a test sets are restored afterwards."""
    module = modules["full"]
    kept = {name: value for name, value in vars(module).items() if name.isupper()}
    yield module
    vars(module).update(kept)


def small_tree(module: Any) -> Any:
    """Return twelve latents on six inputs: leaves 0 to 5, level 1 from 6 to 9, the top 10 and 11."""
    module.LEVEL_RATIOS, module.LEVEL_SHARES = [6, 4, 2], [0.5, 0.3, 0.2]
    torch.manual_seed(0)
    return module.TreeSAE(6, 12, torch.zeros(6))


def optimizer_of(sae: Any) -> torch.optim.Adam:
    """Return Adam after a step, with a different value in every entry of its averages."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.0)
    for parameter in sae.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def trained(module: Any, model: Path, steps: int, progress: float) -> Any:
    """Return the SAE after some steps of the experiment's own loss, all at the same progress of the training."""
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
@pytest.mark.slow
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
    first = modules[name].TreeSAE(loaded.header.d_in, D_SAE, torch.zeros(loaded.header.d_in))
    assert not torch.equal(parent, first.parent)  # the children chose
    rows = results.read_metrics(tmp_path)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse
    assert sum(rows[-1].own[f"level_{i}_l0"] or 0 for i in range(3)) == pytest.approx(K, rel=0.01)
    assert sum(rows[-1].own[f"level_{i}_size"] or 0 for i in range(3)) == D_SAE
    assert rows[-1].own["consistency"]


def test_with_every_mechanism_off_it_equals_the_baseline_exactly(
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


def test_each_level_keeps_its_share_of_k_and_higher_levels_have_less(
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
    added = raised[:, parent] - pre[:, parent]
    direct = (x @ sae.W_enc + sae.b_enc)[:, parent]
    fires = latents[:, child] > 0
    assert fires.any()
    assert not added[~fires].any()
    assert (added[fires & (direct > 0)] > 0).all()
    torch.testing.assert_close(added[fires & (direct > 0)], latents[fires & (direct > 0), child])
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


def test_without_projections_no_edge_carries_anything(full: Any):
    full.PROJECTIONS = False
    sae = small_tree(full)
    x = torch.randn(50, 6)
    pre, latents = sae.climb(x, training=False)
    torch.testing.assert_close(pre, (x @ sae.W_enc + sae.b_enc).relu())
    assert not sae.weights().any()
    sae.observe(latents)
    assert sae.activation.all()
    assert not sae.carried.any()
    full.prune(sae)  # no edge carries less than the others
    assert sae.open[:10].all()


def test_a_pruned_path_carries_nothing(full: Any):
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
    losses = []
    for full.CONSISTENCY_COEFFICIENT in (0.0, 0.03):
        losses.append(trained(full, small_model, steps=60, progress=1.0).consistency.item())
    assert losses[1] < 0.8 * losses[0]


def test_the_consistency_loss_is_not_lowered_by_shrinking(full: Any, batch: torch.Tensor, small_model: Path):
    data = stream(small_model)
    sae = full.TreeSAE(data.d_in, D_SAE, data.mean)
    pre, latents = sae.climb(batch, training=True)
    loss = sae.consistency_loss(pre, latents)
    torch.testing.assert_close(sae.consistency_loss(0.01 * pre, 0.01 * latents), loss)
    assert sae.consistency_loss(torch.zeros_like(pre), torch.zeros_like(latents)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("l2", [0.0, 1.0])
def test_the_consistency_loss_is_the_divergence_and_the_squared_distance(full: Any, l2: float):
    """By its formula, parent by parent: leaves 0 to 5 belong to 6, 7, 8, 9, 6, 7 and these to 10, 11, 10, 11. Leaf 3's
    path to parent 9 is closed, so that 9 has no children left."""
    full.CONSISTENCY_L2, full.CONSISTENCY_EPSILON = l2, 0.1
    sae = small_tree(full)
    sae.open[3] = False
    pre = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) + 0.1
    latents = pre * (torch.rand(5, 12, generator=torch.Generator().manual_seed(2)) < 0.6)
    expected = []
    for families in ({6: [0, 4], 7: [1, 5], 8: [2]}, {10: [6, 8], 11: [7, 9]}):
        Q = [[sum(latents[t, c].item() for c in children) for children in families.values()] for t in range(5)]
        P = [
            [pre[t, p].item() if latents[t, p] > 0 or q > 0 else 0.0 for p, q in zip(families, Q[t], strict=True)]
            for t in range(5)
        ]
        # the smoothing's mean is over all the level's parents, one of which may have no children and counts as 0
        size = 4 if 6 in families else 2
        for q, p in zip(smoothed(Q, size), smoothed(P, size), strict=True):
            divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
            expected.append(divergence + l2 * sum((a - b) ** 2 for a, b in zip(q, p, strict=True)))
    assert sae.consistency_loss(pre, latents).item() == pytest.approx(sum(expected) / 10, rel=1e-4)
    assert sum(expected) > 0.1


def smoothed(rows: list[list[float]], size: int) -> list[list[float]]:
    """Return each row with a tenth of the mean added, normalised to sum 1."""
    little = 0.1 * sum(map(sum, rows)) / (len(rows) * size)
    return [[(a + little) / sum(b + little for b in row) for a in row] for row in rows]


def test_the_consistency_loss_is_least_where_parents_follow_their_children(full: Any):
    sae = small_tree(full)
    latents = torch.zeros(4, 12)
    latents[range(4), range(4)] = 1.0  # a leaf fires on each token
    following, other = latents.clone(), latents.clone()
    following[range(4), sae.parent[:4]] = 3.0  # its parent with it
    other[range(4), sae.parent[:4].roll(1)] = 3.0
    for latents_of in (following, other):
        latents_of[:, 10:] = 1.0
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


@pytest.mark.parametrize("averaged", [4096, 0])
def test_children_choose_the_parent_they_fire_with_not_the_most_active(full: Any, averaged: int):
    """Whether co-activation is a moving average or counted on the latest tokens."""
    full.MOST_CHILDREN, full.AVERAGED = 2, averaged
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


def test_the_strongest_wishes_are_settled_first(full: Any):
    """As when all pairs are sorted; ties go to the first child, and of its parents to the first."""
    generator = torch.Generator().manual_seed(0)
    sae = small_tree(full)
    sae.together.copy_((10 * torch.rand(12, 12, generator=generator)).round() / 10)  # with many ties
    sae.rate.fill_(0.5)
    children = torch.arange(6)
    wish = sae.together[:6, 6:10] / 0.5 - 0.5 + 0.05 * (sae.parent[:6, None] == torch.arange(6, 10))
    chosen, room = {}, [2, 2, 2, 2]
    for place in wish.flatten().argsort(descending=True, stable=True).tolist():
        child, parent = divmod(place, 4)
        if child not in chosen and room[parent]:
            chosen[child], room[parent] = parent, room[parent] - 1
    assert full.settle(*sae.wishes(children, 6, 10), [2, 2, 2, 2]) == [chosen[child] for child in range(6)]


def test_of_many_wishes_the_strongest_are_settled_and_everyone_has_a_parent(full: Any, monkeypatch: pytest.MonkeyPatch):
    sae = small_tree(full)
    sae.together.copy_(torch.rand(12, 12, generator=torch.Generator().manual_seed(0)))
    sae.rate.fill_(0.5)
    sae.together[:6, 6] += 2  # all wish for the same parent
    monkeypatch.setattr(full, "SORTED_WISHES", 6)  # one wish of each
    strengths, parents = sae.wishes(torch.arange(6), 6, 10)
    assert parents.tolist() == [[0]] * 6
    chosen = full.settle(strengths, parents, [2, 2, 1, 1])
    assert sorted(chosen) == [0, 0, 1, 1, 2, 3]
    assert {child for child, parent in enumerate(chosen) if parent == 0} == set(
        strengths[:, 0].topk(2).indices.tolist()
    )


def test_where_co_activation_is_counted_a_moved_latent_keeps_its_firings(full: Any):
    full.AVERAGED = 0
    sae = small_tree(full)
    latents = torch.eye(12)
    sae.observe(latents)
    order = torch.tensor([5, 3, 0, 1, 2, 4, 9, 6, 8, 7, 11, 10])
    full.reorder(sae, optimizer_of(sae), torch.zeros(12), order)
    assert torch.equal(sae.fired[-12:], latents[:, order].bool())
    assert not sae.fired[:-12].any()


def test_a_moved_latent_keeps_all_its_state(full: Any):
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


def test_unused_latents_move_to_the_most_used_level(full: Any):
    full.MOST_MOVED, full.SMALLEST_LEVEL = 2 / 12, 0.1
    sae = small_tree(full)
    optimizer, silent = optimizer_of(sae), torch.arange(12.0)
    rate = torch.tensor([0.2, 0.001, 0.2, 0.0, 0.2, 0.002, 0.2, 0.2, 0.2, 0.2, 0.5, 0.5])
    sae.rate.copy_(rate)
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


def with_use(module: Any, *carried: float) -> Any:
    """Return the small tree with equally active latents, whose edges from each level carry `carried` on average."""
    sae = small_tree(module)
    sae.activation.fill_(1.0)
    for mean, (start, end) in zip(carried, sae.levels(), strict=False):
        sae.carried[start:end] = mean
    return sae


def test_sparsity_moves_to_the_levels_whose_paths_carry_more(full: Any):
    """With 0.5, 0.3 and 0.2 of K and edges that carry 0.3 and 0.6 of what six leaves and four latents above do, use is
    0.3, (1.8 + 2.4) / 2 / 4 and 2.4 / 2, on average 0.5475: the leaves' counts as 1/sqrt 2."""
    sae = with_use(full, 0.3, 0.6)
    full.adapt_sparsity(sae)
    root = 2**0.5
    aims = [
        0.5 / root,
        0.5 / root * (3 / 5) ** 0.5,
        0.5 / root * (2 / 5) ** 0.5,
    ]  # the order
    expected = [s + full.SPARSITY_RATE * (aim / sum(aims) - s) for s, aim in zip([0.5, 0.3, 0.2], aims, strict=True)]
    assert sae.shares == pytest.approx(expected)
    assert sae.shares[0] < 0.5
    assert sae.shares[2] > 0.2
    busy_below = with_use(full, 0.6, 0.5)
    full.adapt_sparsity(busy_below)  # use is 0.6, 0.7 and 1, on average 0.71
    aims = [0.5 * 0.6 / 0.71, 0.3 * 0.7 / 0.71, 0.2 * 1.0 / 0.71]
    aims[2] = min(aims[2], aims[1] * (2 / 3) ** 0.5)
    expected = [s + full.SPARSITY_RATE * (aim / sum(aims) - s) for s, aim in zip([0.5, 0.3, 0.2], aims, strict=True)]
    assert busy_below.shares == pytest.approx(expected)
    busy_below = with_use(full, 0.6, 0.1)
    full.adapt_sparsity(busy_below)
    assert busy_below.shares[0] > 0.5
    assert busy_below.shares[2] < 0.2
    for _ in range(50):  # no path carries anything any more: back to where they began
        sae.open[:] = False
        full.adapt_sparsity(sae)
    assert sae.shares == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("carried", [(1e-3, 10.0), (10.0, 1e-3), (1.0, 1.0)])
def test_shares_of_k_stay_within_half_and_twice_and_in_order(full: Any, carried: tuple[float, float]):
    sae = with_use(full, *carried)
    for _ in range(50):
        full.adapt_sparsity(sae)
        assert sum(sae.shares) == pytest.approx(1)
        assert sae.shares[0] > sae.shares[1] > sae.shares[2]
        for share, first in zip(sae.shares, full.LEVEL_SHARES, strict=True):
            assert 0.5 * first <= share <= 2 * first
    assert sae.shares != pytest.approx(full.LEVEL_SHARES, abs=0.01)
    full.K = 2
    _, latents = sae.climb(torch.randn(500, 6), training=True)
    assert (latents > 0).sum().item() == 1000


def test_a_new_edge_is_not_pruned_for_what_the_old_one_carried(full: Any):
    full.UNUSED, full.MOST_MOVED = 0.3, 2 / 12
    sae = small_tree(full)
    optimizer, silent = optimizer_of(sae), torch.arange(12.0)
    sae.rate.copy_(torch.tensor([0.2, 0.001, 0.2, 0.0, 0.2, 0.002, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]))
    sae.rate[6:10] = 0.5  # level 1 is used most
    sae.carried.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.001, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0]))
    full.adapt_ratios(sae, optimizer, silent)
    assert sae.sizes == [4, 6, 2]
    moved = [place for place, latent in enumerate(silent.tolist()) if latent in (1, 3)]
    assert all(4 <= place < 10 for place in moved)
    full.prune(sae)
    assert sae.open[moved].all()
    still = silent.tolist().index(5.0)  # it has long had its parent, and carried nothing
    assert not sae.open[still]


def test_paths_are_not_pruned_at_the_event_in_which_levels_last_change(full: Any):
    sae = small_tree(full)
    optimizer, silent = optimizer_of(sae), torch.zeros(12)
    full.ADAPTIVE_RATIOS = full.ADAPTIVE_SPARSITY = False
    closed = {}
    for event in range(1, full.EVENTS + 1):
        sae.carried[:10] = torch.rand(10)  # other edges carry least each time
        full.PRUNE_BELOW = 0.8
        before = sae.open.sum().item()
        full.change_tree(sae, optimizer, silent, event)
        closed[event / full.EVENTS] = before - sae.open.sum().item()
    assert {progress for progress, count in closed.items() if count} <= {0.55, 0.6, 0.65, 0.7}
    assert closed[0.55] > 0


def test_the_tree_is_fixed_at_a_tenth_of_the_training(full: Any):
    """Children choose their parents then and keep them, whatever they fire with later."""
    full.ADAPTIVE_RATIOS = full.ADAPTIVE_SPARSITY = False
    sae = small_tree(full)
    optimizer, silent = optimizer_of(sae), torch.zeros(12)
    parents = [sae.parent.clone()]
    for event in range(1, full.EVENTS + 1):
        sae.together.copy_(torch.rand(12, 12, generator=torch.Generator().manual_seed(event)))
        sae.rate.copy_(sae.together.diagonal())
        full.change_tree(sae, optimizer, silent, event)
        parents.append(sae.parent.clone())
    fixed = round(0.1 * full.EVENTS)
    assert all(torch.equal(parent, parents[0]) for parent in parents[:fixed])
    assert not torch.equal(parents[fixed], parents[0])
    assert all(torch.equal(parent, parents[fixed]) for parent in parents[fixed:])


@pytest.mark.parametrize("off", ["ADAPTIVE_RATIOS", "ADAPTIVE_SPARSITY", "PRUNING"])
def test_a_switched_off_mechanism_changes_nothing(full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str):
    """The constants make much change in a short training; with one mechanism off, the other two still change."""
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    full.PRUNE_BELOW, full.UNUSED, full.SMALLEST_LEVEL = 1.0, 1.0, 0.19  # the leaves can fire all their share
    setattr(full, off, False)
    full.main(tmp_path)
    rows = [row.own for row in results.read_metrics(tmp_path)]
    shown = {"ADAPTIVE_RATIOS": "level_0_size", "ADAPTIVE_SPARSITY": "level_0_l0", "PRUNING": "open_edges"}
    for switch, name in shown.items():
        values = [row[name] or 0 for row in rows]
        changed = max(values) - min(values)
        # a share of the last batch is rounded otherwise
        assert (changed < 0.01) if switch == off else (changed > 0.02), switch


def test_levels_and_edges_are_settled_in_time(modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Levels settle by half of the training, edges later; the thresholds have the rest of it to settle."""
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
