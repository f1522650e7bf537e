"""SAE-Bench's sparse_probing, tpp and scr on local text: its own figures, and nothing shared that should not be."""

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

D_SAE = 64
NAMES = ("sparse_probing", "tpp", "scr")


class Dead(RandomSAE):
    """No latent fires."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], D_SAE)


def random_sae(evaluator: Evaluator, seed: int = 0, kind: type[RandomSAE] = RandomSAE) -> RandomSAE:
    """Its latents fire on the padding too: b_enc is not zero."""
    mean = evaluator.held_out("dev", 16).mean
    return kind(evaluator.config(D_SAE, D_MODEL), K, mean, seed)


def asked(family: str, seed: int = 42) -> Any:
    """The family's settings on one dataset at a test's size."""
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
    return run(evaluator, sae, out, name, asked(family, seed))


def main_of(family: str) -> ModuleType:
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.evals.sparse_probing import main as probing

    return probing if family == "sparse_probing" else scr_and_tpp


@pytest.fixture(scope="module")
def scored(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], FamilyScores]:
    """Two SAEs of the same name, one after the other."""
    out = tmp_path_factory.mktemp("scored")
    return {
        (family, seed): ours(evaluator, family, random_sae(evaluator, seed), out / f"{family}{seed}")
        for family in NAMES
        for seed in (0, 1)
    }


@pytest.fixture(autouse=True)
def tables_as_they_were() -> Iterator[None]:
    """SAE-Bench's own datasets stay what they are."""
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
    """Its run_eval twice: only from the second on do its numbers not depend on which SAE came first. The tokenizer cuts
    at the end, as it does until sae_probes was there."""
    monkeypatch.setattr(evaluator.model.tokenizer, "truncation_side", "right")
    main, given, config = main_of(family), [("sae", random_sae(evaluator))], asked(family)
    if family != "sparse_probing":
        config = replace(config, n_values=[n for n in config.n_values if n <= D_SAE])
    lent = patching.PreloadedModel(evaluator.model)
    with labelled_datasets.datasets_installed(), patching.isolated_sae_bench(main, tmp_path, 0, HookedTransformer=lent):
        for _ in range(2):
            main.run_eval(config, given, "cpu", str(tmp_path), force_rerun=True, artifacts_path="made")
    (file,) = tmp_path.rglob("sae_custom_sae_eval_results.json")
    expected = {
        name: value for name, value in patching.metrics(json.loads(file.read_text())).items() if value is not None
    }
    found = {name: value for name, value in scored[family, 0].metrics.items() if value is not None}
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(found) >= 8


def test_ablation_by_linearity_is_ablation(evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores]):  # noqa: ARG001
    """On padded activations, SAE-Bench's own function; the latents that fire on the padding count there too."""
    from sae_bench.evals.scr_and_tpp.main import ablated_precomputed_activations

    (made,) = [each for name, each in evaluator.memory.items() if name.startswith("scr_and_tpp-sae-probes-places")]
    each, sae, context = made.test["Italy"], random_sae(evaluator), 32
    padded = torch.zeros(len(each.lengths), context, D_MODEL)
    for row, x in zip(padded, each.rows.split(each.lengths.tolist()), strict=True):
        row[: len(x)] = x
    chosen = torch.arange(D_SAE) % 3 == 0
    expected = ablated_precomputed_activations(padded, sae, chosen, 16)  # type: ignore[arg-type]
    at_zero = sae.encode(torch.zeros(1, D_MODEL))[0]
    assert at_zero.any()
    latents = probe_ablation.padded_means(each, sae, at_zero, context)
    assert torch.allclose(each.mean() - latents[:, chosen] @ sae.W_dec[chosen], expected, atol=1e-5)


def test_tpp_and_scr_say_that_they_are_unreliable(scored: dict[tuple[str, int], FamilyScores]):
    for family in ("tpp", "scr"):
        assert "unreliable" in scored[family, 0].remark


def test_more_latents_than_there_are_is_not_applicable(scored: dict[tuple[str, int], FamilyScores]):
    found = scored["tpp", 0]
    assert found.metrics["tpp_threshold_500_total_metric"] is None
    assert found.not_applicable["tpp_threshold_500_total_metric"] == f"the SAE has {D_SAE} latents"
    assert found.metrics["tpp_threshold_20_total_metric"] is not None


def test_a_dead_sae_tells_nothing_apart_and_removes_nothing(evaluator: Evaluator, tmp_path: Path):
    dead = random_sae(evaluator, kind=Dead)
    probed = ours(evaluator, "sparse_probing", dead, tmp_path / "probing")
    assert probed.metrics["sae_top_5_test_accuracy"] == pytest.approx(0.5)
    perturbed = ours(evaluator, "tpp", dead, tmp_path / "tpp")
    assert perturbed.metrics["tpp_threshold_20_intended_diff_only"] == pytest.approx(0, abs=0.05)


def test_a_model_in_bfloat16_is_evaluated_in_float32(evaluator: Evaluator, small_model: Path, tmp_path: Path):
    """As on a GPU. There SAE-Bench's own probes cannot read what an SAE in float32 gives."""
    low, sae = Evaluator(str(small_model), HOOK), random_sae(evaluator)
    low.held_out("dev", 16)
    low.model, low.folder = low.model.to(torch.bfloat16), tmp_path
    for family in NAMES:
        found = ours(low, family, sae, tmp_path / family)
        assert len([value for value in found.metrics.values() if value is not None]) >= 8
    for made in low.memory.values():
        assert {each.rows.dtype for each in made.train.values()} == {torch.float32}


# Nothing shared, nothing left to chance


@pytest.mark.parametrize("family", NAMES)
def test_two_saes_share_no_result_and_one_has_the_same_again(
    evaluator: Evaluator, family: str, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    assert scored[family, 0].metrics != scored[family, 1].metrics
    torch.manual_seed(1234)  # whatever went before
    again = ours(evaluator, family, random_sae(evaluator), tmp_path)
    assert again == scored[family, 0]


@pytest.mark.parametrize("family", NAMES)
def test_the_seed_reaches_what_is_drawn(
    evaluator: Evaluator, family: str, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    before = set(evaluator.memory)
    other = ours(evaluator, family, random_sae(evaluator), tmp_path, seed=7)
    assert other.metrics != scored[family, 0].metrics
    assert len(set(evaluator.memory) - before) == 1  # the model's side too


def test_the_models_side_is_made_once_and_survives_a_kill(
    evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    whole = {path: path.stat().st_mtime_ns for path in (evaluator.folder / "prompts").glob("*.safetensors")}
    assert whole
    for path in whole:
        path.with_name(f"{path.name}.1.partial").write_bytes(path.read_bytes()[:1000])  # what a kill leaves
    evaluator.memory.clear()
    assert ours(evaluator, "tpp", random_sae(evaluator), tmp_path) == scored["tpp", 0]
    assert {path: path.stat().st_mtime_ns for path in whole} == whole


def test_prompts_are_cut_at_their_end_whatever_was_probed_before(
    evaluator: Evaluator, scored: dict[tuple[str, int], FamilyScores], tmp_path: Path
):
    """sae_probes turns the model's tokenizer round."""
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
    """SAE-Bench says nothing where it finds a file of that name."""
    folder = tmp_path / family if family != "sparse_probing" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "sae_custom_sae_eval_results.json").write_text("{}")
    with pytest.raises(EvaluationError, match="without figures"):
        ours(evaluator, family, random_sae(evaluator), tmp_path)


# The prompts


def test_prompts_are_held_out_and_in_one_part_only():
    with labelled_datasets.datasets_installed():
        for dataset in TWO_WAY | MANY_WAY:
            train, test = labelled_datasets.multi_label(dataset, 200, 100, 42)
            seen = [{text.normalise(p) for found in part.values() for p in found} for part in (train, test)]
            assert not seen[0] & seen[1]
            assert seen[0] | seen[1] <= text.held_out_prompts()
            assert sum(map(len, seen)) == 150 * len(train)  # and none twice


def test_the_biased_set_ties_the_label_to_the_kind_and_the_test_set_does_not():
    for dataset, confounded in CONFOUNDED.items():
        with labelled_datasets.datasets_installed():
            train, test = labelled_datasets.train_test(dataset, True, 200, 100, 42, confounded.pair, confounded.classes)
        kinds = {
            text.normalise(p): (kind, label)
            for kind, each in confounded.kinds.items()
            for label, found in labelled_datasets.texts(each).items()
            for p in found
        }

        def held(found: list[str], kinds: dict[str, tuple[str, str]] = kinds) -> set[tuple[str, str]]:
            return {kinds[text.normalise(p)] for p in found}

        (one, other), (yes, no) = confounded.pair, confounded.classes
        for part in (train, test):
            assert held(part["male_professor / female_nurse"]) == {(one, yes)}
            assert held(part["female_nurse_data_only"]) == {(other, no)}
            assert held(part["male / female"]) == {(one, yes), (other, yes)}
            assert held(part["nurse_data_only"]) == {(other, yes), (other, no)}


def test_the_shipped_sizes_fit_the_data(tmp_path: Path):
    place = EvalTarget("tiny-lm", HOOK, False, {"hidden_size": 192, "num_hidden_layers": 4}, lambda: None, tmp_path)
    for family in (sparse_probing, tpp, scr):
        assert family.unmet_requirements(place) == []


def test_what_is_lacking_is_said(tmp_path: Path):
    place = EvalTarget("tiny-lm", HOOK, False, {"hidden_size": 192, "num_hidden_layers": 4}, lambda: None, tmp_path)
    for family in (sparse_probing, tpp, scr):
        vast = replace(place, config={"hidden_size": 10**9, "num_hidden_layers": 4})
        assert "MB are needed" in family.unmet_requirements(vast)[0].reason
    mislabelled = Labelled("105_click_bait", "105_click_bait", {"bait": "1"})
    (lack,) = labelled_datasets.unmet_requirements(place, [mislabelled], 10)
    assert lack.reason == "105_click_bait: 0 prompts are labelled 1 and 10 are needed"
