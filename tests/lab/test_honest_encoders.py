"""Honest encoders of 41 forms: each is saved, passes the checks and encodes as it did, or is refused by a reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from honest_encoders import FORMS, Weights
from small_sae import D_IN, SCALE, activations, save
from torch import Tensor

from agent.lab import checkpoint
from agent.lab.checkpoint import CheckpointError

REFUSED = {
    "least_squares": r"aten\.linalg_lstsq\.default.*shapes of its results depend on values",
    "pseudo_inverse": r"aten\.linalg_pinv.*compute the pseudo-inverse before",
}
# Forms with operators that no other test of a checkpoint uses.
OF_THEIR_OWN = {
    *("group_norm", "instance_norm", "batch_norm_in_evaluation_mode", "distance_to_centroids", "whitened_by_cholesky"),
    *("solved_for_each_row", "inverse_of_a_constant", "convolution_over_the_vector", "mapped_over_rows", "lista"),
}
WINDOWS, CONTEXT = 8, 32


def windows(rows: Tensor) -> Tensor:
    """Return rows with the same, much larger row at the start of each window, as a language model has there."""
    start = 12 * torch.ones(D_IN)
    return torch.cat([torch.cat([start[None], window]) for window in rows.split(CONTEXT - 1)])


def test_there_are_41_forms() -> None:
    assert len(FORMS) == 41


def accepted() -> list[Any]:
    """Return the accepted forms, as parameters of a test; those whose operators others use too are slow."""
    names = sorted(set(FORMS) - set(REFUSED))
    return [pytest.param(name, marks=() if name in OF_THEIR_OWN else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", accepted())
def test_an_honest_encoder_is_saved_checked_and_encodes_as_it_did(name: str, tmp_path: Path) -> None:
    weights = Weights().eval()
    weights.requires_grad_(False)

    def encode(x: Tensor) -> Tensor:
        return FORMS[name](weights, x)

    loaded = checkpoint.load(save(tmp_path / "checkpoint", encode, weights))
    x = windows(activations(WINDOWS * (CONTEXT - 1)))
    checkpoint.check_behaviour(loaded, activations(256))
    checkpoint.check_behaviour(loaded, x)
    latents, eager = loaded.encode(x), encode(x * SCALE)
    torch.testing.assert_close(latents, eager, rtol=1e-4, atol=1e-4)
    assert (latents != 0).sum().item() == pytest.approx((eager != 0).sum().item(), rel=1e-4)
    rebuilt = (eager @ weights.W_dec + weights.b_dec) / SCALE
    errors = [(x - reconstruction).pow(2).mean().item() for reconstruction in (loaded.decode(latents), rebuilt)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_saved_is_refused_for_the_true_reason(name: str, tmp_path: Path) -> None:
    weights = Weights().eval()
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        save(tmp_path / "checkpoint", lambda x: FORMS[name](weights, x), weights)
