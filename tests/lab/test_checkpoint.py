"""Checkpoints: a saved SAE loads as it was, and anything that is no SAE is refused."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file
from small_sae import D_IN, D_SAE, SCALE, Outer, Sae, activations, header, save

from agent.lab import checkpoint
from agent.lab.checkpoint import CheckpointError
from agent.lab.checkpoint.__main__ import export
from agent.lab.errors import UserError

GOOD = ["relu", "thresholded", "row_topk", "mlp", "tiered", "masked_in_place"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    sae = Sae()
    return save(tmp_path / "checkpoint", sae.row_topk, sae)


# What is saved comes back


@pytest.mark.parametrize("name", GOOD)
def test_encodes_and_decodes_as_the_module_did(name: str, tmp_path: Path) -> None:
    sae = Sae()
    encode = getattr(sae, name)
    loaded = checkpoint.load(save(tmp_path / "checkpoint", encode, sae))
    for rows in (1, 7, 4096):
        x = activations(rows)
        latents = loaded.encode(x)
        torch.testing.assert_close(latents, encode(x * SCALE), rtol=1e-6, atol=1e-6)
        reconstruction = (encode(x * SCALE) @ sae.W_dec + sae.b_dec) / SCALE
        torch.testing.assert_close(loaded.decode(latents), reconstruction, rtol=1e-5, atol=1e-5)
    checkpoint.check_behaviour(loaded, activations(256))
    assert not loaded.non_finite


@pytest.mark.parametrize("form", ["module", "lambda", "no_grad"])
def test_saves_a_module_or_a_function(form: str, tmp_path: Path) -> None:
    sae = Sae()
    forms = {"module": Outer(sae), "lambda": lambda x: sae.thresholded(x), "no_grad": torch.no_grad()(sae.thresholded)}
    loaded = checkpoint.load(save(tmp_path / "checkpoint", forms[form], sae))
    torch.testing.assert_close(loaded.encode(activations(9)), sae.thresholded(activations(9) * SCALE))


def test_leading_dimensions_large_and_empty_batches(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    x = activations(12)
    torch.testing.assert_close(loaded.encode(x.view(3, 4, D_IN)), loaded.encode(x).view(3, 4, D_SAE))
    assert loaded.decode(loaded.encode(x.view(3, 4, D_IN))).shape == (3, 4, D_IN)
    assert loaded.encode(x[0]).shape == (D_SAE,)
    assert loaded.encode(x[:0]).shape == (0, D_SAE)
    many = x.repeat(3000, 1)  # more than are encoded at once
    torch.testing.assert_close(loaded.encode(many)[-12:], loaded.encode(x))
    assert loaded.encode(x.half()).dtype == torch.float32


def test_header_extra_and_groups_come_back(tmp_path: Path) -> None:
    sae = Sae()
    extra = {"tier_weights": torch.tensor([1.0, 2.0]), "parents": torch.arange(4)}
    folder = save(tmp_path / "checkpoint", sae.relu, sae, {"groups": {"coarse": (0, 16)}}, extra=extra)
    loaded = checkpoint.load(folder)
    assert loaded.header == checkpoint.read_header(folder)
    assert loaded.header.groups == {"coarse": (0, 16)}
    assert loaded.header.training.final_loss is None  # it was NaN
    assert torch.equal(loaded.extra["tier_weights"], extra["tier_weights"])
    assert torch.equal(loaded.extra["parents"], extra["parents"])
    assert loaded.W_enc is None


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    sae = Sae()
    folder = save(tmp_path / "checkpoint", sae.relu, sae, W_enc=sae.W_enc, b_enc=sae.b_enc)
    assert set(load_file(folder / "tensors.safetensors")) == {"W_dec", "b_dec", "W_enc", "b_enc"}


def test_content_hash_sees_the_weights_and_not_the_names(tmp_path: Path) -> None:
    one, two = Sae(), Sae()
    hashes = [checkpoint.content_hash(save(tmp_path / "1", one.relu, one))]
    hashes.append(checkpoint.content_hash(save(tmp_path / "2", lambda x: Outer(two).sae.relu(x), two)))
    with torch.no_grad():
        two.W_dec[0, 0] += 1
    hashes.append(checkpoint.content_hash(save(tmp_path / "3", two.relu, two)))
    hashes.append(checkpoint.content_hash(save(tmp_path / "4", two.thresholded, two)))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_saving_leaves_the_random_state_and_the_module_alone(tmp_path: Path) -> None:
    sae = Sae()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save(tmp_path / "checkpoint", sae.relu, sae)
    assert torch.equal(torch.rand(3), expected)
    assert sae.training
    assert sae.W_enc.requires_grad


def test_a_path_with_spaces_and_bert_in_it(tmp_path: Path) -> None:
    sae = Sae()
    folder = save(tmp_path / "bert runs" / "run 0" / "checkpoint", sae.relu, sae)
    assert checkpoint.load(folder).header.d_sae == D_SAE


def test_encoder_matrix_of_an_affine_encoder_is_its_weights(tmp_path: Path) -> None:
    sae = Sae()
    loaded = checkpoint.load(save(tmp_path / "checkpoint", sae.thresholded, sae))
    x = activations(64) * SCALE
    fires = (sae.thresholded(x) > 0).any(0)
    matrix = loaded.encoder_matrix(x)
    torch.testing.assert_close(matrix[:, fires], sae.W_enc[:, fires].detach())
    assert not matrix[:, ~fires].any()


@pytest.mark.parametrize("name", ["mlp", "row_topk", "tiered"])
def test_encoder_matrix_is_the_jacobian(name: str, tmp_path: Path) -> None:
    sae = Sae()
    loaded = checkpoint.load(save(tmp_path / "checkpoint", getattr(sae, name), sae))
    mean = activations(64).mean(0) * SCALE
    with torch.no_grad():
        matrix = loaded.encoder_matrix(mean)
    jacobian = torch.autograd.functional.jacobian(lambda row: getattr(sae, name)(row[None])[0], mean)
    torch.testing.assert_close(matrix, jacobian.T, rtol=1e-4, atol=1e-5)


# Sick SAEs load and are labelled


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_load_and_are_reported(value: float, tmp_path: Path) -> None:
    sae = Sae()
    with torch.no_grad():
        sae.W_enc[0, 0] = value
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "threshold": sae.threshold}
    folder = save(tmp_path / "checkpoint", sae.thresholded, sae, {"architecture": "jumprelu"}, **tensors)
    loaded = checkpoint.load(folder)
    assert loaded.non_finite
    checkpoint.check_behaviour(loaded, activations(64))


def test_a_dead_sae_loads(tmp_path: Path) -> None:
    sae = Sae()
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc - 1e9}
    loaded = checkpoint.load(save(tmp_path / "checkpoint", sae.dead, sae, {"architecture": "relu"}, **tensors))
    checkpoint.check_behaviour(loaded, activations(64))
    assert not loaded.encode(activations(64)).any()


# What is not an SAE is refused, and leaves nothing behind


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("noisy", "encode is random .*eval"),
        ("constant", "does not depend on the input"),
        ("counting", "changes owner.calls in place"),
        ("branching", "cannot be exported.*no branch on values"),
        ("narrow", r"expected torch.float32 \[129, 40\]"),
    ],
)
def test_an_unfit_encoder_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    sae = Sae()
    with pytest.raises(CheckpointError, match=reason) as caught:
        save(tmp_path / "checkpoint", getattr(sae, name), sae)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_python_randomness_is_refused(tmp_path: Path) -> None:
    sae = Sae()
    factors = iter([1.0, 2.0, 3.0])
    with pytest.raises(CheckpointError, match="encode is random or keeps state"):
        save(tmp_path / "checkpoint", lambda x: sae.relu(x) * next(factors), sae)


def test_dropout_is_fine_once_evaluating(tmp_path: Path) -> None:
    sae = Sae().eval()
    assert checkpoint.load(save(tmp_path / "checkpoint", sae.noisy, sae))


@pytest.mark.parametrize("name", ["batch_topk", "batch_centred"])
def test_rows_that_depend_on_each_other_are_refused(name: str, tmp_path: Path) -> None:
    sae = Sae()
    loaded = checkpoint.load(save(tmp_path / "checkpoint", getattr(sae, name), sae))
    with pytest.raises(CheckpointError, match="depend on the other rows"):
        checkpoint.check_behaviour(loaded, activations(64))


def test_an_input_multiplied_away_is_refused(tmp_path: Path) -> None:
    sae = Sae()
    loaded = checkpoint.load(save(tmp_path / "checkpoint", sae.multiplied_away, sae))
    with pytest.raises(CheckpointError, match="gives every input the same latents"):
        checkpoint.check_behaviour(loaded, activations(64))


def test_a_transposed_decoder_is_named(tmp_path: Path) -> None:
    sae = Sae()
    with pytest.raises(CheckpointError, match=r"W_dec is transposed: it is \[12, 40\] and must be \[40, 12\]"):
        checkpoint.save(tmp_path / "checkpoint", sae.relu, sae.W_dec.T, sae.b_dec, header())
    assert not list(tmp_path.iterdir())


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    sae, bad = Sae(), header()
    bad.training.settings["k"] = object()
    with pytest.raises(CheckpointError, match="header is wrong"):
        checkpoint.save(tmp_path / "checkpoint", sae.relu, sae.W_dec, sae.b_dec, bad)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    sae = Sae()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not overwritten"):
        save(folder, sae.relu, sae)
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    sae = Sae()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "file" / "checkpoint", sae.relu, sae)


def test_nothing_is_left_of_a_write_that_fails_half_way(tmp_path: Path) -> None:
    sae, (soft, hard) = Sae(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))  # the header fits, the tensors do not
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*File too large"):
            save(tmp_path / "checkpoint", sae.relu, sae)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


# The SAELens format


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("centred", [True, False])
def test_sae_lens_opens_it(architecture: str, centred: bool, tmp_path: Path) -> None:
    sae = Sae()
    encode = sae.relu if architecture == "relu" else sae.thresholded
    tensors = {} if architecture == "relu" else {"threshold": sae.threshold}
    b_enc = sae.b_enc if centred else sae.b_enc - sae.b_dec @ sae.W_enc
    folder = save(
        tmp_path / "checkpoint", encode, sae, {"architecture": architecture}, W_enc=sae.W_enc, b_enc=b_enc, **tensors
    )
    loaded, x = checkpoint.load(folder), activations(500)
    theirs = SAE.load_from_disk(tmp_path / "sae_lens")
    assert theirs.cfg.apply_b_dec_to_input == centred
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("tiny-lm", "blocks.1.hook_resid_post")
    torch.testing.assert_close(theirs.encode(x), loaded.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), loaded.decode(loaded.encode(x)), rtol=1e-5, atol=1e-5)


def test_what_was_left_out_for_sae_lens_is_written_again_from_the_checkpoint(tmp_path: Path) -> None:
    sae = Sae()
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "threshold": sae.threshold}
    save(tmp_path / "checkpoint", sae.thresholded, sae, {"architecture": "jumprelu"}, **tensors)
    before = {path.name: path.read_bytes() for path in (tmp_path / "sae_lens").iterdir()}
    with pytest.raises(UserError, match="is there already"):
        export(tmp_path)
    shutil.rmtree(tmp_path / "sae_lens")
    assert {path.name: path.read_bytes() for path in export(tmp_path).iterdir()} == before


def test_what_has_no_architecture_of_sae_lens_is_not_written_for_it(tmp_path: Path) -> None:
    sae = Sae()
    save(tmp_path / "checkpoint", sae.relu, sae)
    with pytest.raises(CheckpointError, match="cannot be written for sae_lens: architecture None is not one of"):
        export(tmp_path)


def test_weights_that_are_not_the_encoders_are_refused(tmp_path: Path) -> None:
    sae = Sae()
    with pytest.raises(CheckpointError, match="encode is not the jumprelu encoder of the W_enc"):
        save(
            tmp_path / "checkpoint",
            sae.thresholded,
            sae,
            {"architecture": "jumprelu"},
            W_enc=sae.W_enc * 2,
            b_enc=sae.b_enc,
            threshold=sae.threshold,
        )
    assert not list(tmp_path.iterdir())
