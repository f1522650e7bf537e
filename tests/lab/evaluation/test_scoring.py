"""The evaluator: correct figures, the right verdict for every broken SAE, and no result shared by two SAEs."""

import copy
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from small_kinds import KINDS, make_kinds
from small_lab import D_MODEL, D_SAE, HOOK, TOKENS, K, experiment, load, one_line, run, save, train
from torch import Tensor

from agent.lab import activations, models, results, tokens
from agent.lab.evaluation import scoring, sentinels
from agent.lab.evaluation.bench import core, core_text, probing
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.bench.core_text import TokenStore
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.requests import Score
from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE, measure_usage
from agent.lab.results import FinalInfo


@dataclass
class Trained:
    """The baseline trained on the small model, and variants of it."""

    sae: Any
    manifest: activations.Manifest
    directory: Path

    def save(self, name: str, **changes: Any) -> Path:
        return save(self.directory / name, self.sae, self.manifest, **changes)

    def silent(self, x: Tensor) -> Tensor:
        return (self.sae.pre_activations(x) - 1e9).relu()


def dev(evaluator: Evaluator) -> HeldOut:
    return evaluator.held_out("dev")


def score(evaluator: Evaluator, run_dir: Path, **request: Any) -> FinalInfo:
    return scoring.score(evaluator, Score(run_dir=run_dir, **request))


class Eager(BenchSAE):
    """The trained module itself, shown to SAE-Bench without a checkpoint."""

    def __init__(self, cfg: Any, sae: Any, scale: float) -> None:
        self.sae, self.scale = sae, scale
        b_enc = sae.b_enc - sae.b_dec @ sae.W_enc
        super().__init__(cfg, sae.W_enc * scale, b_enc, sae.W_dec / scale, sae.b_dec / scale)

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        return self.sae.decode(latents) / self.scale


@pytest.fixture(scope="module")
def trained(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory = tmp_path_factory.mktemp("evaluated")
    module = load(experiment(directory, small_model))
    data = activations.stream(str(small_model), HOOK, tokens=TOKENS, batch=module.BATCH, seed=0)
    return Trained(train(module, data).requires_grad_(False), harvest[1], directory)


@pytest.fixture(scope="module")
def run_dirs(trained: Trained) -> dict[str, Path]:
    """Return runs with a sound SAE, one whose decoder rows are permuted, and broken ones."""
    sae = trained.sae
    poison = torch.full((D_SAE,), math.nan)
    mixed = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))
    return {
        "sound": trained.save(
            "sound", architecture="jumprelu", W_enc=sae.W_enc, b_enc=sae.b_enc, threshold=sae.threshold
        ),
        "permuted": trained.save("permuted", W_dec=sae.W_dec[mixed]),
        "sparser": trained.save("sparser", encode=lambda x: sae.encode(x) * (sae.encode(x) > 1.5 * sae.threshold)),
        "dead": trained.save("dead", encode=trained.silent),
        "dense": trained.save("dense", encode=sae.pre_activations),
        "nan decoder": trained.save("nan decoder", W_dec=sae.W_dec * math.nan),
        "nan encoder": trained.save("nan encoder", encode=lambda x: sae.encode(x) * poison),
        "unmoved": trained.save("unmoved", changed=False),
    }


@pytest.fixture(scope="module")
def scored(evaluator: Evaluator, run_dirs: dict[str, Path]) -> dict[str, FinalInfo]:
    """Score all of them with one evaluator, one after another."""
    return {name: score(evaluator, run_dir) for name, run_dir in run_dirs.items()}


@pytest.fixture(scope="module")
def eager(trained: Trained, evaluator: Evaluator) -> Iterator[Eager]:
    with torch.no_grad():
        yield Eager(evaluator.config(D_SAE, D_MODEL), trained.sae, trained.manifest.scale)


def sae_bench_core(sae: BenchSAE, evaluator: Evaluator, batch: int) -> dict[str, dict[str, float]]:
    """Run SAE-Bench core as its own users call it, on the evaluator's windows."""
    from sae_bench.evals.core import main
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    config = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        llm_dtype="float32",
        batch_size_prompts=batch,
        n_eval_reconstruction_batches=core_text.RECONSTRUCTION_BATCHES * core.BATCH_WINDOWS // batch,
        n_eval_sparsity_variance_batches=core_text.VARIANCE_BATCHES * core.BATCH_WINDOWS // batch,
        dataset="the evaluator's windows",
        context_size=dev(evaluator).ids.shape[1],
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    store = TokenStore(dev(evaluator).ids)
    store.store_batch_size_prompts = batch
    special = tokens.special_ids(evaluator.model)
    metrics, _ = main.run_evals(sae, store, evaluator.model, config, {}, ignore_tokens=special)  # type: ignore[arg-type]
    return metrics


def figures(info: FinalInfo) -> Any:
    """Return the core metrics."""
    assert info.core, info.errors
    return info.core


# Correct figures


def test_a_trained_sae_is_ok_and_above_the_random_floor(scored: dict[str, FinalInfo]):
    info = scored["sound"]
    assert info.verdict.ok, info
    assert (info.errors, info.non_finite) == ({}, [])
    measured: Any = info.floor
    assert figures(info).explained_variance_centered > measured.explained_variance_centered + 0.2
    assert figures(info).l0 == pytest.approx(K, rel=0.1)
    assert measured.k == round(figures(info).l0)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "gated")) for kind in KINDS])
def test_an_sae_of_each_kind_is_scored(kind: str, evaluator: Evaluator, small_model: Path, tmp_path: Path):
    info = score(evaluator, make_kinds(small_model).save(tmp_path / kind, kind), evals=("core",))
    assert not info.errors
    assert info.core


def test_core_equals_sae_bench_on_the_module_itself(eager: Eager, evaluator: Evaluator, scored: dict[str, FinalInfo]):
    metrics, measured = sae_bench_core(eager, evaluator, core.BATCH_WINDOWS), figures(scored["sound"])
    compared = {
        "ce_loss_score": metrics["model_performance_preservation"]["ce_loss_score"],
        "ce_loss_with_sae": metrics["model_performance_preservation"]["ce_loss_with_sae"],
        "ce_loss_without_sae": metrics["model_performance_preservation"]["ce_loss_without_sae"],
        "ce_loss_with_ablation": metrics["model_performance_preservation"]["ce_loss_with_ablation"],
        "kl_div_score": metrics["model_behavior_preservation"]["kl_div_score"],
        "explained_variance": metrics["reconstruction_quality"]["explained_variance"],
        "explained_variance_legacy": metrics["reconstruction_quality"]["explained_variance_legacy"],
        "cossim": metrics["reconstruction_quality"]["cossim"],
        "mse_sae_bench": metrics["reconstruction_quality"]["mse"],
        "l2_ratio": metrics["shrinkage"]["l2_ratio"],
        "relative_reconstruction_bias": metrics["shrinkage"]["relative_reconstruction_bias"],
        "l0": metrics["sparsity"]["l0"],
        "l1": metrics["sparsity"]["l1"],
    }
    for name, value in compared.items():
        assert getattr(measured, name) == pytest.approx(value, rel=1e-5), name


def test_explained_variance_is_that_of_sae_lens(eager: Eager, evaluator: Evaluator, scored: dict[str, FinalInfo]):
    calculator = ExplainedVarianceCalculator()
    for x in dev(evaluator).activations.split(1000):
        calculator.add_batch(eager(x), x)
    assert figures(scored["sound"]).explained_variance_centered == pytest.approx(calculator.compute(), abs=1e-5)


def test_mse_is_a_mean_over_tokens_and_dimensions(eager: Eager, evaluator: Evaluator, scored: dict[str, FinalInfo]):
    x = dev(evaluator).activations.double()
    error = (x - eager(dev(evaluator).activations).double()).pow(2).mean().item()
    assert figures(scored["sound"]).mse == pytest.approx(error, rel=1e-5)


def test_mse_does_not_depend_on_the_batch_size_unlike_sae_benchs(eager: Eager, evaluator: Evaluator):
    ours = [measure_usage(eager, dev(evaluator).activations, dev(evaluator).mean, batch) for batch in (100, 5000)]
    assert ours[0].squared_error == pytest.approx(ours[1].squared_error, rel=1e-6)
    theirs = [sae_bench_core(eager, evaluator, batch)["reconstruction_quality"]["mse"] for batch in (8, 16)]
    assert theirs[0] > 1.5 * theirs[1]  # if not, SAE-Bench has fixed it, and our own mse is no longer needed


def test_loss_added_is_what_the_sae_costs(scored: dict[str, FinalInfo]):
    scores = figures(scored["sound"])
    assert scores.loss_added == pytest.approx(scores.ce_loss_with_sae - scores.ce_loss_without_sae)
    assert 0 < scores.loss_added < scores.ce_loss_with_ablation - scores.ce_loss_without_sae


@torch.no_grad()
def test_mean_ablation_is_the_loss_at_the_mean(evaluator: Evaluator, scored: dict[str, FinalInfo]):
    """Compare with another way to compute it: the model run by hand from the hook's layer on."""
    ids = dev(evaluator).ids[: core.BATCH_WINDOWS * core_text.RECONSTRUCTION_BATCHES]
    ordinary = ~torch.isin(ids, torch.tensor(sorted(tokens.special_ids(evaluator.model))))
    hidden = activations.run_to_hook(evaluator.model, ids, HOOK)
    hidden[ordinary] = dev(evaluator).mean
    logits = evaluator.model(hidden, start_at_layer=models.layer_of(HOOK) + 1)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert figures(scored["sound"]).ce_loss_with_mean_ablation == pytest.approx(
        losses[ordinary[:, :-1]].mean().item(), rel=1e-4
    )


def test_probing_scores_every_dataset_for_the_sae_the_model_and_a_random_sae(scored: dict[str, FinalInfo]):
    probed: Any = scored["sound"].probing
    assert [probe.dataset for probe in probed.datasets] == list(probing.DATASETS)
    for probe in probed.datasets:
        assert set(probe.auc) == set(probe.random_auc) == set(probing.KS)
    assert probed.auc[5] == pytest.approx(sum(probe.auc[5] for probe in probed.datasets) / len(probed.datasets))
    assert probed.llm_auc > 0.6


# Reproducible, and never another SAE's


def same(info: FinalInfo) -> dict[str, Any]:
    return info.model_dump(exclude={"evaluation_seconds"})


def test_the_same_checkpoint_gets_the_same_numbers(
    evaluator: Evaluator, run_dirs: dict[str, Path], scored: dict[str, FinalInfo], tmp_path: Path
):
    assert same(score(evaluator, run_dirs["sound"])) == same(scored["sound"])
    shutil.copytree(run_dirs["sound"] / "checkpoint", tmp_path / "elsewhere" / "checkpoint")
    assert same(score(evaluator, tmp_path / "elsewhere")) == same(scored["sound"])


def test_two_saes_never_share_a_result(scored: dict[str, FinalInfo]):
    sound, sparser = scored["sound"], scored["sparser"]
    assert sound.probing
    assert sparser.probing
    assert sound.probing.auc != sparser.probing.auc
    assert sound.environment["checkpoint"] != sparser.environment["checkpoint"]


@pytest.mark.usefixtures("scored")
def test_sae_benchs_own_files_are_kept(run_dirs: dict[str, Path]):
    out = run_dirs["sound"] / "eval"
    (core_file,) = out.glob("core/sae-*_custom_sae_eval_results.json")
    (probing_file,) = out.glob("sparse_probing_sae_probes/sae-*_custom_sae_eval_results.json")
    assert json.loads(core_file.read_text())["eval_type_id"] == "core"
    details = json.loads(probing_file.read_text())["eval_result_details"]
    assert {detail["dataset_name"] for detail in details} == set(probing.DATASETS)


def test_sae_benchs_own_graphs_read_them(
    run_dirs: dict[str, Path], scored: dict[str, FinalInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the directory of the run: of a longer path each word counts, such as the absorption in a study's name."""
    from sae_bench.sae_bench_utils import graphing_utils

    shutil.copytree(run_dirs["sound"], tmp_path / "absorption_study/run_1")
    monkeypatch.chdir(tmp_path / "absorption_study/run_1")
    core_files, probing_files = (
        graphing_utils.find_eval_results_files([f"eval/{family}"]) for family in ("core", "sparse_probing_sae_probes")
    )
    (of_core,) = graphing_utils.get_eval_results(core_files).values()
    (of_probing,) = graphing_utils.get_eval_results(probing_files).values()
    assert of_core["l0"] == pytest.approx(figures(scored["sound"]).l0)
    for found in (of_core, of_probing):
        assert (found["sae_class"], found["train_tokens"]) == ("batch_topk", 100)
    config = json.loads(Path(core_files[0]).read_text())["sae_cfg_dict"]
    assert (config["architecture"], config["k"], config["d_sae"]) == ("batch_topk", K, D_SAE)
    graphing_utils.plot_results(probing_files, core_files, "sparse_probing", "graph", k=5)
    assert {path.name for path in Path().glob("graph_*")} == {"graph_2var_sae_type.png", "graph_2var_dict_size.png"}


@pytest.mark.usefixtures("scored")
def test_a_floor_is_measured_once(evaluator: Evaluator):
    (stored,) = evaluator.folder.glob(f"floor-dev-{D_SAE}-{K}.json")
    before = stored.stat().st_mtime_ns
    assert evaluator.floor("dev", D_SAE, K) == evaluator.floor("dev", D_SAE, K)
    assert stored.stat().st_mtime_ns == before
    assert not [path for path in evaluator.folder.glob("floor-*") if path.is_dir()]


# The sentinels score what they must


def test_a_permuted_decoder_explains_less_than_nothing_with_the_same_latents(scored: dict[str, FinalInfo]):
    sound, permuted = scored["sound"], scored["permuted"]
    assert figures(permuted).explained_variance_centered < 0
    assert (figures(permuted).l0, figures(permuted).l1) == (figures(sound).l0, figures(sound).l1)
    assert permuted.latents == sound.latents  # the same rows in another order
    assert permuted.probing == sound.probing
    assert permuted.verdict.name == "degenerate"


class Undecoded(CheckpointSAE):
    """An SAE that returns its input as the reconstruction, so that a bad decoder goes unnoticed."""

    def encode(self, x: Tensor) -> Tensor:
        self.given = x.float()
        return super().encode(x)

    def decode(self, latents: Tensor) -> Tensor:  # noqa: ARG002
        return self.given


class ForgetfulIdentity(sentinels.IdentitySAE):
    """An identity that loses a little."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents * 0.95)


class Leaky(RandomSAE):
    """A random SAE that keeps one latent more than it claims."""

    def encode(self, x: Tensor) -> Tensor:
        return RandomSAE(self.cfg, self.k + 1, self.b_dec).encode(x)


def failures(evaluator: Evaluator, saes: sentinels.SentinelSAEs, out: Path) -> set[tuple[str, str]]:
    expectations = sentinels.check_expectations(evaluator, saes, out).expectations
    return {(expectation.sentinel, expectation.metric) for expectation in expectations if not expectation.held}


def test_the_sentinels_hold_unless_the_evaluation_is_broken(
    evaluator: Evaluator, run_dirs: dict[str, Path], tmp_path: Path
):
    sound = sentinels.build_sentinels(evaluator, run_dirs["sound"])
    assert failures(evaluator, sound, tmp_path / "sound") == set()
    first, second = sound.trained, sound.permuted
    assert isinstance(first, CheckpointSAE)
    assert isinstance(second, CheckpointSAE)
    sample = dev(evaluator).activations[:8]
    wrong = sentinels.SentinelSAEs(
        trained=first,
        permuted=Undecoded(first.cfg, second.checkpoint, sample),
        identity=ForgetfulIdentity(sound.identity.cfg, sound.identity.b_dec),
        random=Leaky(sound.random.cfg, sound.random.k, sound.random.b_dec),
    )
    assert failures(evaluator, wrong, tmp_path / "wrong") == {
        ("permuted decoder", "explained_variance_centered"),
        ("permuted decoder", "ce_loss_score"),
        ("identity", "explained_variance_centered"),
        ("identity", "ce_loss_score"),
        ("identity", "loss_added"),
        ("random", "l0"),
    }


def test_a_family_that_fails_on_the_sentinels_leaves_its_reason_and_the_others_are_checked(
    evaluator: Evaluator, run_dirs: dict[str, Path], tmp_path: Path
):
    unprobed = copy.copy(evaluator)
    unprobed.probes = probing.ModelProbes("small", tmp_path)
    checked = sentinels.check_evaluator(unprobed, run_dirs["sound"], lambda _: None)
    assert "the model's activations on " in checked.errors["sparse_probing_sae_probes"]
    assert {expectation.metric for expectation in checked.expectations} >= {"ce_loss_score", "l0"}
    assert all(expectation.held for expectation in checked.expectations)


def test_sentinels_that_core_cannot_score_are_an_error_and_not_an_expectation(evaluator: Evaluator, tmp_path: Path):
    checked = sentinels.check_evaluator(evaluator, tmp_path, lambda _: None)
    assert checked.expectations == []
    assert checked.errors["core"].startswith("CheckpointError: ")


@pytest.mark.slow
def test_probing_another_encoder_breaks_a_sentinel(evaluator: Evaluator, run_dirs: dict[str, Path], tmp_path: Path):
    sound = sentinels.build_sentinels(evaluator, run_dirs["sound"])
    other = sentinels.build_sentinels(evaluator, run_dirs["sparser"])
    wrong = replace(sound, permuted=other.permuted)
    assert failures(evaluator, wrong, tmp_path) == {("permuted decoder", "probing_auc_5")}


@pytest.mark.slow
def test_dev_and_test_share_no_window(evaluator: Evaluator):
    one, other = ({tuple(row) for row in evaluator.held_out(split).ids.tolist()} for split in ("dev", "test"))
    assert len(one) == len(other) == core.BATCH_WINDOWS * core_text.VARIANCE_BATCHES
    assert not one & other


def test_a_random_sae_keeps_k_latents(evaluator: Evaluator):
    sae = RandomSAE(evaluator.config(D_SAE, D_MODEL), 5, dev(evaluator).mean)
    usage = measure_usage(sae, dev(evaluator).activations, dev(evaluator).mean)
    assert usage.l0 == pytest.approx(5, abs=0.01)
    assert usage.explained_variance_centered < 0.6


# Broken SAEs


@pytest.mark.parametrize(
    ("name", "verdict", "evidence"),
    [
        ("dead", "degenerate", "L0 is 0.000: the SAE is dead"),
        ("dense", "degenerate", "more than a quarter of d_sae 128: dense"),
        ("permuted", "degenerate", "explained variance -"),
        ("nan decoder", "nan", "not finite"),
        ("nan encoder", "nan", "not finite"),
        ("unmoved", "zero_steps", "no parameter moved"),
    ],
)
def test_a_broken_sae_gets_the_verdict_that_names_its_fault(
    scored: dict[str, FinalInfo], name: str, verdict: str, evidence: str
):
    assert scored[name].verdict.name == verdict
    assert evidence in scored[name].verdict.evidence


def test_a_dead_sae_explains_nothing(scored: dict[str, FinalInfo]):
    info = scored["dead"]
    assert info.latents
    assert figures(info).explained_variance_centered == pytest.approx(0, abs=0.02)  # SAE-Bench's own figure is higher
    assert (figures(info).l0, info.latents.alive_fraction) == (0, 0)


def test_a_figure_that_is_not_finite_is_null_and_listed(scored: dict[str, FinalInfo], run_dirs: dict[str, Path]):
    for name in ("nan decoder", "nan encoder"):
        info = scored[name]
        results.write(run_dirs[name], info)
        assert "NaN" not in (run_dirs[name] / "final_info.json").read_text()
        assert results.read(run_dirs[name]) == info
        assert info.non_finite or info.errors
    assert "core.explained_variance_centered" in scored["nan decoder"].non_finite


# SAEs that cannot be evaluated


@pytest.mark.slow
def test_a_bad_checkpoint_gives_a_result_and_no_crash(run_dirs: dict[str, Path], tmp_path: Path):
    missing, forged, other = tmp_path / "missing", tmp_path / "forged", tmp_path / "other version"
    missing.mkdir()
    for bad in (forged, other):
        shutil.copytree(run_dirs["sound"] / "checkpoint", bad / "checkpoint")
    (forged / "checkpoint" / "code.pkl").write_bytes(b"\x80")
    header = other / "checkpoint" / "header.json"
    header.write_text(header.read_text().replace('"format_version": 1', '"format_version": 9'))
    ended = run("-P", "-m", "agent.lab.evaluation", missing, forged, other)
    assert ended.returncode == 0, ended.stderr
    for bad, evidence in ((missing, "checkpoint"), (forged, "code.pkl"), (other, "version 9")):
        verdict = results.read(bad).verdict
        assert verdict.name == "bad_checkpoint"
        assert evidence in verdict.evidence
    assert ended.stdout.count("verdict: bad_checkpoint") == 3


@pytest.mark.parametrize("damage", ["truncated", "another width", "mixing rows"])
def test_a_checkpoint_that_fails_a_check_is_a_bad_checkpoint(
    evaluator: Evaluator, trained: Trained, run_dirs: dict[str, Path], tmp_path: Path, damage: str
):
    bad = tmp_path / "run"
    if damage == "mixing rows":
        save(bad, trained.sae, trained.manifest, encode=lambda x: trained.sae.encode(x - x.mean(0)))
    elif damage == "another width":
        from small_sae import Sae
        from small_sae import save as save_narrow

        narrow = Sae()
        bad.mkdir()
        save_narrow(bad / "checkpoint", narrow.relu, narrow)
    else:
        shutil.copytree(run_dirs["sound"] / "checkpoint", bad / "checkpoint")
        tensors = bad / "checkpoint" / "tensors.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-100])
    info = score(evaluator, bad)
    assert info.verdict.name == "bad_checkpoint"
    assert "\n" not in info.verdict.evidence


def test_a_path_that_is_not_a_run_is_refused_in_one_line(tmp_path: Path):
    ended = run("-P", "-m", "agent.lab.evaluation", tmp_path / "none")
    assert ended.returncode == 2
    assert "is not a run directory" in one_line(ended.stderr)


def test_probing_a_dataset_without_activations_is_an_error_that_names_it(
    evaluator: Evaluator, eager: Eager, tmp_path: Path
):
    datasets = (probing.DATASETS[0], "999_no_such_dataset")
    with pytest.raises(EvaluationError, match="activations on 999_no_such_dataset are not in"):
        probing.run_probing(eager, evaluator.probes, tmp_path, "sae", datasets)


def test_probing_results_without_a_dataset_are_an_error(evaluator: Evaluator, eager: Eager, tmp_path: Path):
    """SAE-Bench returns such a result if it finds another SAE's file for some of the datasets."""
    left_over = tmp_path / "sae_custom_sae_eval_results.json"
    left_over.write_text("{}")
    with pytest.raises(EvaluationError, match="gave scores for 0 of 1 datasets"):
        probing.run_probing(eager, evaluator.probes, tmp_path, "sae", (probing.DATASETS[0],))


@pytest.mark.slow
def test_a_family_that_fails_leaves_its_reason_and_the_others_go_on(evaluator: Evaluator, trained: Trained):
    run_dir = trained.save("asked too much")
    info = score(evaluator, run_dir, evals=("core", "unlearning", "meta_structure"))
    assert info.verdict.ok
    (reason,) = info.errors.values()
    assert reason.startswith("EvaluationError: SAE-Bench has prompts for gemma-2-2b-it and gemma-2-9b-it, ")
    assert info.families == {"core", "meta_structure"}
    assert not (run_dir / "eval/unlearning").exists()
    assert list((run_dir / "eval/meta_structure").glob("*.json"))


@pytest.mark.slow
def test_a_preparation_that_was_killed_starts_again(evaluator: Evaluator, tmp_path: Path):
    """sae_probes would take half a file of its own for a whole one, or fail on it for ever."""
    dataset = (probing.DATASETS[0],)

    def prepare() -> probing.ModelProbes:
        return probing.prepare_model(evaluator.model, evaluator.model_name, HOOK, tmp_path, dataset)

    made = prepare()
    (marker,) = tmp_path.glob("*.made")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path != marker)
    before = [path.read_bytes() for path in files if path.suffix == ".json"]
    marker.unlink()
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    assert prepare() == made
    assert [path.read_bytes() for path in files if path.suffix == ".json"] == before


@pytest.mark.slow
def test_a_fresh_seed_that_went_on_from_an_earlier_run_is_not_comparable(
    evaluator: Evaluator, trained: Trained, run_dirs: dict[str, Path], small_model: Path
):
    """An experiment that is not confined can keep its weights where its next run finds them."""
    module = load(experiment(trained.directory / "again", small_model))
    data = activations.stream(str(small_model), HOOK, tokens=TOKENS, batch=module.BATCH, seed=1)
    with torch.enable_grad():  # a fixture of this file has switched it off
        afresh, continued = train(module, data), train(module, data, start=trained.sae)
    verdicts = []
    for name, sae in (("afresh", afresh), ("continued", continued)):
        run_dir = save(trained.directory / name, sae.requires_grad_(False), trained.manifest)
        verdicts.append(score(evaluator, run_dir, strangers=(run_dirs["dead"], run_dirs["sound"])).verdict)
    assert [verdict.name for verdict in verdicts] == ["ok", "not_comparable"]
    assert "its decoder has the rows of dead's (mean cosine 0." in verdicts[1].evidence
