"""The template of absorption_prevention_sae: each step of its plan trains, and each mechanism works as described."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, K, of_idea, stream

from agent import ideas
from agent.lab import activations, checkpoint, results

IDEA = "absorption_prevention_sae"
PLAN = ideas.load(IDEA).plan


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    return of_idea(tmp_path_factory.mktemp("steps"), small_model, IDEA)


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")


class Trained:
    """An SAE of a module with its optimizer and its usage record, each after a step on `x [batch, d_in]`."""

    def __init__(self, module: Any, model: Path) -> None:
        torch.manual_seed(0)
        data = stream(model)
        self.module, self.batches = module, iter(data)
        self.sae = module.ScheduledSAE(data.d_in, D_SAE, data.mean)
        self.usage = module.Usage(D_SAE, data.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=5e-3)
        self.step(torch.empty(0, dtype=torch.long))
        self.usage.silent.zero_()  # nothing is dead

    def step(self, dead: torch.Tensor) -> None:
        self.x = next(self.batches)
        loss, self.latents, _ = self.module.compute_loss(self.sae, self.x, dead)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.constrain(self.sae)
        self.latents = self.latents.detach()
        self.usage.update(self.latents > 0)

    def kill(self, *latents: int) -> None:
        """Silence them for ever."""
        with torch.no_grad():
            self.sae.W_enc[:, list(latents)] = 0.0
            self.sae.b_enc[list(latents)] = -1.0
        self.usage.restart(torch.tensor(latents))

    def moments(self, latent: int) -> torch.Tensor:
        """What Adam remembers of a latent."""
        state, sae = self.optimizer.state, self.sae
        places = ((sae.W_enc, (slice(None), latent)), (sae.W_dec, latent), (sae.b_enc, [latent]))
        return torch.cat([state[p][name][place] for p, place in places for name in ("exp_avg", "exp_avg_sq")])

    def resample(self) -> None:
        self.module.resample(self.sae, self.optimizer, self.usage, self.x, self.latents)

    def merge(self) -> None:
        self.module.merge_duplicates(self.sae, self.optimizer, self.usage)


@pytest.fixture
def trained(modules: dict[str, Any], small_model: Path) -> Trained:
    return Trained(modules["full"], small_model)


def copy(sae: Any, source: int, target: int, noise: float = 0.0) -> None:
    """Make a latent a duplicate of another, with noise of that norm on its decoder row."""
    with torch.no_grad():
        sae.W_enc[:, target], sae.b_enc[target] = sae.W_enc[:, source], sae.b_enc[source]
        away = torch.nn.functional.normalize(torch.randn(sae.W_dec.shape[1]), dim=0)
        sae.W_dec[target] = torch.nn.functional.normalize(sae.W_dec[source] + noise * away, dim=0)


@pytest.mark.parametrize("name", [step.name for step in PLAN])
@pytest.mark.usefixtures("smoke")
@pytest.mark.slow
def test_each_step_trains_and_leaves_a_checkpoint(modules: dict[str, Any], tmp_path: Path, name: str):
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    assert set(loaded.extra) == {"merged", "resampled"}
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    rows = results.read_metrics(tmp_path)
    assert set(rows[0].own) == {"k", "dead_fraction", "resampled", "merged"}
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse


def test_the_plan_uses_every_mechanism_and_leaves_the_schedule_out_once():
    used = [set(step.parameters) for step in PLAN]
    assert len(used) == 5
    assert {"k_start", "adaptive_share", "window_intervals", "resample", "merge"} in used
    assert {"adaptive_share", "window_intervals", "resample", "merge"} in used


@pytest.mark.usefixtures("smoke")
def test_with_everything_off_it_equals_the_baseline_exactly(modules: dict[str, Any], tmp_path: Path):
    for name in ("off", "baseline"):
        (tmp_path / name).mkdir()
        modules[name].main(tmp_path / name)
    ours, theirs = (checkpoint.load(tmp_path / name / "checkpoint").tensors for name in ("off", "baseline"))
    for name in ("W_dec", "W_enc", "b_dec", "b_enc", "threshold"):
        assert torch.equal(ours[name], theirs[name]), name


# The schedule


def test_k_falls_linearly_to_its_target(modules: dict[str, Any]):
    module = modules["schedule"]
    falling = [module.scheduled_k(module.SCHEDULE_END * share) for share in (0, 0.25, 0.5, 0.75, 1)]
    start = module.K_START
    assert falling == pytest.approx([K * (1 + (start - 1) * left) for left in (1, 0.75, 0.5, 0.25, 0)])
    assert start > 1
    assert {module.scheduled_k(progress) for progress in (module.SCHEDULE_END, 0.8, 1.0)} == {K}
    assert {modules["no_schedule"].scheduled_k(progress / 10) for progress in range(11)} == {K}


def test_a_training_starts_dense_and_its_l0_ends_at_the_target(
    modules: dict[str, Any], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_DRIVEN", "1")
    modules["full"].main(tmp_path)
    rows = results.read_metrics(tmp_path)
    l0s = [row.l0 for row in rows if row.l0 is not None]
    assert l0s[0] > 1.4 * K
    end = int(modules["full"].SCHEDULE_END * len(rows)) + 1
    assert l0s[end:] == pytest.approx([K] * len(l0s[end:]), rel=1e-3)
    loaded, data = checkpoint.load(tmp_path / "checkpoint"), stream(small_model)
    held = torch.cat([x for x, _ in zip(data, range(8), strict=False)]) / data.manifest.scale
    assert (loaded.encode(held) != 0).sum(1).float().mean().item() == pytest.approx(K, rel=0.05)


# The adaptive target


def bends(module: Any, errors: list[float], progress: float = 0.0) -> list[float]:
    """Return K at `progress` after each error, relative to the schedule's, in a training with as many steps."""
    target, scheduled, ratios = (
        module.AdaptiveTarget(len(errors), torch.device("cpu")),
        module.scheduled_k(progress),
        [],
    )
    for error in errors:
        target.observe(torch.tensor(error))
        ratios.append(target.k(progress) / scheduled)
    return ratios


def jumping(to: float) -> list[float]:
    return [1.0] * 900 + [to] * 5 + [1.0] * 95


def test_k_follows_its_schedule_while_the_error_falls_as_in_a_training(modules: dict[str, Any]):
    """The error falls steeply, then ever slower; averages that remember the start would call that off its trend."""
    exponential = [0.06 + 0.9 * 0.95**step for step in range(1, 1001)]
    power = [0.07 + 20 / step for step in range(1, 1001)]
    for errors in (exponential, power, [1.0] * 1000):
        assert bends(modules["full"], errors) == pytest.approx([1] * 1000, abs=0.05)


def test_k_rises_with_an_error_above_its_trend_and_falls_with_one_below(modules: dict[str, Any]):
    module = modules["full"]
    share = module.ADAPTIVE_SHARE
    assert 1.01 < max(bends(module, jumping(1.1))) < 1 + share
    assert 1 - share < min(bends(module, jumping(0.9))) < 0.99
    assert max(bends(module, jumping(50.0))) == pytest.approx(1 + share)  # bounded
    assert min(bends(module, jumping(0.02))) == pytest.approx(1 - share)
    falling = [step**-0.5 for step in range(1, 1001)]
    rising = falling[:500] + [falling[500] * 1.003**step for step in range(500)]  # sparsity begins to hurt
    assert max(bends(module, rising)[500:]) > 1.05


def test_the_feedback_is_zero_when_the_schedule_ends(modules: dict[str, Any]):
    module = modules["full"]
    up = jumping(50.0)
    most = [max(bends(module, up, module.SCHEDULE_END * share)) - 1 for share in (0, 0.5, 1, 1.5)]
    assert most == pytest.approx([module.ADAPTIVE_SHARE, module.ADAPTIVE_SHARE / 2, 0, 0])
    assert max(bends(modules["denser_start"], up)) == 1  # off


def test_k_is_never_below_its_target(modules: dict[str, Any]):
    module = modules["no_schedule"]
    assert min(bends(module, jumping(0.02))) == 1
    assert max(bends(module, jumping(50.0))) == pytest.approx(1 + module.ADAPTIVE_SHARE)


# Windows


def used(usage: Any, every: dict[int, int], tokens: int) -> None:
    """Let each latent fire once in so many tokens."""
    for start in range(0, tokens, 100):
        token = torch.arange(start, start + 100)
        active = torch.zeros(100, D_SAE, dtype=torch.bool)
        for latent, apart in every.items():
            active[:, latent] = token % apart == apart - 1
        usage.update(active)


def test_a_latents_window_is_in_proportion_to_its_own_interval(modules: dict[str, Any]):
    module = modules["full"]
    usage = module.Usage(D_SAE, torch.device("cpu"))
    low, high = (bound * module.DEAD_AFTER for bound in module.WINDOW_BOUNDS)
    assert usage.windows() == pytest.approx(torch.full((D_SAE,), module.DEAD_AFTER), rel=1e-4)
    used(usage, {0: 10, 1: 600, 2: 1200, 3: 6000}, 120_000)
    assert usage.interval[:3].tolist() == pytest.approx([10, 600, 1200], rel=0.01)
    n = module.WINDOW_INTERVALS
    assert usage.windows()[:4].tolist() == pytest.approx([low, n * 600, n * 1200, high], rel=0.02)


def test_a_rare_latent_may_be_silent_for_longer_than_a_common_one(modules: dict[str, Any]):
    for name, dead in (("full", [True, False]), ("schedule", [False, False])):
        usage = modules[name].Usage(D_SAE, torch.device("cpu"))
        used(usage, {0: 10, 1: 1500}, 60_000)
        used(usage, {}, int(0.7 * modules[name].DEAD_AFTER))  # half of it is the common one's window
        assert usage.dead()[:2].tolist() == dead
        used(usage, {}, int(0.7 * modules[name].DEAD_AFTER))
        assert usage.dead()[:2].tolist() == [True, name == "schedule"]


# Resampling


def test_a_dead_latent_restarts_on_the_residual_of_a_badly_reconstructed_input(trained: Trained):
    trained.x = trained.x.clone()
    trained.x[7] += 50 * torch.randn(trained.x.shape[1])  # a loss far above the others'
    residual = trained.x - trained.sae.decode(trained.latents).detach()
    others = {name: value.detach().clone() for name, value in trained.sae.named_parameters()}
    trained.kill(3)
    trained.resample()
    sae, alive = trained.sae, [i for i in range(D_SAE) if i != 3]
    direction = torch.nn.functional.normalize(residual[7], dim=0)
    torch.testing.assert_close(sae.W_dec[3], direction)
    norm = trained.module.RESAMPLE_SCALE * others["W_enc"][:, alive].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, 3], norm * direction)
    assert sae.b_enc[3] == 0
    assert sae.resampled == 1
    assert torch.equal(sae.W_dec[alive], others["W_dec"][alive])
    assert torch.equal(sae.W_enc[:, alive], others["W_enc"][:, alive])
    assert torch.equal(sae.b_enc[alive], others["b_enc"][alive])


def test_inputs_are_drawn_in_proportion_to_their_squared_loss(trained: Trained):
    """Half of the inputs have a loss of 1, half of 3; in three sets of draws, nine in ten should be of the latter."""
    rows = torch.eye(trained.x.shape[1])[torch.arange(BATCH) % 2]
    trained.x, trained.latents = (
        rows * torch.tensor([1.0, 3.0**0.5])[torch.arange(BATCH) % 2, None],
        trained.latents * 0,
    )
    drawn = torch.zeros(2)
    with torch.no_grad():
        trained.sae.b_dec.zero_()
    for _ in range(20):
        trained.kill(*range(50))
        trained.resample()
        drawn += trained.sae.W_dec[:50, :2].detach().round().sum(0)
    assert drawn.sum() == 1000
    assert drawn[1] / 1000 == pytest.approx(0.9, abs=0.05)


def test_adam_forgets_a_resampled_latent_and_no_other(trained: Trained):
    before = {latent: trained.moments(latent) for latent in (2, 3)}
    assert before[3].any()
    trained.kill(3)
    trained.resample()
    assert not trained.moments(3).any()
    assert torch.equal(trained.moments(2), before[2])


def test_resampled_latents_come_alive(trained: Trained):
    dead, nothing = list(range(20)), torch.empty(0, dtype=torch.long)
    for _ in range(50):
        trained.step(nothing)
    trained.kill(*dead)
    for _ in range(10):  # the dead latents' loss alone does not wake what has no encoder
        trained.step(torch.tensor(dead))
    assert not trained.latents[:, dead].any()
    trained.resample()
    assert trained.usage.dead()[dead].all()  # until they fire
    for _ in range(50):
        trained.step(trained.usage.dead().nonzero().flatten())
    assert trained.usage.dead()[dead].sum() < 10  # most have fired


def test_a_latent_is_not_resampled_again_too_soon(trained: Trained):
    trained.kill(3)
    trained.resample()
    row = trained.sae.W_dec[3].detach().clone()
    trained.resample()
    assert trained.sae.resampled == 1
    assert torch.equal(trained.sae.W_dec[3], row)
    trained.usage.update(torch.zeros(trained.module.DEAD_AFTER, D_SAE, dtype=torch.bool))
    trained.resample()
    assert trained.sae.resampled > 1


# Merging


def test_near_duplicates_become_one_with_weights_averaged_by_use(trained: Trained):
    sae = trained.sae
    copy(sae, 5, 9, noise=0.2)
    with torch.no_grad():
        sae.W_enc[:, 9] += 0.1
        sae.b_enc[9] = 0.5
    trained.usage.interval[5], trained.usage.interval[9] = 100.0, 300.0  # the first fires three times as often
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    trained.merge()
    assert sae.merged == 1
    W_dec, W_enc, b_enc = before["W_dec"], before["W_enc"], before["b_enc"]
    mixed = torch.nn.functional.normalize(0.75 * W_dec[5] + 0.25 * W_dec[9], dim=0)
    torch.testing.assert_close(sae.W_dec[5], mixed)
    torch.testing.assert_close(sae.W_enc[:, 5], 0.75 * W_enc[:, 5] + 0.25 * W_enc[:, 9])
    torch.testing.assert_close(sae.b_enc[5], 0.75 * b_enc[5] + 0.25 * b_enc[9])
    assert not trained.moments(5).any()
    assert not sae.pre_activations(trained.x)[:, 9].any()
    others = [i for i in range(D_SAE) if i not in (5, 9)]
    assert torch.equal(sae.W_dec[others], W_dec[others])
    assert torch.equal(sae.W_enc[:, others], W_enc[:, others])


def test_merged_duplicates_disappear_and_are_resampled(trained: Trained):
    for target in (20, 21, 22):
        copy(trained.sae, 5, target)
    trained.usage.interval[5] = 1.0
    trained.merge()
    assert trained.sae.merged == 3
    assert trained.usage.dead().nonzero().flatten().tolist() == [20, 21, 22]
    trained.resample()
    assert trained.sae.resampled == 3
    cosines = trained.sae.W_dec[[20, 21, 22]] @ trained.sae.W_dec[5]
    assert cosines.max() < trained.module.MERGE_ABOVE
    trained.merge()
    assert trained.sae.merged == 3


def test_a_merged_latent_fires_where_its_group_fired(trained: Trained):
    copy(trained.sae, 5, 9, noise=0.1)
    fired = trained.sae.pre_activations(trained.x)[:, [5, 9]].amax(1) > 0
    trained.usage.interval[[5, 9]] = 100.0
    trained.merge()
    now = trained.sae.pre_activations(trained.x)[:, 5] + trained.sae.pre_activations(trained.x)[:, 9] > 0
    assert torch.equal(now, fired)


def test_a_chain_of_duplicates_is_not_merged_into_one(trained: Trained):
    """The ends of a chain are too far apart to be duplicates of each other."""
    sae, angle = trained.sae, 0.4  # radians; cos 0.4 = 0.92, cos 0.8 = 0.70
    with torch.no_grad():
        for place, latent in enumerate((1, 2, 3)):
            turned = torch.tensor(angle * place)
            sae.W_dec[latent] = (
                turned.cos() * torch.eye(sae.W_dec.shape[1])[0] + turned.sin() * torch.eye(sae.W_dec.shape[1])[1]
            )
    trained.usage.interval[[1, 2, 3]] = torch.tensor([100.0, 200.0, 300.0])
    trained.merge()
    assert sae.merged == 1  # the second joins the first; the third keeps its place
    assert trained.usage.dead()[[1, 2, 3]].tolist() == [False, True, False]


def test_dead_latents_and_different_ones_are_not_merged(trained: Trained):
    trained.merge()
    assert trained.sae.merged == 0
    copy(trained.sae, 5, 9)
    trained.kill(9)
    trained.merge()
    assert trained.sae.merged == 0


@pytest.mark.usefixtures("smoke")
def test_the_counts_of_merged_and_resampled_latents_are_saved(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = modules["full"]
    monkeypatch.setattr(module, "MERGE_ABOVE", 0.5)  # so that some latents are near enough
    module.main(tmp_path)
    loaded, last = checkpoint.load(tmp_path / "checkpoint"), results.read_metrics(tmp_path)[-1]
    for name in ("merged", "resampled"):
        assert loaded.extra[name].item() > 0
        assert last.own[name] == loaded.extra[name].item()


def test_merging_and_resampling_stop_before_the_end(modules: dict[str, Any]):
    looked = [step for step in range(1000) if modules["full"].looks(step, 1000)]
    assert looked[0] == 50
    assert looked[-1] == 800
    assert len(looked) == 16
