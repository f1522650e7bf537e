"""The guard inside a training, metrics.jsonl, and the SAE that the baseline trains."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import D_SAE, HOOK, TOKENS, K, experiment, load, train
from torch import nn

from agent.lab import activations, results, training, verdicts
from agent.lab.errors import UserError
from agent.lab.training import TrainingGuard, TrainingStopped


class OneNumber(nn.Module):
    """The least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def move(self) -> None:
        with torch.no_grad():
            self.weight += 1


@pytest.fixture
def sae() -> OneNumber:
    return OneNumber()


@pytest.fixture
def guard(small_model: Path, harvest: Any, sae: OneNumber, tmp_path: Path) -> TrainingGuard:  # noqa: ARG001
    return make_guard(small_model, sae, tmp_path, steps=300)


def make_guard(model: Path, sae: nn.Module, out_dir: Path, steps: int, **settings: Any) -> TrainingGuard:
    folder, manifest = activations.ensure_harvest(str(model), HOOK, TOKENS)
    data = activations.stored_stream(folder, manifest, steps * 10, 10, seed=7)
    return TrainingGuard(out_dir, sae, data, model=str(model), hook_name=HOOK, settings=settings)


def step(
    guard: TrainingGuard,
    loss: float = 1.0,
    grad_norm: float = 1.0,
    tokens: int = 10,
    own: dict[str, torch.Tensor] | None = None,
) -> None:
    numbers = {"l0": 8.0, "mse": 0.5, "alive_fraction": 1.0, "grad_norm": grad_norm, "loss": loss}
    named = {name: torch.tensor(value) for name, value in numbers.items()}
    guard.step(tokens=tokens, learning_rate=1e-3, own=own, **named)


def go_on(guard: TrainingGuard, steps: int, **changes: float) -> None:
    for _ in range(steps):
        step(guard, **changes)


def stopped_after(guard: TrainingGuard, **changes: float) -> verdicts.Verdict:
    """The verdict on a training that goes well for ten steps."""
    go_on(guard, 10)
    with pytest.raises(TrainingStopped) as caught:
        go_on(guard, 10, **changes)
    return caught.value.verdict


# What stops a training


@pytest.mark.parametrize("changes", [{"loss": math.nan}, {"loss": math.inf}, {"grad_norm": math.nan}])
def test_a_number_that_is_not_finite_stops_it_and_leaves_its_row(
    guard: TrainingGuard, tmp_path: Path, changes: dict[str, float]
):
    verdict = stopped_after(guard, **changes)
    assert verdict.name == "nan"
    (name,) = changes
    assert verdict.evidence == f"{name} was not finite at step 12"
    last = results.read_metrics(tmp_path)[-1]
    assert (last.step, getattr(last, name)) == (12, None)
    assert verdicts.judge_metrics(results.read_metrics(tmp_path)) == verdict  # the driver says what the guard said


def test_a_parameter_that_is_not_finite_stops_it(guard: TrainingGuard, sae: OneNumber):
    with torch.no_grad():
        sae.weight[1] = math.inf
    with pytest.raises(TrainingStopped, match="a parameter was not finite at step 3"):
        go_on(guard, 3)


def test_a_loss_above_the_ceiling_stops_it(guard: TrainingGuard, tmp_path: Path):
    verdict = stopped_after(guard, loss=1e9)
    assert verdict.name == "loss_ceiling"
    assert "1e+06" in verdict.evidence
    assert verdicts.judge_metrics(results.read_metrics(tmp_path)) == verdict


def test_a_training_without_a_step_is_no_training(guard: TrainingGuard):
    with pytest.raises(TrainingStopped, match="zero_steps: training ended without a step"):
        guard.close(D_SAE)


def test_a_training_that_moved_nothing_is_no_training(guard: TrainingGuard):
    go_on(guard, 5)
    with pytest.raises(TrainingStopped, match="zero_steps: no parameter moved in 5 steps"):
        guard.close(D_SAE)


def test_more_latents_a_token_than_there_are_is_refused(small_model: Path, sae: OneNumber, tmp_path: Path):
    with pytest.raises(UserError, match="K 65 is more than D_SAE 64: lower K or raise D_SAE"):
        make_guard(small_model, sae, tmp_path, 10, K=65, D_SAE=64)


# What a training leaves


def test_a_training_that_went_well_is_recorded(guard: TrainingGuard, sae: OneNumber, small_model: Path):
    for i, x in zip(range(7), guard.stream, strict=False):
        step(guard, loss=1.0 + i, tokens=len(x) // 2)  # what it was served is recorded, not what it says
    sae.move()
    record = guard.close(D_SAE)
    assert (record.steps, record.tokens, record.d_sae, record.seed, record.layer) == (7, 70, D_SAE, 7, 1)
    assert record.model == str(small_model)
    assert record.final_loss == pytest.approx(7.0)  # the mean over the steps since the line before


@pytest.mark.parametrize("steps", [3, 99, 250, 1000, 2345])
def test_the_number_of_lines_hardly_depends_on_the_number_of_steps(
    small_model: Path, sae: OneNumber, tmp_path: Path, steps: int
):
    guard = make_guard(small_model, sae, tmp_path, steps)
    go_on(guard, steps)
    sae.move()
    guard.close(D_SAE)
    rows = results.read_metrics(tmp_path)
    assert min(steps, training.ROWS) <= len(rows) <= 2 * training.ROWS
    assert rows[-1].step == steps
    assert [row.step for row in rows] == sorted({row.step for row in rows})


def test_a_line_holds_means_since_the_line_before(small_model: Path, sae: OneNumber, tmp_path: Path):
    guard = make_guard(small_model, sae, tmp_path, steps=300)
    for i in range(6):
        step(guard, loss=float(i))
    assert [row.loss for row in results.read_metrics(tmp_path)] == [1.0, 4.0]


def test_a_line_holds_what_the_experiment_watches_besides(small_model: Path, sae: OneNumber, tmp_path: Path):
    guard = make_guard(small_model, sae, tmp_path, steps=300)
    for i in range(6):
        step(guard, own={"tier_0_l0": torch.tensor(float(i)), "odd": torch.tensor(float("inf"))})
    assert [row.own for row in results.read_metrics(tmp_path)] == [
        {"tier_0_l0": 1.0, "odd": None},
        {"tier_0_l0": 4.0, "odd": None},
    ]


# Reading metrics.jsonl


def lines(count: int) -> list[str]:
    row = {"step": 1, "tokens": 10, "loss": 1.0, "l0": 8.0, "mse": 0.5, "alive_fraction": 1.0, "grad_norm": 1.0}
    return [json.dumps(row | {"step": i, "learning_rate": 1e-3, "seconds": 0.1}) for i in range(1, count + 1)]


def test_a_last_line_cut_short_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines(3))[:-20])
    assert [row.step for row in results.read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("damage", ["{", "[]", '{"step": 2}', "\x00\xff", ""])
def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path: Path, damage: str):
    written = lines(3)
    written[1] = damage
    (tmp_path / "metrics.jsonl").write_text("\n".join(written) + "\n")
    with pytest.raises(results.BadResults, match=r"metrics\.jsonl line 2 is damaged"):
        results.read_metrics(tmp_path)


def test_a_run_that_has_not_begun_has_no_lines(tmp_path: Path):
    assert results.read_metrics(tmp_path) == []


# The experiment's constants


def test_constants_are_the_plain_upper_case_values():
    taken = {"K": 16, "RATE": 1e-3, "NAME": "x", "ON": True, "SIZES": [1, 2]}
    left = {"model": 1, "K_of": 2, "Path": Path, "MODULE": json, "TENSOR": torch.zeros(1), "F": len, "__name__": "x"}
    assert training.constants(taken | left) == taken


# Results that are not finite


def test_what_is_not_finite_becomes_null_and_is_listed():
    value = {"a": {"b": [1.0, math.nan, {"c": math.inf}]}, "n": -math.inf, "text": "nan", "whole": 3}
    replaced, paths = results.null_non_finite(value)
    assert replaced == {"a": {"b": [1.0, None, {"c": None}]}, "n": None, "text": "nan", "whole": 3}
    assert paths == ["a.b.1", "a.b.2.c", "n"]


# The baseline SAE


@pytest.fixture(scope="module")
def baseline(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ARG001
    """The shipped experiment as a module, its stream, and its SAE trained."""
    module = load(experiment(tmp_path_factory.mktemp("baseline"), small_model))
    data = activations.stream(str(small_model), HOOK, tokens=TOKENS, batch=module.BATCH, seed=0)
    return module, data, train(module, data)


@torch.no_grad()
def test_inference_keeps_the_sparsity_of_training(baseline: Any):
    _, data, sae = baseline
    active = torch.cat([sae.encode(x) > 0 for x in data]).sum(1).float()
    assert active.mean().item() == pytest.approx(K, rel=0.05)


@torch.no_grad()
def test_training_keeps_k_latents_a_token_over_the_batch(baseline: Any):
    _, data, sae = baseline
    latents = sae.select(sae.pre_activations(next(iter(data)))).to_dense()
    assert (latents > 0).sum() == K * len(latents)
    assert (latents > 0).sum(1).unique().numel() > 1  # over the batch, not for each token


def test_decoder_rows_keep_norm_one(baseline: Any):
    torch.testing.assert_close(baseline[2].W_dec.norm(dim=1), torch.ones(D_SAE))


def test_dead_latents_learn_from_what_the_others_left(baseline: Any):
    module, data, sae = baseline
    x = next(iter(data))
    pre = sae.pre_activations(x)
    residual = (x - sae.decode(sae.select(pre))).detach()
    dead = torch.tensor([3, 50])
    module.auxiliary_loss(sae, pre, residual, dead).backward()
    moved = sae.W_dec.grad.abs().sum(1).nonzero().flatten()
    assert set(moved.tolist()) <= set(dead.tolist())
    assert len(moved) > 0
    assert module.auxiliary_loss(sae, pre, residual, torch.empty(0, dtype=torch.long)) == 0
