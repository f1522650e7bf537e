"""Forgetting: the score is right on SAEs whose latents are set by hand."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from small_lab import HOOK
from torch import Tensor

from agent.lab import activations
from agent.lab.evaluation import ablation
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import forgetting
from agent.lab.evaluation.sae_adapter import BenchSAE

pytestmark = pytest.mark.slow


class Latents(BenchSAE):
    """An SAE whose latents are `size` where x along `directions [n, d_in]` of length 1 is above their thresholds."""

    def __init__(self, evaluator: Evaluator, directions: Tensor, thresholds: Tensor, size: float) -> None:
        n, d_in = directions.shape
        super().__init__(evaluator.config(n, d_in), directions.T, -thresholds, directions, torch.zeros(d_in))
        self.size = size

    def encode(self, x: Tensor) -> Tensor:
        return self.size * (x.float() @ self.W_enc + self.b_enc > 0).float()


@pytest.fixture(scope="module")
def tiny(cache_dir: Path) -> Evaluator:  # noqa: ARG001
    """Return tiny-lm's evaluator: the tests' own model is too small to tell topics apart."""
    return Evaluator("tiny-lm", HOOK)


def rare(retain: Tensor, directions: Tensor) -> Tensor:
    """Return the thresholds that one retain token in two hundred exceeds."""
    return (retain @ directions.T).quantile(0.995, dim=0)


def test_clamping_the_direction_of_the_topic_forgets_the_topic_alone(tiny: Evaluator):
    forget, retain = (forgetting.load_texts(tiny)[on].choosing.float() for on in ("forget", "retain"))
    difference = forget.mean(0) - retain.mean(0)
    topic = (difference / difference.norm())[None]
    other = torch.randn(1, topic.shape[1], generator=torch.Generator().manual_seed(0))
    other -= (other @ topic.T) * topic  # as frequent on either text
    on_topic, off_topic = (
        forgetting.sweep(tiny, Latents(tiny, direction, rare(retain, direction), float(difference.norm())))
        for direction in (topic, other / other.norm())
    )
    assert on_topic
    assert off_topic
    added = on_topic.added["1 latents on under 1.0%, x4"]
    assert added["forget_loss_added"] > 1.5
    assert abs(added["retain_loss_added"]) < 0.03
    assert on_topic.score > 2
    assert off_topic.score < 0.1


def test_the_clamp_equals_sae_benchs(evaluator: Evaluator):
    from sae_bench.evals.unlearning.utils.intervention import anthropic_clamp_resid_SAE_features

    model, text = evaluator.model, forgetting.load_texts(evaluator)["forget"]
    no_special = activations.ordinary_mask(model, text.ids)[:, 1:].all(1)  # theirs clamps end tokens too
    plain = torch.nonzero(no_special)[:4, 0]
    ids, sae, latents = text.ids[plain], evaluator.random_sae(64, 8), [3, 5, 8]
    clamp = partial(anthropic_clamp_resid_SAE_features, sae=sae, features_to_ablate=latents, multiplier=3.0)
    theirs = model.run_with_hooks(ids, return_type="loss", loss_per_token=True, fwd_hooks=[(HOOK, clamp)])
    theirs = theirs - model(ids, return_type="loss", loss_per_token=True)
    acts = forgetting.encode_text(evaluator, sae, text, latents)
    acts[[i for i in range(len(acts)) if i not in plain]] = 0
    ours = forgetting.clamp_loss_added(evaluator, text, acts, torch.full((3,), -3.0), sae.W_dec[latents])
    assert abs(ours) > 1e-4
    assert ours * text.count.item() == pytest.approx(theirs[:, 1:].sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_post", HOOK, "blocks.1.hook_resid_pre", "blocks.0.mlp.hook_post"]
)
def test_the_layers_above_any_hook_give_the_models_own_loss(evaluator: Evaluator, hook: str):
    model, ids = evaluator.model, forgetting.load_texts(evaluator)["retain"].ids[:2]
    entering, hooked = (activations.run_to_hook(model, ids, name) for name in (ablation.resume_point(hook)[0], hook))
    own = model(ids, return_type="loss", loss_per_token=True) * activations.ordinary_mask(model, ids)[:, :-1]
    found = ablation.window_losses(model, hook, ids, entering, hooked)
    assert found.tolist() == pytest.approx(own.sum(1).tolist(), rel=1e-5)
    assert ablation.window_losses(model, hook, ids, entering, 0 * hooked).tolist() != pytest.approx(
        found.tolist(), rel=1e-3
    )


def test_a_dead_sae_is_not_applicable(evaluator: Evaluator, tmp_path: Path):
    directions = torch.eye(4, evaluator.model.cfg.d_model)
    scored = forgetting.score(evaluator, Latents(evaluator, directions, torch.full((4,), 1e9), 1.0), tmp_path, "dead")
    assert scored.metrics == {"forgetting_score": None}
    assert scored.not_applicable == {"forgetting_score": "no latent ever fires"}


def test_a_score_is_reproducible_and_its_settings_are_kept(evaluator: Evaluator, tmp_path: Path):
    first, second = (forgetting.score(evaluator, evaluator.random_sae(128, 8), tmp_path, name) for name in ("a", "b"))
    assert first == second
    assert first.metrics["forgetting_score"] == first.metrics["random_forgetting_score"]
    record = json.loads((tmp_path / "a_forgetting.json").read_text())
    assert record["added"] == first.details
    assert {setting.rpartition(",")[0] for setting in record["added"]} == set(record["latents"])


@pytest.mark.parametrize(
    ("curve", "score"),
    [
        ([(0, 0), (0.01, 0.1)], 0.1),  # the bound is never reached
        ([(0, 0), (0.02, 0.1), (0.06, 0.5)], 0.3),  # interpolated half way
        ([(0, 0), (0.02, 0.2), (0.06, 0.1)], 0.2),  # more does not help
        ([(0, 0), (0.08, -0.1)], 0.0),  # nothing is forgotten
    ],
)
def test_the_score_is_interpolated_where_the_retain_loss_reaches_its_bound(
    curve: list[tuple[float, float]], score: float
):
    assert forgetting.best_within_tolerance(curve, 0.04) == pytest.approx(score)
