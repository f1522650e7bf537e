"""SAEs that were trained elsewhere become runs whose checkpoints compute what their own libraries compute."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import foreign_saes
import pytest
import torch
from foreign_saes import BENCH, D_SAE, DICTIONARIES, SAE_LENS, K, Weights, edit
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from small_lab import CONTEXT, HOOK

from agent.lab import checkpoint, models, results, tokens, verdicts
from agent.lab.defaults import BEGIN_VARIABLE, CONTEXT_VARIABLE
from agent.lab.errors import UserError
from agent.lab.evaluation import scoring
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS
from agent.lab.evaluation.evaluator import Evaluator, artefact_folder
from agent.lab.evaluation.requests import Score
from agent.lab.foreign import importing

WEIGHTS = "sae_weights.safetensors"
Written = dict[str, Any]


def but_slow(kinds: Iterable[str], *quick: str) -> list[Any]:
    """Return the parameters of a test that is slow but for some of them."""
    return [pytest.param(kind, marks=() if kind in quick else pytest.mark.slow) for kind in kinds]


@pytest.fixture(scope="module")
def evaluator(small_model: Path) -> Evaluator:
    return Evaluator(str(small_model), HOOK)


@pytest.fixture(scope="module")
def weights(evaluator: Evaluator) -> Weights:
    return Weights.of(evaluator.held_out("dev", BATCH_WINDOWS).activations, evaluator.model_name)


@pytest.fixture
def written(evaluator: Evaluator, tmp_path: Path) -> Callable[[Path], Written]:
    """Read, convert and verify the SAE in a directory; the run is tmp_path/run."""

    def write(folder: Path) -> Written:
        return importing.write_run(importing.read(str(folder)), tmp_path / "run", evaluator)

    return write


def require_verified(run_dir: Path) -> results.Imported:
    """Return the record of a run's SAE, which has to agree with its library to the last digits of float32."""
    imported = checkpoint.read_header(run_dir / "checkpoint").imported
    assert imported
    assert imported.verified
    assert imported.verified.rows > 500
    assert imported.verified.reconstruction < 1e-5
    assert imported.verified.latents < 1e-5
    assert imported.verified.flips < 1e-3
    assert results.read(run_dir).imported == imported
    return imported


@pytest.mark.parametrize("kind", but_slow(SAE_LENS, "jumprelu", "topk"))
def test_sae_lens_kinds(kind: str, weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    made = written(foreign_saes.sae_lens(tmp_path / "sae", weights, kind))
    imported = require_verified(tmp_path / "run")
    assert (imported.format, imported.architecture) == ("saelens", kind)
    assert (made["model"], made["hook_name"], made["d_sae"]) == (weights.model, HOOK, D_SAE)
    assert imported.library.startswith("sae_lens ")
    assert 1 < made["l0"] < 3 * K
    assert made["declared_l0"] == (K if "topk" in kind else None)


@pytest.mark.parametrize("kind", but_slow(DICTIONARIES, "AutoEncoder"))
def test_dictionary_learning_kinds(
    kind: str, weights: Weights, written: Callable[[Path], Written], tmp_path: Path
) -> None:
    made = written(foreign_saes.dictionary(tmp_path / "sae", weights, kind))
    imported = require_verified(tmp_path / "run")
    assert (imported.format, imported.architecture) == ("dictionary_learning", kind)
    assert imported.declared_tokens == 100 * 2048
    assert 1 < made["l0"] < 3 * K


@pytest.mark.parametrize("kind", but_slow(BENCH, "gated"))
def test_classes_of_sae_bench(kind: str, weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    written(foreign_saes.bench(tmp_path / "sae", weights, kind))
    assert require_verified(tmp_path / "run").architecture == kind


@pytest.mark.parametrize("activation", but_slow(["topk", "groupmax"], "topk"))
def test_sparsify(activation: str, weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    """Without its library it is said that nothing was compared; with it, it is compared."""
    made = written(foreign_saes.sparse_coder(tmp_path / "sae" / "layers.1", weights, activation))
    assert (made["hook_name"], made["model"]) == (HOOK, weights.model)
    assert made["l0"] <= K
    imported = checkpoint.read_header(tmp_path / "run" / "checkpoint").imported
    assert imported
    if imported.library:
        require_verified(tmp_path / "run")
    else:
        assert imported.verified is None
        assert "not compared with eai-sparsify" in imported.warnings[0]


@pytest.mark.slow
def test_sparsify_keeps_the_largest(weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    written(foreign_saes.sparse_coder(tmp_path / "sae" / "layers.1", weights, "topk"))
    loaded = checkpoint.load(tmp_path / "run" / "checkpoint")
    x = weights["b_dec"] + torch.randn(50, weights.d_in)
    pre = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    kept = pre >= pre.topk(K, dim=1).values[:, -1:]
    torch.testing.assert_close(loaded.encode(x), pre * kept)


@pytest.mark.slow
def test_weights_in_half_precision(weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    written(foreign_saes.sae_lens(tmp_path / "sae", weights, "jumprelu", dtype="bfloat16"))
    require_verified(tmp_path / "run")


@pytest.mark.slow
def test_b_dec_that_is_not_subtracted(weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    written(foreign_saes.sae_lens(tmp_path / "sae", weights, "standard", apply_b_dec_to_input=False))
    require_verified(tmp_path / "run")


def test_scale_of_a_training_is_folded(weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    """An SAE that expects scaled activations, with the factor in SAELens' own file, or none."""
    settings = {"normalize_activations": "expected_average_only_in"}
    folder = foreign_saes.sae_lens(tmp_path / "sae", weights, "standard", **settings)
    with pytest.raises(UserError, match="the factor that its training scaled activations by is in none of its files"):
        importing.read(str(folder))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5, "has_whitening": false}')
    written(folder)
    require_verified(tmp_path / "run")
    loaded, sae, x = checkpoint.load(tmp_path / "run" / "checkpoint"), SAE.load_from_disk(folder), torch.randn(9, 32)
    torch.testing.assert_close(loaded.encode(x), sae.encode(0.5 * x))
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), sae(0.5 * x) / 0.5)


@pytest.mark.slow
def test_files_of_an_earlier_version(weights: Weights, written: Callable[[Path], Written], tmp_path: Path) -> None:
    """A flat cfg.json, and a factor of each latent that was trained after the SAE."""
    folder = foreign_saes.sae_lens(tmp_path / "sae", weights, "standard")
    old = {"model_name": weights.model, "hook_point": HOOK, "activation_fn_str": "relu", "training_tokens": 1000}
    edit(folder / "cfg.json", metadata=None, architecture=None, finetuning_scaling_factor=True, **old)
    factor = torch.linspace(0.5, 2, D_SAE)
    save_file(load_file(folder / WEIGHTS) | {"scaling_factor": factor}, folder / WEIGHTS)
    made = written(folder)
    imported = require_verified(tmp_path / "run")
    assert (made["model"], made["hook_name"], imported.declared_tokens) == (weights.model, HOOK, 1000)
    assert "scaling_factor" in imported.warnings[0]
    torch.testing.assert_close(
        checkpoint.load(tmp_path / "run" / "checkpoint").W_dec, weights["W_dec"] * factor[:, None]
    )


def test_another_l0_than_declared_is_warned_of(
    weights: Weights, written: Callable[[Path], Written], tmp_path: Path
) -> None:
    """The SAE fires on nearly twice as many latents as it was trained to: the scale is another."""
    folder = foreign_saes.bench(tmp_path / "sae", weights, "batch_topk")
    state = torch.load(folder / "sae.pt")
    torch.save(state | {"threshold": state["threshold"] * 0}, folder / "sae.pt")
    made = written(folder)
    assert made["l0"] > 1.5 * K
    assert "trained on activations of another scale" in made["warnings"][-1]


def test_a_wrong_conversion_is_refused(weights: Weights, evaluator: Evaluator, tmp_path: Path) -> None:
    """The library computes something else than the checkpoint: nothing is left."""
    sae = importing.read(str(foreign_saes.sae_lens(tmp_path / "sae", weights, "standard")))
    sae.encoder.b_enc += 1e-3
    with pytest.raises(UserError, match=r"the converted SAE is not that of sae_lens .* of them flip"):
        importing.write_run(sae, tmp_path / "run", evaluator)
    assert not (tmp_path / "run").exists()


def test_another_width_than_the_hook_has(evaluator: Evaluator, tmp_path: Path) -> None:
    wide = Weights.of(torch.randn(400, 48, generator=torch.Generator().manual_seed(0)), evaluator.model_name)
    sae = importing.read(str(foreign_saes.sae_lens(tmp_path / "sae", wide, "standard")))
    with pytest.raises(UserError, match=f"reads activations of width 48, and {HOOK} of .* has 32"):
        importing.write_run(sae, tmp_path / "run", evaluator)
    assert not (tmp_path / "run").exists()


def test_text_is_cut_as_its_training_had_it(
    weights: Weights, evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of its context, as far as the model has positions, and without a beginning token if it had none."""
    for name in (CONTEXT_VARIABLE, BEGIN_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = foreign_saes.sae_lens(tmp_path / "sae", weights, "standard")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    usual = artefact_folder(evaluator.model_name, "", HOOK)
    for trained_on, context in ((CONTEXT // 2, CONTEXT // 2), (10 * CONTEXT, CONTEXT)):
        monkeypatch.delenv(CONTEXT_VARIABLE, raising=False)
        edit(folder / "cfg.json", metadata=metadata | {"context_size": trained_on, "prepend_bos": False})
        importing.cut_text_as(importing.read(str(folder)).imported, evaluator.model_name)
        assert models.context_size(evaluator.model) == context
        ids = tokens.windows(evaluator.model, ["dev"], context, 1000, seed=0)
        assert ids.shape[1] == context
        assert set(ids[:, 0].tolist()) != tokens.special_ids(evaluator.model)
        assert artefact_folder(evaluator.model_name, "", HOOK) != usual


@pytest.mark.slow
@pytest.mark.parametrize("form", ["saelens", "dictionary_learning", "sparsify", "sae_bench"])
def test_each_format_is_scored(form: str, weights: Weights, evaluator: Evaluator, tmp_path: Path) -> None:
    save: dict[str, Callable[[Path], Path]] = {
        "saelens": lambda folder: foreign_saes.sae_lens(folder, weights, "topk"),
        "dictionary_learning": lambda folder: foreign_saes.dictionary(folder, weights, "AutoEncoderTopK"),
        "sparsify": lambda folder: foreign_saes.sparse_coder(folder / "layers.1", weights),
        "sae_bench": lambda folder: foreign_saes.bench(folder, weights, "topk"),
    }
    run_dir = tmp_path / "run"
    importing.write_run(importing.read(str(save[form](tmp_path / "sae"))), run_dir, evaluator)
    info = scoring.score(evaluator, Score(run_dir=run_dir, evals=("core",)))
    assert info.imported
    assert (info.imported.format, info.training) == (form, None)
    assert info.core
    assert info.core.l0 == pytest.approx(K, rel=0.1)
    assert info.floor
    assert info.verdict.name in ("ok", "degenerate")  # its directions are random


def test_an_sae_of_another_context_is_warned_of(weights: Weights, evaluator: Evaluator, tmp_path: Path) -> None:
    """In a study all are scored on the same windows."""
    folder = foreign_saes.sae_lens(tmp_path / "sae", weights, "jumprelu")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    edit(folder / "cfg.json", metadata=metadata | {"context_size": 1024, "prepend_bos": False})
    imported = importing.read(str(folder)).imported
    own = (evaluator.context, True)
    assert verdicts.windows_warning(imported.context, imported.prepend_bos, own) == (
        "it was trained on windows of 1,024 tokens without a beginning token, and is scored on windows of 64 with one"
    )
    assert verdicts.windows_warning(CONTEXT, True, own) == verdicts.windows_warning(None, True, own) == ""
