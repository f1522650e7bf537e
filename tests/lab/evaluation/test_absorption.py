"""Absorption: SAE-Bench's own metrics, planted absorption, dead SAEs, and models that cannot spell."""

import inspect
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from speller import D_MODEL, HOOK, LETTERS, WORDS, LetterSAE, make_model, make_tokenizer

from agent.lab.evaluation.bench import patching, spelling
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import absorption
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.results import FamilyScores

pytestmark = pytest.mark.slow

MEAN, FULL = "mean_absorption_fraction_score", "mean_full_absorption_score"


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Evaluator:  # noqa: ARG001
    return Evaluator(str(make_model(tmp_path_factory.mktemp("spells"))), HOOK)


@pytest.fixture(scope="module")
def held_out_words(speller: Evaluator) -> list[str]:
    """Return the words that the probes are not trained on."""
    words = spelling.words(speller.model.tokenizer)
    return random.Random(spelling.SEED).sample(words, len(words))[int(spelling.TRAINED_ON * len(words)) :]


def knowing(speller: Evaluator, absorbed: set[str]) -> LetterSAE:
    vocabulary = speller.model.tokenizer.get_vocab()  # type: ignore[union-attr]
    d_sae = len(LETTERS) + sum(word.strip().isalpha() for word in vocabulary)
    return LetterSAE(speller.config(d_sae, D_MODEL), speller.model.W_E, vocabulary, absorbed)


def score(speller: Evaluator, sae: BenchSAE, out: Path, name: str = "sae") -> FamilyScores:
    out.mkdir()
    return absorption.score(speller, sae, out, name)


def target(model: Evaluator, **changes: Any) -> EvalTarget:
    known = {
        "model": model.model_name,
        "hook_name": model.hook_name,
        "world": False,
        "config": {"max_position_embeddings": model.model.cfg.n_ctx, "hidden_size": model.model.cfg.d_model},
        "tokenizer": lambda: model.model.tokenizer,
        "folder": model.folder,
    }
    return EvalTarget(**(known | changes))


def sae_bench(speller: Evaluator, sae: BenchSAE, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run SAE-Bench's own entry point on the model itself and the same probes.

    It sets no seed, and its order of the vocabulary differs from call to call; both are fixed here.
    """
    from sae_bench.evals.absorption import feature_absorption, main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    probes = shutil.copytree(spelling.spelling_dir(speller.folder) / "probes", folder / "probes")
    k_sparse = partial(main.run_k_sparse_probing_experiment, experiment_dir=folder / "k", probes_dir=probes)
    absorbed = partial(
        main.run_feature_absortion_experiment,
        experiment_dir=folder / "absorption",
        sparse_probing_experiment_dir=folder / "k",
        probes_dir=probes,
    )
    monkeypatch.setattr(feature_absorption, "get_alpha_tokens", spelling.words)
    monkeypatch.setattr(main, "run_k_sparse_probing_experiment", k_sparse)
    monkeypatch.setattr(main, "run_feature_absortion_experiment", absorbed)
    monkeypatch.setattr(main, "HookedTransformer", patching.PreloadedModel(speller.model))
    monkeypatch.chdir(folder)
    random.seed(spelling.SEED)
    torch.manual_seed(spelling.SEED)
    config = AbsorptionEvalConfig(model_name=sae.cfg.model_name)
    return main.run_eval(config, [("sae", sae)], "cpu", str(folder))["sae_custom_sae"]  # type: ignore[list-item]


def test_the_metrics_equal_sae_benchs(speller: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sae = RandomSAE(speller.config(96, D_MODEL), 6, torch.zeros(D_MODEL))
    ours = score(speller, sae, tmp_path / "out")
    assert not list(Path(speller.model_name).glob("layer_*")), "probes were put beside the user's model"
    with torch.serialization.safe_globals(patching.probe_classes()):
        theirs = sae_bench(speller, sae, tmp_path, monkeypatch)
    figures = theirs["eval_result_metrics"]["mean"]
    assert figures[MEAN] > 0
    assert ours.metrics == pytest.approx(figures, abs=1e-4)
    for row in theirs["eval_result_details"]:
        letter = row.pop("first_letter")
        assert {name: ours.details[letter][name] for name in row} == pytest.approx(row, abs=1e-4)


def test_a_model_in_bfloat16_has_the_absorption_of_one_in_float32(
    speller: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where there is a GPU, SAE-Bench reads probes and activations in bfloat16 unless it is told otherwise."""
    from sae_bench.evals.absorption import common

    sae = RandomSAE(speller.config(96, D_MODEL), 6, torch.zeros(D_MODEL))
    exact = score(speller, sae, tmp_path / "exact")
    for name in ("load_probe", "load_or_train_probe", "load_probe_data_split", "load_probe_data_split_or_train"):
        function = inspect.unwrap(getattr(common, name))
        on_gpu = tuple(torch.bfloat16 if value is torch.float32 else value for value in function.__defaults__)
        monkeypatch.setattr(function, "__defaults__", on_gpu)
    monkeypatch.setenv("SAE_AGENT_DTYPE", "bfloat16")
    low = score(Evaluator(speller.model_name, HOOK), sae, tmp_path / "low")
    assert low.metrics == pytest.approx(exact.metrics, abs=0.1)
    assert low.metrics != exact.metrics
    assert list(low.details) == list(exact.details)


def test_planted_absorption_is_found_at_its_letters(speller: Evaluator, held_out_words: list[str], tmp_path: Path):
    sound = score(speller, knowing(speller, set()), tmp_path / "sound")
    assert (sound.metrics[FULL], sound.metrics[MEAN], sound.remark) == (0, 0, "")
    known = [letter for letter in sound.details if sound.details[letter]["num_probe_true_positives"] >= 2]
    chosen = known[::2]
    absorbed = {next(word for word in held_out_words if word.strip()[0].lower() == letter) for letter in chosen}
    scored = score(speller, knowing(speller, absorbed), tmp_path / "absorbing")
    counted = {letter: row["num_full_absorption"] for letter, row in scored.details.items()}
    assert counted == {letter: float(letter in chosen) for letter in counted}


def test_a_dead_sae_has_no_absorption(speller: Evaluator, held_out_words: list[str], tmp_path: Path):
    sae = knowing(speller, set())
    alive = sae.encode
    shown = torch.tensor([sae.words.index(word) for word in held_out_words if word in sae.words])

    def one_latent(x: torch.Tensor) -> torch.Tensor:
        """Fire one latent on the held-out words alone, so that the k-sparse probes see no latent fire."""
        latents = torch.zeros_like(alive(x))
        latents[..., -1] = torch.isin((x @ sae.embedding.T).argmax(-1), shown).float()
        return latents

    for case, encode, reason in (
        ("dead", lambda x: alive(x) * 0, "no latent fires on any of the words"),
        ("no letters", one_latent, "the latents chosen for the letters fire on none of the words"),
    ):
        sae.encode = encode  # type: ignore[method-assign]
        scored = score(speller, sae, tmp_path / case)
        assert set(scored.metrics.values()) == {None}
        assert scored.not_applicable == dict.fromkeys(scored.metrics, reason)


def test_an_sae_without_latents_for_letters_gets_a_remark(speller: Evaluator, tmp_path: Path):
    scored = score(speller, RandomSAE(speller.config(40, D_MODEL), 1, torch.zeros(D_MODEL)), tmp_path / "random")
    assert "undertrained" in scored.remark


def test_sae_bench_gets_decoder_rows_of_length_1(speller: Evaluator):
    sae = RandomSAE(speller.config(40, D_MODEL), 4, torch.zeros(D_MODEL))
    sae.W_dec = sae.W_dec * torch.linspace(0, 2, 40)[:, None]
    folded, x = patching.UnitNorm(sae), torch.randn(30, D_MODEL)
    assert folded.W_dec.norm(dim=1)[1:] == pytest.approx(torch.ones(39))
    assert folded(x) == pytest.approx(sae(x), abs=1e-5)


def test_nothing_is_written_into_sae_benchs_own_folders(
    speller: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sae_bench.evals.absorption import common

    monkeypatch.chdir(tmp_path)
    score(speller, knowing(speller, set()), tmp_path / "out", "another")
    assert not common.RESULTS_DIR.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["another_custom_sae_eval_results.json"]
    kept = {path.name for path in speller.folder.iterdir()}
    assert kept <= {spelling.spelling_dir(speller.folder).name, "spelling.lock"}


def test_a_model_that_can_spell_meets_the_requirements(speller: Evaluator):
    assert spelling.measure(speller).folder == spelling.spelling_dir(speller.folder)
    assert absorption.unmet_requirements(target(speller)) == []


def test_a_model_that_cannot_spell_is_refused(tmp_path: Path, cache_dir: Path):  # noqa: ARG001
    mute = Evaluator(str(make_model(tmp_path / "mute", letters="abcdef")), HOOK)
    (mute.folder / "spelling.making").mkdir()  # left by a killed process
    (unmet,) = absorption.unmet_requirements(target(mute))  # measured by another process
    assert "cannot spell: 6 of 26" in unmet.reason
    assert spelling.cached_spelling(mute.folder)
    with pytest.raises(EvaluationError, match="cannot spell"):
        score(mute, RandomSAE(mute.config(40, D_MODEL), 4, torch.zeros(D_MODEL)), tmp_path / "out")


def test_every_other_requirement_is_checked_without_the_model(speller: Evaluator, tmp_path: Path):
    def reasons(**changes: Any) -> str:
        elsewhere = target(speller, folder=tmp_path / "new", **changes)
        return " / ".join(unmet.reason for unmet in absorption.unmet_requirements(elsewhere))

    assert "blocks.1.mlp.hook_post" in reasons(hook_name="blocks.1.mlp.hook_post")
    assert "88 tokens, its context 64" in reasons(config={"max_position_embeddings": 64})
    assert "MB are free" in reasons(config={"hidden_size": 10**15})
    few = make_tokenizer([word for word in WORDS if word[1] not in "qz"])
    assert "begins with q, z" in reasons(tokenizer=lambda: few)
    cut = make_tokenizer([*WORDS, " aB"], " ?[a-z]+| ?[A-Z]")
    assert "1 of its 317 words are not one token" in reasons(tokenizer=lambda: cut)
    together = reasons(
        hook_name="blocks.1.hook_resid_pre", config={"max_position_embeddings": 64}, tokenizer=lambda: few
    )
    assert together.count(" / ") == 2


def test_the_fast_metrics_equal_sklearns():
    from sklearn import metrics

    truth = torch.rand(200, generator=torch.Generator().manual_seed(0)).numpy() > 0.8
    for scores in (truth * 1.0, 1.0 - truth, torch.randint(0, 5, (200,)).numpy() / 4, truth * 0.0):
        ours = spelling.FastMetrics
        assert ours.roc_auc_score(truth, scores) == pytest.approx(metrics.roc_auc_score(truth, scores))
        for name in ("f1_score", "precision_score", "recall_score"):
            theirs = getattr(metrics, name)(truth, scores > 0.5, zero_division=0)
            assert getattr(ours, name)(truth, scores > 0.5) == pytest.approx(theirs)


def test_latents_that_do_not_fit_in_memory_are_encoded_anew_with_the_same_figures(
    speller: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sae = knowing(speller, set())
    kept = score(speller, sae, tmp_path / "kept")
    monkeypatch.setattr(absorption, "KEPT_BYTES", 0)
    anew = score(speller, sae, tmp_path / "anew")
    assert anew.metrics == pytest.approx(kept.metrics)
    assert anew.details.keys() == kept.details.keys()
