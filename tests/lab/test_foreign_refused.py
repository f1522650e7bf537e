"""What is refused of SAEs that were trained elsewhere, each in one line that says what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_saes
import pytest
import torch
from foreign_saes import D_SAE, Weights, edit
from safetensors.torch import load_file, save_file
from small_lab import HOOK

from agent.lab.errors import UserError
from agent.lab.foreign import importing, reading
from agent.lab.foreign.sae import Foreign

D_IN = 32


class Planted:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_run",)


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    return Weights.of(torch.randn(400, D_IN), "tiny-lm")


@pytest.fixture
def sae_lens(weights: Weights, tmp_path: Path) -> Callable[..., Path]:
    """Save an SAE in SAELens' format, with changes to its configuration and its tensors."""

    def save(kind: str = "standard", config: dict[str, Any] | None = None, **tensors: Any) -> Path:
        folder = foreign_saes.sae_lens(tmp_path / "sae", weights, kind)
        edit(folder / "cfg.json", **(config or {}))
        path = folder / "sae_weights.safetensors"
        state = load_file(path)
        changed = {name: change(state[name]).contiguous() for name, change in tensors.items()}
        save_file(state | changed, path)
        return folder

    return save


def refusal(folder: Path | str) -> str:
    with pytest.raises(UserError) as refused:
        importing.read(str(folder))
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "tensors", "words"),
    [
        ("standard", {"W_enc": lambda t: t.T}, rf"W_enc is transposed: it is [{D_SAE}, {D_IN}]"),
        ("standard", {"W_dec": lambda t: t.T}, "W_dec is transposed"),
        ("standard", {"b_enc": lambda t: t / 0}, "b_enc holds numbers that are not finite"),
        ("standard", {"W_dec": lambda t: t[:-1]}, f"W_dec is [{D_SAE - 1}, {D_IN}], and by its configuration"),
        ("standard", {"b_dec": lambda t: t.int()}, "b_dec holds torch.int32, not floats"),
        ("jumprelu", {"threshold": lambda t: t - 9}, "threshold has values below zero"),
        ("batchtopk", {"topk_threshold": lambda t: t - 9}, "topk_threshold has values below zero"),
    ],
)
def test_tensors(kind: str, tensors: dict[str, Any], words: str, sae_lens: Callable[..., Path]) -> None:
    assert words in refusal(sae_lens(kind, **tensors))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"d_in": 64}, "W_enc is [32, 96], and by its configuration [64, 96]"),
        ({"d_sae": "many"}, "d_sae is 'many', and must be a whole number"),
        ({"architecture": "jumprelu"}, "holds no threshold: it is another architecture than its configuration says"),
        ({"architecture": "transcoder"}, "the architecture transcoder, which is not read: it does not reconstruct"),
        ({"architecture": "crosscoder"}, "the architecture crosscoder, which is not read: it does not reconstruct"),
        ({"architecture": "temporal"}, "the architecture temporal, which is not read: an SAE here is one of standard"),
        ({"architecture": "abstopk"}, "the architecture abstopk, which is not read: its latents may be negative"),
        ({"architecture": "matching_pursuit", "max_iterations": 321}, "may take 321 latents one after another"),
        ({"architecture": "matching_pursuit", "max_iterations": "many"}, "its max_iterations is 'many'"),
        ({"normalize_activations": "layer_norm"}, "scaled by each token's own mean and deviation"),
        ({"normalize_activations": "constant_norm_rescale"}, "scaled by each token's own norm"),
        ({"normalize_activations": "covariance_whitening"}, "fold it with SAELens"),
        ({"reshape_activations": "hook_z"}, "reshaped (hook_z: all heads as one vector), which is not read"),
        ({"metadata": {"hook_name": HOOK, "hook_head_index": 3}}, f"reads head 3 of {HOOK} alone"),
        ({"metadata": {"sae_lens_version": "6.0.0", "context_size": "long"}}, "context is 'long'"),
    ],
)
def test_configurations(config: dict[str, Any], words: str, sae_lens: Callable[..., Path]) -> None:
    assert words in refusal(sae_lens(config=config))


def test_a_topk_of_more_latents_than_there_are(sae_lens: Callable[..., Path]) -> None:
    assert "k is 97, and there are 96 latents" in refusal(sae_lens("topk", {"k": 97}))
    assert "k is '4.5', and must be a whole number" in refusal(sae_lens("topk", {"k": 4.5}))
    assert "must be true or false" in refusal(sae_lens(config={"apply_b_dec_to_input": "no"}))


def test_a_configuration_without_an_architecture_and_a_k_with_a_point(sae_lens: Callable[..., Path]) -> None:
    standard = importing.read(str(sae_lens(config={"architecture": None})))
    assert standard.kind == "relu"
    sae = importing.read(str(sae_lens("topk", {"k": 8.0})))
    assert sae.original
    rows = torch.randn(16, D_IN)
    assert torch.allclose(sae.encoder(rows), sae.original.encode(rows), atol=1e-5)


def test_a_pickle_with_code_in_it_is_not_run(weights: Weights, tmp_path: Path) -> None:
    folder = foreign_saes.dictionary(tmp_path / "sae", weights, "AutoEncoder")
    torch.save({"bias": Planted()}, folder / "ae.pt")
    assert "holds more than tensors" in refusal(folder)
    torch.save(torch.nn.Linear(2, 2), folder / "ae.pt")
    assert "save its state_dict()" in refusal(folder)
    assert not Path("was_run").exists()


def test_dictionaries_that_are_none_of_ours(weights: Weights, tmp_path: Path) -> None:
    folder = foreign_saes.dictionary(tmp_path / "sae", weights, "BatchTopKSAE")
    state = torch.load(folder / "ae.pt")
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    assert "threshold has values below zero: its training did not set it" in refusal(folder)
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    edit(folder / "config.json", trainer=trainer | {"dict_class": "CrossCoder"})
    assert "its config.json has the dict_class CrossCoder; one of AutoEncoder" in refusal(folder)
    edit(folder / "config.json", trainer=trainer | {"layer": 2})
    assert "its config.json has the layer 2 and the submodule resid_post_layer_1" in refusal(folder)
    (folder / "ae.pt").write_bytes(b"PK\x03\x04 not a zip")
    edit(folder / "config.json", trainer=trainer)
    assert "is damaged, or was not written by torch.save" in refusal(folder)


def test_transcoders_of_sparsify(weights: Weights, tmp_path: Path) -> None:
    folder = foreign_saes.sparse_coder(tmp_path / "sae" / "layers.1.mlp", weights)
    edit(folder / "cfg.json", transcode=True)
    assert "is a transcoder, which is not read" in refusal(folder)
    edit(folder / "cfg.json", transcode=False, activation="signed")
    assert "has the activation signed; topk and groupmax are read" in refusal(folder)


def test_a_class_that_sae_bench_does_not_have(weights: Weights, tmp_path: Path) -> None:
    folder = foreign_saes.bench(tmp_path / "sae", weights, "standard")
    edit(folder / "cfg.json", architecture="my_own")
    assert "its cfg.json has the architecture 'my_own'" in refusal(folder)


def test_files_that_are_no_sae(sae_lens: Callable[..., Path], tmp_path: Path) -> None:
    assert "is not an SAE in a format that is read" in refusal(tmp_path)
    assert "there is no directory" in refusal(tmp_path / "nowhere")
    folder = sae_lens()
    (folder / "sae_weights.safetensors").rename(tmp_path / "weights")
    missing = "holds cfg.json, and beside it no sae_weights.safetensors or sae.safetensors or sae.pt"
    assert missing in refusal(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"\x08\x00")
    assert "is no safetensors file, or was cut short" in refusal(folder)
    (folder / "cfg.json").write_text("[1, 2")
    assert "is no JSON, or was cut short" in refusal(folder)
    (folder / "cfg.json").write_text("[1, 2]")
    assert "is no JSON object" in refusal(folder)


def test_links_are_followed_to_files_and_no_circle_is(sae_lens: Callable[..., Path], tmp_path: Path) -> None:
    """The hub's cache is made of links; a circle of them, a pipe and a file without end are each a line."""
    folder = sae_lens()
    config, linked = folder / "cfg.json", tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert isinstance(importing.read(str(linked)), Foreign)
    (linked / "cfg.json").unlink()
    shutil.copy(config, linked / "cfg.json")
    (linked / "sae_weights.safetensors").unlink()
    (linked / "sae_weights.safetensors").symlink_to(linked / "sae_weights.safetensors")
    assert "beside it no sae_weights.safetensors" in refusal(linked)
    (linked / "sae_weights.safetensors").unlink()
    os.mkfifo(linked / "sae_weights.safetensors")
    assert "is not a regular file" in refusal(linked)
    (linked / "sae_weights.safetensors").unlink()
    (linked / "sae_weights.safetensors").symlink_to("/dev/zero")
    assert "sae_weights.safetensors is not a regular file, or a link to one" in refusal(linked)
    (linked / "sae_weights.safetensors").unlink()
    with (linked / "sae_weights.safetensors").open("wb") as file:
        file.truncate(reading.MOST_TENSORS + 1)
    assert "bytes; at most" in refusal(linked)


def test_another_model_or_hook_than_asked_for(sae_lens: Callable[..., Path], small_model: Path) -> None:
    sae = importing.read(str(sae_lens()))
    assert importing.settle_model(sae, None) == ("tiny-lm", [])
    with pytest.raises(UserError, match="is of the model tiny-lm, not of EleutherAI/pythia-70m"):
        importing.settle_model(sae, "EleutherAI/pythia-70m")
    with pytest.raises(UserError, match="is of the model tiny-lm, not of"):
        importing.settle_model(sae, str(small_model))
    with pytest.raises(UserError, match=r"is of the hook blocks\.1\.hook_resid_post, not of blocks\.0"):
        importing.settle_hook(sae, "blocks.0.hook_resid_post")


def test_a_copy_of_a_model_of_the_hub(sae_lens: Callable[..., Path], small_model: Path) -> None:
    """A directory has no name to compare, so what has to hold is said."""
    folder = sae_lens(config={"metadata": {"sae_lens_version": "6.0.0", "model_name": "gpt2-small"}})
    sae = importing.read(str(folder))
    model, warnings = importing.settle_model(sae, str(small_model))
    assert model == str(small_model.resolve())
    assert "has to be a copy of it" in warnings[0]
    with pytest.raises(UserError, match="is of the model gpt2-small, not of tiny-lm"):
        importing.settle_model(sae, "tiny-lm")  # which is a directory, and no copy
    with pytest.raises(UserError, match="name no hook: give --hook"):
        importing.settle_hook(sae, None)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["saelens", "an earlier saelens", "dictionary_learning", "sparsify", "sae_bench"])
def test_no_configuration_is_more_than_a_line(form: str, weights: Weights, tmp_path: Path) -> None:
    """Whatever stands in the place of a field, the SAE is read or refused."""
    save: dict[str, Callable[[Path], Path]] = {
        "saelens": lambda folder: foreign_saes.sae_lens(folder, weights, "topk"),
        "an earlier saelens": lambda folder: foreign_saes.sae_lens(folder, weights, "standard"),
        "dictionary_learning": lambda folder: foreign_saes.dictionary(folder, weights, "BatchTopKSAE"),
        "sparsify": lambda folder: foreign_saes.sparse_coder(folder / "layers.1", weights),
        "sae_bench": lambda folder: foreign_saes.bench(folder, weights, "topk"),
    }
    folder = save[form](tmp_path / "sae")
    if form == "an earlier saelens":
        old = {"hook_point": HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}, "sparsity": 1}
        edit(folder / "cfg.json", metadata=None, architecture=None, normalize_activations=False, **old)
    above = [folder.parent / "config.json"] if form == "sparsify" else []
    for path in [*folder.glob("*.json"), *above]:
        whole = json.loads(path.read_text())
        places = [(name,) for name in whole]
        places += [(name, part) for name, value in whole.items() if isinstance(value, dict) for part in value]
        for place in places:
            for junk in (None, [], {}, {"a": 1}, "x", -1, 0, 2.5, True, 10**12):
                content = json.loads(json.dumps(whole))
                inner = content[place[0]] if len(place) == 2 else content
                inner[place[-1]] = junk
                path.write_text(json.dumps(content))
                try:
                    sae = importing.read(str(folder))
                    assert sae.model is None or isinstance(sae.model, str)
                    assert sae.hook_name is None or isinstance(sae.hook_name, str)
                except UserError:
                    continue
                except Exception as error:
                    raise AssertionError(f"{place} = {junk!r} raises {error!r}") from error
        path.write_text(json.dumps(whole))
