"""SAEs in the formats of other libraries: their own code opens them, and computes what the checkpoint computes."""

import importlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file
from small_kinds import KINDS, STEPS, Kinds, make_kinds
from small_lab import BATCH, CONTEXT, D_SAE, HOOK, K, stream
from torch import Tensor

from agent.lab import checkpoint, models, results, text
from agent.lab.checkpoint import dictionary_learning, sae_lens
from agent.lab.checkpoint.graph import GraphError
from agent.lab.errors import UserError
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.export import export
from agent.lab.foreign import importing
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict

# By kind: the module of SAE-Bench with its loader of dictionary_learning's files, and the loader's name.
LOADERS = {
    "relu": ("relu_sae", "relu_sae"),
    "jumprelu": ("jumprelu_sae", "jump_relu_sae"),
    "batchtopk": ("batch_topk_sae", "batch_topk_sae"),
    "matryoshka": ("batch_topk_sae", "matryoshka_batch_topk_sae"),
    "gated": ("gated_sae", "gated_sae"),
    "topk": ("topk_sae", "topk_sae"),
}
IN_SAE_LENS = {"relu": "standard", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}
TRAINED_IN_SAE_LENS = {"relu": "standard", "matryoshka": "matryoshka_batchtopk"}
IN_SAE_BENCH = {"relu": "standard", "batchtopk": "batch_topk", "matryoshka": "matryoshka_batch_topk"}


@pytest.fixture(scope="module")
def kinds(small_model: Path) -> Kinds:
    return make_kinds(small_model)


@pytest.fixture(scope="module")
def activations(small_model: Path) -> Tensor:
    """The small model's own activations `[rows, d_in]`, unscaled."""
    data = stream(small_model, 2000)
    return torch.cat(list(data)).cpu() / data.manifest.scale


@pytest.fixture(scope="module")
def run_dirs(kinds: Kinds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind that was scored; "varied" is a Matryoshka with a threshold of each latent's own."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for name in (*KINDS, "varied"):
        of = kinds.with_one_threshold() if name in ("batchtopk", "matryoshka") else kinds
        made[name] = of.save(folder / name, "matryoshka" if name == "varied" else name)
        results.write(made[name], FinalInfo(verdict=Verdict(name="ok", evidence="sound")))
    return made


def same(theirs: Tensor, ours: Tensor) -> Tensor:
    """Assert that two encodings are the same but for two latents that the last bit has carried over a threshold.

    Return the mask `[rows]` of the rows without such a latent.
    """
    close = torch.isclose(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (~close).sum() <= 2
    return close.all(1)


# SAELens


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_computes_the_same_latents_and_reconstruction(
    kind: str, run_dirs: dict[str, Path], activations: Tensor
):
    ours, theirs = checkpoint.load(run_dirs[kind] / "checkpoint"), SAE.load_from_disk(run_dirs[kind] / "sae_lens")
    latents = ours.encode(activations)
    assert 1 < (latents != 0).sum(1).float().mean() < D_SAE
    larger = ours.header.scale if kind == "matching_pursuit" else 1  # its decoder cannot make up for the scale
    rows = same(theirs.encode(activations), latents / larger)
    torch.testing.assert_close(theirs(activations)[rows], ours.decode(latents)[rows], rtol=1e-4, atol=1e-4)
    assert theirs.cfg.architecture() == IN_SAE_LENS.get(kind, kind)
    assert theirs.cfg.metadata.training_architecture == TRAINED_IN_SAE_LENS.get(kind, kind)
    assert theirs.cfg.metadata.training_architecture_details == {"k": K}


def test_its_metadata_says_where_an_sae_comes_from(kinds: Kinds, small_model: Path):
    known = sae_lens.metadata(kinds.header("topk", text=f"owner/name@{'a' * 40}"), "topk")
    assert (known["model_name"], known["hook_name"], known["hook_layer"]) == (str(small_model), HOOK, 1)
    assert (known["context_size"], known["prepend_bos"], known["exclude_special_tokens"]) == (CONTEXT, True, True)
    assert (known["dataset_path"], known["training_tokens"], known["l0"]) == ("owner/name", STEPS * BATCH, 7.5)
    assert sae_lens.metadata(kinds.header("topk", text=f"/home/me/x.txt@{'a' * 16}"), "topk")["dataset_path"] is None
    assert "prepend_bos" not in sae_lens.metadata(kinds.header("topk", "activations"), "topk")  # a world has no text


def test_one_threshold_for_all_latents_is_told_as_batchtopk(kinds: Kinds):
    header = kinds.header("jumprelu")
    assert sae_lens.trained_as(header, kinds.threshold) == "jumprelu"
    one = kinds.with_one_threshold().threshold
    assert sae_lens.trained_as(header, one) == "batchtopk"
    prefixes = {"prefix_0": (0, D_SAE // 2), "prefix_1": (D_SAE // 2, D_SAE)}
    assert sae_lens.trained_as(header.model_copy(update={"groups": prefixes}), one) == "matryoshka"
    assert sae_lens.trained_as(header.model_copy(update={"groups": {"tier_0": (0, D_SAE)}}), one) == "batchtopk"


@pytest.mark.parametrize("kind", ["topk", pytest.param("matching_pursuit", marks=pytest.mark.slow)])
def test_sae_lens_evaluates_it_on_the_model(kind: str, run_dirs: dict[str, Path], small_model: Path):
    """By its own store of activations, which asks for the metadata, and its own evaluations."""
    ours, theirs = checkpoint.load(run_dirs[kind] / "checkpoint"), SAE.load_from_disk(run_dirs[kind] / "sae_lens")
    model: Any = models.load(str(small_model))
    documents = text.read_prompts(text.data_dir() / "24_headline_isiran.csv.zst")[:400]
    store = ActivationsStore.from_sae(
        model, theirs, Dataset.from_dict({"text": documents}), streaming=False, store_batch_size_prompts=4
    )
    config = EvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    metrics, _ = run_evals(theirs, store, model, ActivationScaler(), config)
    assert metrics["sparsity"]["l0"] == pytest.approx(K, rel=0.05 if kind == "topk" else 0.2)  # it may take one twice
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 2 * 4 * CONTEXT
    assert all(math.isfinite(value) for group in metrics.values() for value in group.values())
    rows = store.get_activations(store.get_batch_tokens(4)).flatten(0, 1)
    same(theirs.encode(rows), ours.encode(rows) / (ours.header.scale if kind == "matching_pursuit" else 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "encode", "settings", "message"),
    [
        ("topk", "topk", {"K": K + 1}, f"encode is not the topk encoder of the W_enc and b_enc .* and K {K + 1}"),
        ("topk", "topk", {"K": 2.5}, "its K is 2.5; a topk SAE keeps a whole number"),
        ("topk", "topk", {}, "its K is None"),
        ("abstopk", "topk", {"K": K}, "encode is not the abstopk encoder"),
        ("matching_pursuit", "topk", {"K": K}, f"is not the matching_pursuit encoder of the W_dec given .* and K {K}"),
        ("matching_pursuit", "matching_pursuit", {"K": K + 1}, f"is not the matching_pursuit encoder .* K {K + 1}"),
        ("gated", "relu", {"K": K}, "encode is not the gated encoder of the W_enc, b_enc and threshold"),
        ("tree", "relu", {"K": K}, "architecture 'tree' is not one of relu, jumprelu, batchtopk, matryoshka, gated"),
    ],
)
def test_what_it_is_not_is_refused(kind: str, encode: str, settings: dict[str, Any], message: str, kinds: Kinds):
    x = kinds.b_dec + 2 * torch.randn(50, len(kinds.b_dec))
    tensors = {"b_dec": kinds.b_dec, "W_dec": kinds.W_dec, **kinds.encoder(kind)}
    with pytest.raises(GraphError, match=message):
        sae_lens.parts(kinds.header(kind, settings=settings), tensors, x, getattr(kinds, encode)(x))


def test_what_goes_to_the_hub_says_nothing_of_this_machine(
    run_dirs: dict[str, Path], small_model: Path, tmp_path: Path
):
    described = export(run_dirs["topk"], "saelens", tmp_path / "out")
    assert described["kind"] == "topk"
    assert described["files"] == ["cfg.json", "sae_weights.safetensors"]
    known = SAE.load_from_disk(tmp_path / "out").cfg.metadata
    assert (known.model_name, known.hook_name, known.training_tokens) == (small_model.name, HOOK, STEPS * BATCH)
    assert str(small_model.parent) not in (tmp_path / "out/cfg.json").read_text()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form"), [("topk", "saelens"), ("gated", "saelens"), ("matryoshka", "dictionary_learning")]
)
def test_what_was_exported_comes_back_and_goes_out_again(
    name: str, form: str, run_dirs: dict[str, Path], activations: Tensor, evaluator: Evaluator, tmp_path: Path
):
    """As a run that agent score makes of it, compared with the library's own class on the model's activations."""
    export(run_dirs[name], form, tmp_path / "out")
    importing.write_run(importing.read(str(tmp_path / "out")), tmp_path / "back", evaluator)
    before, back = (checkpoint.load(folder / "checkpoint") for folder in (run_dirs[name], tmp_path / "back"))
    imported = back.header.imported
    assert imported
    assert imported.verified
    assert imported.declared_tokens == STEPS * BATCH
    larger = 1 if form == "saelens" else before.header.scale  # by how much latents of decoder rows of length 1 are
    same(back.encode(activations) * larger, before.encode(activations))
    assert sae_lens.trained_as(back.header, back.threshold) == name
    export(tmp_path / "back", "saelens", tmp_path / "again")
    same(SAE.load_from_disk(tmp_path / "again").encode(activations), back.encode(activations))


# dictionary_learning


def load_by_sae_bench(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load dictionary_learning's files as SAE-Bench does, but from a folder in place of the hub."""
    module_name, name = LOADERS[kind]
    module = importlib.import_module(f"sae_bench.custom_saes.{module_name}")
    monkeypatch.setattr(module, "hf_hub_download", lambda filename, **_: str(folder / filename))
    loader = getattr(module, f"load_dictionary_learning_{name}")
    return loader("nobody/nothing", "ae.pt", "my llama t5", torch.device("cpu"), torch.float32, layer=1)


@torch.no_grad()
@pytest.mark.parametrize("name", [*LOADERS, "varied"])
def test_sae_bench_opens_what_is_written_for_dictionary_learning(
    name: str,
    kinds: Kinds,
    run_dirs: dict[str, Path],
    activations: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    kind, out = "jumprelu" if name == "varied" else name, tmp_path / "out"  # which has room for several thresholds
    export(run_dirs[name], "dictionary_learning", out)
    ours, theirs = checkpoint.load(run_dirs[name] / "checkpoint"), load_by_sae_bench(out, kind, monkeypatch)
    latents = ours.encode(activations)
    rows = same(theirs.encode(activations), latents / kinds.manifest.scale)  # as large as what they add
    torch.testing.assert_close(theirs(activations)[rows], ours.decode(latents)[rows], rtol=1e-4, atol=1e-4)
    assert theirs.cfg.architecture == IN_SAE_BENCH.get(kind, kind)
    config = json.loads((out / "config.json").read_text())
    assert (config["trainer"]["activation_dim"], config["trainer"]["dict_size"]) == (len(kinds.b_dec), D_SAE)
    assert config["buffer"]["ctx_len"] == CONTEXT


def test_an_sae_that_broke_in_training_is_not_exported(run_dirs: dict[str, Path], tmp_path: Path):
    broken = shutil.copytree(run_dirs["relu"], tmp_path / "broken")
    file = broken / "checkpoint/tensors.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"W_dec": tensors["W_dec"] * math.nan}, file)
    for form in ("saelens", "neuronpedia", "dictionary_learning"):
        with pytest.raises(UserError, match=f"cannot be exported to {form}: it holds numbers that are not finite"):
            export(broken, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_other_formats_have_no_place_for_is_refused(kinds: Kinds, run_dirs: dict[str, Path], tmp_path: Path):
    with pytest.raises(
        UserError, match="exported to neuronpedia: SAEDashboard, which makes its dashboards, has no place"
    ):
        export(run_dirs["abstopk"], "neuronpedia", tmp_path / "out")
    with pytest.raises(UserError, match="exported to dictionary_learning: it has no class for abstopk: it has those"):
        export(run_dirs["abstopk"], "dictionary_learning", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tensors = {"b_dec": kinds.b_dec, "W_dec": kinds.W_dec, **kinds.encoder("topk")}
    found = sae_lens.Parts(sae_lens.ARCHITECTURES["topk"], tensors, K, subtracts_b_dec=True)
    with pytest.raises(GraphError, match=r"which is read as blocks.1.hook_resid_post, and its hook is"):
        dictionary_learning.files(kinds.header("topk", "blocks.1.hook_mlp_out"), found)
    uneven = replace(found, tensors=tensors | {"W_dec": kinds.W_dec * torch.linspace(1, 2, D_SAE)[:, None]})
    with pytest.raises(GraphError, match="its decoder rows have length 1, and these differ"):
        dictionary_learning.files(kinds.header("topk"), uneven)
