"""The template of use_sorted_matryoshka_sae: each step of its plan trains, and each mechanism works as described."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, K, of_idea, stream

from agent import ideas
from agent.ideas import Fixed
from agent.lab import checkpoint, results

IDEA = "use_sorted_matryoshka_sae"
LOADED = ideas.load(IDEA)
PLAN = {step.name: step for step in LOADED.plan}
NOTHING_DEAD = torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    return of_idea(tmp_path_factory.mktemp("steps"), small_model, IDEA)


class Trained:
    """An SAE with its optimizer after one step, by which Adam has moments."""

    def __init__(self, module: Any, model: Path) -> None:
        torch.manual_seed(0)
        data = stream(model)
        self.x = next(iter(data))
        self.sae = module.ScheduledSAE(data.d_in, D_SAE, data.mean)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=5e-3)
        module.compute_loss(self.sae, self.x, NOTHING_DEAD)[0].backward()
        self.optimizer.step()

    def of_latents(self) -> torch.Tensor:
        """Return all that belongs to each latent, Adam's moments included, `[d_sae, n]`."""
        parts = []
        for parameter, axis in ((self.sae.W_enc, 1), (self.sae.W_dec, 0), (self.sae.b_enc, 0)):
            state = self.optimizer.state[parameter]
            for tensor in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]):
                parts.append(tensor.movedim(axis, 0).reshape(D_SAE, -1))
        return torch.cat(parts, dim=1).clone()


@pytest.mark.parametrize("name", PLAN)
def test_each_step_trains_and_leaves_its_prefixes_in_the_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    ends = [round(share * D_SAE) for share in modules[name].PREFIXES]
    assert list(loaded.header.groups.values()) == list(zip([0, *ends[:-1]], ends, strict=True))
    rows = results.read_metrics(tmp_path)
    first, last = rows[0].mse, rows[-1].mse
    assert first
    assert last
    assert last < first
    assert list(rows[-1].own) == [*(f"{group}_l0_share" for group in loaded.header.groups), "k"]


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


def test_each_ablation_lacks_one_part_of_the_first_step():
    everything = PLAN["six_prefixes"].parameters
    for name in ("four_prefixes", "no_falling_k", "no_sorting", "steady_rate"):
        changed = [key for key, value in PLAN[name].parameters.items() if value != everything[key]]
        assert len(changed) == 1
        assert PLAN[name].parameters.keys() == everything.keys()


# Sorting by use


def test_latents_move_with_all_that_belongs_to_them(modules: dict[str, Any], small_model: Path):
    trained, use = Trained(modules["six_prefixes"], small_model), torch.rand(D_SAE)
    before = trained.of_latents()
    order = modules["six_prefixes"].sort_by_use(trained.sae, trained.optimizer, use)
    assert torch.equal(trained.of_latents(), before[order])
    assert torch.equal(use[order], use.sort(descending=True).values)


def test_sorting_changes_no_reconstruction(modules: dict[str, Any], small_model: Path):
    trained = Trained(modules["six_prefixes"], small_model)
    with torch.no_grad():
        before = trained.sae.decode(trained.sae.encode(trained.x))
        order = modules["six_prefixes"].sort_by_use(trained.sae, trained.optimizer, torch.rand(D_SAE))
        assert not torch.equal(order, torch.arange(D_SAE))
        torch.testing.assert_close(trained.sae.decode(trained.sae.encode(trained.x)), before)


def test_the_exported_latents_are_in_the_order_of_their_use(
    modules: dict[str, Any], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Within the half of the latents that is in the largest prefix alone nothing else gives them an order."""
    monkeypatch.setenv("SAE_AGENT_DRIVEN", "1")  # the whole training, without the evaluation
    ratio = {}
    for name in ("six_prefixes", "no_sorting"):
        (tmp_path / name).mkdir()
        modules[name].main(tmp_path / name)
        loaded = checkpoint.load(tmp_path / name / "checkpoint")
        with torch.no_grad():
            fired = torch.stack([(loaded.encode(x) > 0).sum(0) for x in stream(small_model) if len(x) == BATCH]).sum(0)
        start, end = loaded.header.groups["prefix_5"]
        earlier, later = fired[start:end].float().chunk(2)
        ratio[name] = (earlier.mean() / later.mean()).item()
    assert ratio["six_prefixes"] > 1.5
    assert ratio["no_sorting"] < 1.2


# The schedules


def test_k_falls_linearly_to_its_target_at_half_of_the_training(modules: dict[str, Any]):
    scheduled = modules["six_prefixes"].scheduled_k
    assert [scheduled(progress) for progress in (0, 0.25, 0.5, 0.75)] == pytest.approx([4 * K, 2.5 * K, K, K])
    assert {modules["no_falling_k"].scheduled_k(progress) for progress in (0, 0.25, 1)} == {K}


def test_training_follows_the_schedule_and_ends_at_the_target(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules["six_prefixes"].main(tmp_path)
    rows = results.read_metrics(tmp_path)
    for row in (rows[0], rows[-1]):
        assert row.l0 == pytest.approx(row.own["k"], rel=0.02)
    assert rows[0].own["k"] == pytest.approx(4 * K, rel=0.1)
    assert rows[-1].own["k"] == K


@pytest.mark.parametrize("model", ["tiny-lm", "synth2k"])
def test_the_learning_rate_falls_as_the_baselines_unless_a_step_says_otherwise(model: str):
    fixed = Fixed(model=model)
    (baseline,) = [line for line in ideas.render_baseline(fixed).splitlines() if line.startswith("DECAY = ")]
    off = PLAN["six_prefixes"].model_copy(update={"parameters": {}})
    decays = [ideas.render_step(LOADED, step, fixed) for step in (off, PLAN["no_sorting"], PLAN["steady_rate"])]
    assert f"\n{baseline}\n" in decays[0]
    assert "\nDECAY = 0.3333  #" in decays[1]
    assert "\nDECAY = 0.001  #" in decays[2]
