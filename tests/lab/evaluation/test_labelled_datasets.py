"""SAE-Bench's sparse_probing, tpp and scr on local text: its own figures, the cache, and the prompts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_lab import D_MODEL, HOOK, K
from torch import Tensor

from agent.lab import text
from agent.lab.evaluation.bench import labelled_datasets, patching, probe_ablation
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.bench.labelled_datasets import CONFOUNDED, MANY_WAY, TWO_WAY, Labelled
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import scr, sparse_probing, tpp
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.results import FamilyScores

pytestmark = pytest.mark.slow

D_SAE = 64
NAMES = ("sparse_probing", "tpp", "scr")


class Dead(RandomSAE):
    """An SAE of which no latent fires."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], D_SAE)


def random_sae(evaluator: Evaluator, seed: int = 0, kind: type[RandomSAE] = RandomSAE) -> RandomSAE:
    """Return an SAE whose latents fire on the padding too: b_enc is not zero."""
    mean = evaluator.held_out("dev", 16).mean
    return kind(evaluator.config(D_SAE, D_MODEL), K, mean, seed)


def small_config(family: str, seed: int = 42) -> Any:
    """Return the family's settings on one dataset at a test's size."""
    if family == "sparse_probing":
        config = sparse_probing.config("small", 32, torch.float32)
        config = replace(config, probe_train_set_size=80, probe_test_set_size=40, dataset_names=[next(iter(TWO_WAY))])
    else:
        config = probe_ablation.config("small", family == "scr", 32, torch.float32)
        dataset = "sae-probes/lure" if family == "scr" else "sae-probes/places"
        config = replace(config, train_set_size=80, test_set_size=40, dataset_names=[dataset], probe_epochs=5)
    return replace(config, random_seed=seed)


def ours(
    evaluator: Evaluator, family: str, sae: BenchSAE, out: Path, seed: int = 42, name: str = "sae"
) -> FamilyScores:
    run = sparse_probing.score_with if family == "sparse_probing" else probe_ablation.score
    return run(evaluator, sae, out, name, small_config(family, seed))


def main_of(family: str) -> ModuleType:
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.evals.sparse_probing import main as probing

    return probing if family == "sparse_probing" else scr_and_tpp


@pytest.fixture(scope="module")
def scored(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], FamilyScores]:
    """Score two SAEs of the same name, one after the other."""
    out = tmp_path_factory.mktemp("scored")
    return {
        (family, seed): ours(evaluator, family, random_sae(evaluator, seed), out / f"{family}{seed}")
        for family in NAMES
        for seed in (0, 1)
    }


@pytest.fixture(autouse=True)
def unchanged_tables() -> Iterator[None]:
    """Check that SAE-Bench's own tables are as before."""
    from sae_bench.evals.scr_and_tpp.main import COLUMN2_VALS_LOOKUP
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    def tables() -> str:
        return str(
            (
                dataset_info.chosen_classes_per_dataset,
                dataset_info.dataset_metadata,
                COLUMN2_VALS_LOOKUP,
                dataset_utils.get_multi_label_train_test_data,
            )
        )

    before = tables()
    yield
    assert tables() == before


# The figures are SAE-Bench's


@pytest.mark.parametrize("family", NAMES)
def test_scores_equal_those_of_sae_bench(
    evaluator: Evaluator,
    family: str,
    scored: dict[tuple[str, int], FamilyScores],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Run its run_eval twice: only from the second on do its figures not depend on which SAE came first.

    The tokenizer cuts at the end, as before sae_probes has run.
    """
    monkeypatch.setattr(evaluator.model.tokenizer, "truncation_side", "right")
    main, saes, config = main_of(family), [("sae", random_sae(evaluator))], small_config(family)
    if family != "sparse_probing":
        config = replace(config, n_values=[n for n in config.n_values if n <= D_SAE])
    model = patching.PreloadedModel(evaluator.model)
    with (
        labelled_datasets.datasets_installed(),
        patching.isolated_sae_bench(main, tmp_path, 0, HookedTransformer=model),
    ):
        for _ in range(2):
            main.run_eval(config, saes, "cpu", str(tmp_path), force_rerun=True, artifacts_path="made")
    (file,) = tmp_path.rglob("sae_custom_sae_eval_results.json")
    expected = {
        name: value for name, value in patching.metrics(json.loads(file.read_text())).items() if value is not None
    }
    metrics = {name: value for name, value in scored[family, 0].metrics.items() if value is not None}
    assert metrics == pytest.approx(expected, abs=1e-4)
    assert len(metrics) >= 8


def test_ablation_by_linearity_is_ablation(evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores]):  # noqa: ARG001
    """Compare with SAE-Bench's own function on padded activations, where latents that fire on padding count too."""
    from sae_bench.evals.scr_and_tpp.main import ablated_precomputed_activations

    (artifacts,) = [
        value for name, value in evaluator.memory.items() if name.startswith("scr_and_tpp-sae-probes-places")
    ]
    prompts, sae, context = artifacts.test["Italy"], random_sae(evaluator), 32
    padded = torch.zeros(len(prompts.lengths), context, D_MODEL)
    for row, x in zip(padded, prompts.rows.split(prompts.lengths.tolist()), strict=True):
        row[: len(x)] = x
    chosen = torch.arange(D_SAE) % 3 == 0
    expected = ablated_precomputed_activations(padded, sae, chosen, 16)  # type: ignore[arg-type]
    at_zero = sae.encode(torch.zeros(1, D_MODEL))[0]
    assert at_zero.any()
    latents = probe_ablation.padded_means(prompts, sae, at_zero, context)
    assert torch.allclose(prompts.mean() - latents[:, chosen] @ sae.W_dec[chosen], expected, atol=1e-5)


def test_tpp_and_scr_are_marked_as_unreliable(scored: dict[tuple[str, int], FamilyScores]):
    for family in ("tpp", "scr"):
        assert "unreliable" in scored[family, 0].remark


def test_a_metric_of_more_latents_than_the_sae_has_is_not_applicable(scored: dict[tuple[str, int], FamilyScores]):
    scores = scored["tpp", 0]
    assert scores.metrics["tpp_threshold_500_total_metric"] is None
    assert scores.not_applicable["tpp_threshold_500_total_metric"] == f"the SAE has {D_SAE} latents"
    assert scores.metrics["tpp_threshold_20_total_metric"] is not None


def test_a_dead_sae_scores_at_chance(evaluator: Evaluator, tmp_path: Path):
    dead = random_sae(evaluator, kind=Dead)
    probed = ours(evaluator, "sparse_probing", dead, tmp_path / "probing")
    assert probed.metrics["sae_top_5_test_accuracy"] == pytest.approx(0.5)
    perturbed = ours(evaluator, "tpp", dead, tmp_path / "tpp")
    assert perturbed.metrics["tpp_threshold_20_intended_diff_only"] == pytest.approx(0, abs=0.05)


def test_a_model_in_bfloat16_is_evaluated_in_float32(evaluator: Evaluator, small_model: Path, tmp_path: Path):
    """On a GPU models are in bfloat16, where SAE-Bench's own probes cannot read the latents of an SAE in float32."""
    low, sae = Evaluator(str(small_model), HOOK), random_sae(evaluator)
    low.held_out("dev", 16)
    low.model, low.folder = low.model.to(torch.bfloat16), tmp_path
    for family in NAMES:
        scores = ours(low, family, sae, tmp_path / family)
        assert len([value for value in scores.metrics.values() if value is not None]) >= 8
    for artifacts in low.memory.values():
        assert {prompts.rows.dtype for prompts in artifacts.train.values()} == {torch.float32}


# Independence and the cache


@pytest.mark.parametrize("family", NAMES)
def test_scores_depend_on_the_sae_and_are_reproducible(
    evaluator: Evaluator, family: str, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    assert scored[family, 0].metrics != scored[family, 1].metrics
    torch.manual_seed(1234)  # earlier use of the generator
    again = ours(evaluator, family, random_sae(evaluator), tmp_path)
    assert again == scored[family, 0]


@pytest.mark.parametrize("family", NAMES)
def test_another_seed_gives_other_scores(
    evaluator: Evaluator, family: str, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    before = set(evaluator.memory)
    other = ours(evaluator, family, random_sae(evaluator), tmp_path, seed=7)
    assert other.metrics != scored[family, 0].metrics
    assert len(set(evaluator.memory) - before) == 1  # the model's part too


def test_the_models_part_is_computed_once_and_survives_a_kill(
    evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    whole = {path: path.stat().st_mtime_ns for path in (evaluator.folder / "prompts").glob("*.safetensors")}
    assert whole
    for path in whole:
        path.with_name(f"{path.name}.1.partial").write_bytes(path.read_bytes()[:1000])  # what a kill leaves
    evaluator.memory.clear()
    assert ours(evaluator, "tpp", random_sae(evaluator), tmp_path) == scored["tpp", 0]
    assert {path: path.stat().st_mtime_ns for path in whole} == whole


def test_prompts_are_cut_at_their_end_even_after_sae_probes(
    evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    """sae_probes makes the model's tokenizer cut from the left."""
    tokenizer: Any = evaluator.model.tokenizer
    for path in (evaluator.folder / "prompts").glob("scr_and_tpp-sae-probes-places*"):
        path.unlink()
    evaluator.memory.clear()
    tokenizer.truncation_side = "left"
    assert ours(evaluator, "tpp", random_sae(evaluator), tmp_path) == scored["tpp", 0]
    assert tokenizer.truncation_side == "left"
    tokenizer.truncation_side = "right"


@pytest.mark.parametrize("family", NAMES)
def test_an_empty_answer_is_an_error(evaluator: Evaluator, family: str, tmp_path: Path):
    """SAE-Bench skips an SAE without a word if there is a file of that name."""
    folder = tmp_path / family if family != "sparse_probing" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "sae_custom_sae_eval_results.json").write_text("{}")
    with pytest.raises(EvaluationError, match="without figures"):
        ours(evaluator, family, random_sae(evaluator), tmp_path)


# The prompts


def test_prompts_are_held_out_and_either_train_or_test():
    with labelled_datasets.datasets_installed():
        for dataset in TWO_WAY | MANY_WAY:
            train, test = labelled_datasets.multi_label(dataset, 200, 100, 42)
            seen = [{text.normalise(p) for prompts in part.values() for p in prompts} for part in (train, test)]
            assert not seen[0] & seen[1]
            assert seen[0] | seen[1] <= text.held_out_prompts()
            assert sum(map(len, seen)) == 150 * len(train)  # and none twice


def test_only_the_biased_set_ties_the_label_to_the_kind_of_text():
    for dataset, confounded in CONFOUNDED.items():
        with labelled_datasets.datasets_installed():
            train, test = labelled_datasets.train_test(dataset, True, 200, 100, 42, confounded.pair, confounded.classes)
        kinds = {
            text.normalise(p): (kind, label)
            for kind, labelled in confounded.kinds.items()
            for label, prompts in labelled_datasets.texts(labelled).items()
            for p in prompts
        }

        def combinations(prompts: list[str], kinds: dict[str, tuple[str, str]] = kinds) -> set[tuple[str, str]]:
            return {kinds[text.normalise(p)] for p in prompts}

        (one, other), (yes, no) = confounded.pair, confounded.classes
        for part in (train, test):
            assert combinations(part["male_professor / female_nurse"]) == {(one, yes)}
            assert combinations(part["female_nurse_data_only"]) == {(other, no)}
            assert combinations(part["male / female"]) == {(one, yes), (other, yes)}
            assert combinations(part["nurse_data_only"]) == {(other, yes), (other, no)}


def test_the_shipped_sizes_fit_the_data(tmp_path: Path):
    place = EvalTarget("tiny-lm", HOOK, False, {"hidden_size": 192, "num_hidden_layers": 4}, lambda: None, tmp_path)
    for family in (sparse_probing, tpp, scr):
        assert family.unmet_requirements(place) == []


def test_unmet_requirements_are_named(tmp_path: Path):
    place = EvalTarget("tiny-lm", HOOK, False, {"hidden_size": 192, "num_hidden_layers": 4}, lambda: None, tmp_path)
    for family in (sparse_probing, tpp, scr):
        vast = replace(place, config={"hidden_size": 10**9, "num_hidden_layers": 4})
        assert "MB are needed" in family.unmet_requirements(vast)[0].reason
    mislabelled = Labelled("105_click_bait", "105_click_bait", {"bait": "1"})
    (requirement,) = labelled_datasets.unmet_requirements(place, [mislabelled], 10)
    assert requirement.reason == "105_click_bait: 0 prompts are labelled 1 and 10 are needed"
