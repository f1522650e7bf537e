"""Each kind of baseline trains as SAELens' own trainer of that kind does: one step, and a short training."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_lab import D_MODEL, D_SAE, experiment, load, stream
from torch import Tensor

from agent.lab import checkpoint, results
from agent.lab.architectures import BASELINES, BaselineName
from agent.lab.defaults import SMOKE_TOKENS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sae_lens_trainer
from sae_lens.saes.sae import TrainStepInput
from sae_lens_alike import DIFFERENCES, Alike

ALL, NONE = frozenset(DIFFERENCES), frozenset[str]()
OTHERWISE = {"gated": {"W_dec", "b_dec"}, "jumprelu": {"threshold"}}  # gradients that "gate" and "window" change
BATCH = SMOKE_TOKENS // 40
NAMES = {"parametrizations.threshold.original": "threshold"}


class Step(NamedTuple):
    """A training step's loss, relative to the mean squared error, and its gradients by SAELens' names."""

    loss: Tensor
    gradients: dict[str, Tensor]


def constants_of(module: Any, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.isupper()} | others


def knob_of(module: Any, kind: BaselineName) -> float:
    return getattr(module, BASELINES[kind].knob)


def somewhere(module: Any, kind: BaselineName) -> Any:
    """Return the experiment's SAE away from its start, where no two of its terms happen to be equal."""
    torch.manual_seed(0)
    sae = module.SAE(D_MODEL, D_SAE, torch.randn(D_MODEL))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if kind != "relu":
            module.constrain(sae)
    return sae


def our_step(module: Any, sae: Any, x: Tensor, dead: Tensor, progress: float) -> Step:
    """Take the experiment's step, at `progress` if its loss changes with it."""
    warms_up = any(name.endswith("_WARMUP") for name in vars(module))
    loss, _, _ = module.compute_loss(sae, x, dead, *[progress] * warms_up)
    loss.backward()
    gradients: dict[str, Any] = {name.removeprefix("log_"): p.grad for name, p in sae.named_parameters()}
    return Step(loss.detach(), gradients)


def their_step(alike: Alike, x: Tensor, dead: Tensor, progress: float) -> Step:
    """Take SAELens' step."""
    mask = torch.zeros(D_SAE, dtype=torch.bool).index_fill(0, dead, True)
    coefficients: Any = {name: c.value * progress for name, c in alike.sae.get_coefficients().items()}
    output = alike.sae.training_forward_pass(TrainStepInput(x, coefficients, mask, 0, False))
    output.loss.backward()
    times = 1 if alike.loss_is_mean else alike.times
    gradients = {NAMES.get(name, name): p.grad / times for name, p in alike.sae.named_parameters()}
    return Step(output.loss.detach() / times, gradients)


def steps(kind: BaselineName, folder: Path, left: frozenset[str], dead: Tensor, progress: float) -> tuple[Step, Step]:
    """Return our step and SAELens', from the same weights on the same activations `[64, d_in]`."""
    module = load(experiment(folder, "tiny-lm", baseline=kind))
    sae = somewhere(module, kind)
    alike = sae_lens_trainer.make(kind, knob_of(module, kind), constants_of(module), D_MODEL, left)
    theirs = {NAMES.get(name, name): parameter for name, parameter in alike.sae.named_parameters()}
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            is_other = name == "log_threshold" and "logarithm" in left
            theirs[name.removeprefix("log_")].copy_(parameter.exp() if is_other else parameter)
    x = torch.randn(64, D_MODEL) * 2
    return our_step(module, sae, x, dead, progress), their_step(alike, x, dead, progress)


def assert_equal(ours: Tensor, theirs: Tensor, name: str) -> None:
    """Compare to 1e-5 of the largest entry."""
    size = theirs.abs().max()
    assert size > 0, name
    torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("kind", BASELINES)
def test_a_step_is_that_of_sae_lens_as_it_is_where_nothing_differs(kind: BaselineName, tmp_path: Path):
    progress = 0.0 if kind == "jumprelu" else 1.0  # jumprelu without its loss of L0
    ours, theirs = steps(kind, tmp_path, ALL, torch.empty(0, dtype=torch.long), progress)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name in ours.gradients.keys() - OTHERWISE.get(kind, set()):
        assert_equal(ours.gradients[name], theirs.gradients[name], name)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_step_with_dead_latents_is_that_of_sae_lens_without_differences(kind: BaselineName, tmp_path: Path):
    ours, theirs = steps(kind, tmp_path, NONE, torch.arange(0, D_SAE, 3), 1.0)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name in ours.gradients:
        assert_equal(ours.gradients[name], theirs.gradients[name], name)


@pytest.mark.slow
@pytest.mark.usefixtures("harvest")
@pytest.mark.parametrize("kind", BASELINES)
def test_a_training_is_that_of_sae_lens_without_differences(
    kind: BaselineName, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    module = load(experiment(tmp_path, small_model, baseline=kind, BATCH=BATCH, DEAD_EVERY=1, DEAD_AFTER=BATCH))
    module.main(tmp_path)
    ours = checkpoint.load(tmp_path / "checkpoint")
    if BASELINES[kind].knob == "K":
        assert min(row.alive_fraction or 1 for row in results.read_metrics(tmp_path)) < 1, "no latent was dead"

    data = stream(small_model, SMOKE_TOKENS, BATCH)
    constants = constants_of(module) | {"TOKENS": SMOKE_TOKENS}
    theirs = sae_lens_trainer.train(kind, knob_of(module, kind), constants, data, data.mean, NONE)
    x, scale = next(iter(data)), ours.header.scale
    expected = theirs.decode(theirs.encode(x)) / scale
    torch.testing.assert_close(ours.decode(ours.encode(x / scale)), expected.detach(), rtol=1e-4, atol=1e-4)
