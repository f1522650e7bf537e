"""Matching pursuit: an experiment trains one, SAELens opens it, and those that SAELens saved are read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pursuing
import pytest
import torch
import torch.nn.functional as F
from foreign_saes import D_SAE, K, Weights
from sae_lens import SAE, MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAEMetadata
from small_lab import CONTEXT, HOOK, stream
from torch import Tensor

from agent.lab import checkpoint, results
from agent.lab.errors import UserError
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.export import export
from agent.lab.foreign import importing
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict

PLAIN = {"max_iterations": K, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
FACTOR = 0.25  # by which a training scaled its activations


@pytest.fixture(scope="module")
def trained(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The run of an experiment that was trained for a few steps."""
    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_SMOKE", "1")
        patch.setattr(pursuing, "MODEL", str(small_model))
        pursuing.main(run_dir)
    results.write(run_dir, FinalInfo(verdict=Verdict(name="ok", evidence="sound")))
    return run_dir


@pytest.fixture(scope="module")
def weights(evaluator: Evaluator) -> Weights:
    """Weights with decoder rows of length 1: with longer ones a pursuit takes away more than there is."""
    found = Weights.of(evaluator.held_out("dev", BATCH_WINDOWS).activations, evaluator.model_name)
    return replace(found, parts={**found.parts, "W_dec": F.normalize(found["W_dec"], dim=1)})


@pytest.fixture(scope="module")
def activations(evaluator: Evaluator) -> Tensor:
    return evaluator.held_out("dev", BATCH_WINDOWS).activations[:1000]


def save_by_sae_lens(folder: Path, weights: Weights, **settings: Any) -> Path:
    metadata = SAEMetadata(model_name=weights.model, hook_name=HOOK, context_size=CONTEXT, prepend_bos=True)
    config = MatchingPursuitSAEConfig(d_in=weights.d_in, d_sae=D_SAE, metadata=metadata, **settings)
    sae = MatchingPursuitSAE(config)
    weights.fill(sae)
    sae.save_model(folder)
    return folder


def typical_size(activations: Tensor) -> float:
    """Return the median distance of activations from their mean, of which b_dec is one."""
    return float((activations - activations.mean(0)).norm(dim=1).median())


def same(theirs: Tensor, ours: Tensor) -> None:
    """Assert that two encodings are the same but for a token on which two rows fit equally well."""
    scale = ours.abs().amax(1, keepdim=True)
    assert ((theirs - ours).abs() > 1e-4 * scale).any(1).sum() <= 1


@torch.no_grad()
def test_what_an_experiment_trains_is_opened_by_sae_lens_and_comes_back(
    trained: Path, small_model: Path, evaluator: Evaluator, tmp_path: Path
):
    first, *_, last = [row.mse or 0.0 for row in results.read_metrics(trained)]
    assert 0 < last < first
    ours, data = checkpoint.load(trained / "checkpoint"), stream(small_model, 2000)
    x = torch.cat(list(data)).cpu() / ours.header.scale
    checkpoint.check_behaviour(ours, x)
    latents = ours.encode(x)
    assert pursuing.K / 2 < (latents != 0).sum(1).float().mean() <= pursuing.K
    described = export(trained, "saelens", tmp_path / "out")
    assert described["kind"] == "matching_pursuit"
    for folder in (trained / "sae_lens", tmp_path / "out"):
        theirs = SAE.load_from_disk(folder)
        same(theirs.encode(x), latents / ours.header.scale)  # as large as what they add
        torch.testing.assert_close(theirs(x), ours.decode(latents), rtol=1e-3, atol=1e-3)
        assert theirs.cfg.metadata.training_architecture_details == {"k": pursuing.K}
    made = importing.write_run(importing.read(str(tmp_path / "out")), tmp_path / "back", evaluator)
    assert made["declared_l0"] == pursuing.K
    back = checkpoint.load(tmp_path / "back" / "checkpoint")
    same(back.encode(x), latents / ours.header.scale)
    assert back.header.imported
    assert back.header.imported.verified
    assert export(tmp_path / "back", "saelens", tmp_path / "again")["kind"] == "matching_pursuit"


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"stop_on_duplicate_support": True, "residual_threshold": 0.5},
        pytest.param({"max_iterations": None}, marks=pytest.mark.slow),  # the width of the activations
        pytest.param({"apply_b_dec_to_input": False}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_sae_lens_saved_is_read(
    settings: dict[str, Any], weights: Weights, activations: Tensor, evaluator: Evaluator, tmp_path: Path
):
    settings = PLAIN | settings
    settings["residual_threshold"] *= typical_size(activations)
    folder = save_by_sae_lens(tmp_path / "sae", weights, **settings)
    made = importing.write_run(importing.read(str(folder)), tmp_path / "run", evaluator)
    theirs, ours = SAE.load_from_disk(folder), checkpoint.load(tmp_path / "run" / "checkpoint")
    same(theirs.encode(activations), ours.encode(activations))
    torch.testing.assert_close(ours.decode(ours.encode(activations)), theirs(activations), rtol=1e-3, atol=1e-3)
    stops = settings["stop_on_duplicate_support"]
    assert made["declared_l0"] == (None if stops else settings["max_iterations"] or weights.d_in)
    if stops:
        taken = (ours.encode(activations) != 0).sum(1)
        assert taken.min() < taken.max() <= K
        with pytest.raises(UserError, match="its K is None; a matching_pursuit SAE keeps a whole number"):
            export(tmp_path / "run", "saelens", tmp_path / "out")


@torch.no_grad()
def test_its_threshold_is_scaled_with_its_activations(weights: Weights, activations: Tensor, tmp_path: Path):
    threshold = 0.5 * FACTOR * typical_size(activations)
    settings = PLAIN | {"residual_threshold": threshold, "normalize_activations": "expected_average_only_in"}
    folder = save_by_sae_lens(tmp_path / "sae", weights, **settings)
    theirs = SAE.load_from_disk(folder)  # as in training, which scales activations before the SAE sees them
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": FACTOR}))
    encoder = importing.read(str(folder)).encoder
    expected = theirs.encode(activations * FACTOR) / FACTOR
    assert (expected != 0).sum(1).unique().numel() > 1
    same(encoder(activations), expected)
