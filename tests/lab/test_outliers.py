"""Tokens of huge norm: trained on by no SAE, told apart by the model alone, scored and not scored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_lab import BATCH, HOOK, experiment, load, save, train
from test_corpus import made_up, write

from agent.lab import activations, corpus, model_shape, models, tokens
from agent.lab.activations import Manifest
from agent.lab.evaluation import scoring
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.requests import Score
from agent.lab.forward import OUTLIER_RATIO

ROWS = 40_000
WORD = " huge"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text in which one word in a few hundred is WORD."""
    documents = made_up(2500, words=40)
    documents = [document + WORD * (number % 4 == 0) for number, document in enumerate(documents)]
    return corpus.pin(str(write(tmp_path_factory.mktemp("outliers") / "a.jsonl", documents)))


@pytest.fixture(scope="module")
def model(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, in whose residual stream the last token of WORD has a huge norm."""
    directory = tmp_path_factory.mktemp("a model with an outlier")
    for file in small_model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    tokenizer = models.load(str(small_model)).tokenizer
    assert tokenizer
    weights = load_file(directory / "model.safetensors")
    weights["gpt_neox.embed_in.weight"][tokenizer(WORD)["input_ids"][-1]] *= 3000
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def harvested(model: Path, text: str) -> tuple[Path, Manifest]:
    return activations.ensure_harvest(str(model), HOOK, ROWS, text)


@pytest.fixture(scope="module")
def run_dir(model: Path, text: str, harvested: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an SAE that was trained for a few hundred steps."""
    module = load(experiment(tmp_path_factory.mktemp("experiment"), model))
    stream = activations.stored_stream(*harvested, 80 * BATCH, BATCH, seed=0)
    sae = train(module, stream)
    run_dir = save(tmp_path_factory.mktemp("outlier run") / "run_0", sae, harvested[1])
    header = run_dir / "checkpoint/header.json"
    content = json.loads(header.read_text())
    content["training"]["text"] = text
    header.write_text(json.dumps(content))
    return run_dir


def test_no_outlier_is_harvested(model: Path, text: str, harvested: tuple[Path, Manifest]):
    folder, manifest = harvested
    assert manifest.median_norm
    stored = torch.cat([load_file(folder / shard.name)["activations"].float() for shard in manifest.shards])
    norms = stored.norm(dim=1) / manifest.stored_scale
    assert norms.max() <= 1.001 * OUTLIER_RATIO * manifest.median_norm
    loaded = models.load(str(model))
    ids = corpus.train_windows(text, str(model), lambda: loaded, ROWS)[:64]
    hidden = activations.run_to_hook(loaded, ids, HOOK)
    ordinary = activations.ordinary_mask(loaded, ids)
    assert (ordinary & activations.is_outlier(hidden, manifest.median_norm)).any(), "the test would show nothing"


def test_the_evaluator_has_the_median_of_the_harvest(model: Path, text: str, harvested: tuple[Path, Manifest]):
    assert Evaluator(str(model), HOOK, text).median_norm == harvested[1].median_norm


def test_scores_stand_with_and_without_outliers_and_a_concentration_is_warned_of(model: Path, text: str, run_dir: Path):
    info = scoring.score(Evaluator(str(model), HOOK, text), Score(run_dir=run_dir, evals=("core",)))
    assert info.core
    assert info.outliers
    assert info.outliers.core
    assert 0 < info.outliers.tokens < 0.1 * info.outliers.of_tokens
    assert info.outliers.share_of_squares
    assert info.outliers.share_of_squares > 0.5
    assert info.core.tokens == info.outliers.of_tokens - info.outliers.tokens
    assert info.outliers.core.tokens == info.outliers.of_tokens
    assert info.core.mse
    assert info.outliers.core.mse
    assert info.outliers.core.mse > 10 * info.core.mse
    (warning,) = [warning for warning in info.verdict.warnings if "outliers" in warning]
    assert f"{info.outliers.tokens:,} of {info.outliers.of_tokens:,} tokens" in warning
    assert f"explained variance {info.outliers.core.explained_variance_centered:.3f}" in warning


def test_a_model_without_outliers_is_scored_once(small_model: Path, text: str):
    corpus.train_windows(text, str(small_model), lambda: models.load(str(small_model)), ROWS)
    evaluator = Evaluator(str(small_model), HOOK, text)
    held_out = evaluator.held_out("dev")
    assert held_out.unmasked is None
    assert held_out.scored is not None
    assert torch.equal(held_out.scored, activations.ordinary_mask(evaluator.model, held_out.ids))


def test_tiny_lm_has_no_outlier_at_any_hook():
    """So its figures are what they were before outliers were left out."""
    model = models.load("tiny-lm")
    ids = tokens.pack(model, made_up(200), models.context_size(model), 2000)[:16]
    ordinary = activations.ordinary_mask(model, ids)
    hooks = [name for name in filter(model_shape.HOOK.fullmatch, model.hook_dict) if "hook_mlp_in" not in name]
    _, cached = model.run_with_cache(ids, names_filter=hooks, prepend_bos=False, stop_at_layer=model.cfg.n_layers)
    assert len(cached) == len(hooks) > 20
    for hook in hooks:
        norms = cached[hook][ordinary].norm(dim=1)
        assert norms.max() < OUTLIER_RATIO / 2 * norms.median(), hook


def test_a_median_of_zero_makes_no_outlier():
    assert not activations.is_outlier(torch.ones(4, 8), 0.0).any()
    assert activations.is_outlier(torch.ones(4, 8), 0.2).all()
