"""Synthetic worlds: built as published, drawn from by seed, and scored against the truth."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.synthetic import (
    FeatureDictionary,
    Hierarchy,
    HierarchyNode,
    SyntheticModel,
    SyntheticModelConfig,
    orthogonalize_embeddings,
)
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from small_lab import load as load_experiment
from small_lab import one_line, run
from torch import Tensor

from agent import ideas
from agent.ideas import Fixed
from agent.lab import activations, metrics, models, worlds
from agent.lab.errors import UserError
from agent.lab.evaluation import catalogue, ground_truth, scoring, sentinels
from agent.lab.evaluation.requests import Score
from agent.lab.evaluation.sae_adapter import CheckpointSAE
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.results import FinalInfo

FEATURES, D_IN, ROOTS = 64, 24, 4
D_SAE, K, SAMPLES = 48, 3, 100_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:  # noqa: ARG001
    """A small world by the published recipe, as sae_lens saves one."""
    directory = tmp_path_factory.mktemp("worlds") / "small world"
    worlds.build(worlds.world_config(FEATURES, D_IN, ROOTS)).save(directory)
    return directory


@pytest.fixture(scope="module")
def evaluator(world: Path) -> WorldEvaluator:
    return WorldEvaluator(str(world), "activations")


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline trained on the small world, not yet scored."""
    run_dir = tmp_path_factory.mktemp("trained") / "run_0"
    run_dir.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_DRIVEN", "1")
        load_experiment(experiment(run_dir.parent, world)).main(run_dir)
    return run_dir


def experiment(directory: Path, world: Path | str) -> Path:
    """directory/experiment.py: the shipped baseline on a world."""
    path = directory / "experiment.py"
    path.write_text(ideas.render_baseline(Fixed(model=str(world), tokens=SAMPLES, d_sae=D_SAE), K))
    return path


def rows(world: Path, split: worlds.Split, count: int) -> Tensor:
    return torch.cat([x for x, _ in worlds.samples(worlds.load(str(world)), count, split)])


# --- built


def test_the_closed_form_goes_the_way_of_autograd():
    vectors = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    plain = orthogonalize_embeddings(vectors, num_steps=50, lr=1e-2)
    ours = worlds.orthogonalize(vectors, 50, 1e-2)
    assert (plain - torch.nn.functional.normalize(vectors, dim=1)).abs().max() > 0.1, "both must have moved"
    assert torch.allclose(ours, plain, atol=1e-4)


def test_the_gradient_is_that_of_the_loss():
    vectors = torch.randn(30, 7, dtype=torch.float64, requires_grad=True)
    dots = vectors @ vectors.T
    squares = dots.diagonal()
    loss = (dots - dots.diagonal().diag()).pow(2).sum() + len(vectors) * (squares - 1).pow(2).sum()
    (expected,) = torch.autograd.grad(loss, vectors)
    assert torch.allclose(worlds.orthogonalization_gradient(vectors.detach()), expected, rtol=1e-10)


def test_all_but_the_directions_is_as_sae_lens_builds_it(world: Path):
    """Also the directions, up to rounding, where sae_lens builds on a CPU."""
    ours, theirs = worlds.load(str(world)), SyntheticModel(worlds.world_config(FEATURES, D_IN, ROOTS))
    assert ours.cfg == theirs.cfg
    assert ours.hierarchy == theirs.hierarchy
    for name in ("firing_probabilities", "mean_firing_magnitudes", "std_firing_magnitudes"):
        assert torch.equal(getattr(ours.activation_generator, name), getattr(theirs.activation_generator, name))
    assert torch.equal(ours.feature_dict.bias, theirs.feature_dict.bias)
    assert torch.allclose(ours.feature_dict.feature_vectors, theirs.feature_dict.feature_vectors, atol=1e-5)


def test_the_largest_world_is_configured_as_published():
    made_as = worlds.world_config(*worlds.SIZES["synth-sae-bench-16k"]).to_dict()
    assert (made_as["num_features"], made_as["hidden_dim"], made_as["bias"], made_as["seed"]) == (16384, 768, 0.5, 42)
    assert (
        made_as["hierarchy"] | {"total_root_nodes": 128, "branching_factor": 4, "max_depth": 3} == made_as["hierarchy"]
    )
    assert made_as["orthogonalization"] | {"num_steps": 100, "lr": 3e-4} == made_as["orthogonalization"]
    assert (made_as["correlation"]["rank"], made_as["correlation"]["correlation_scale"]) == (25, 0.1)


def test_a_damaged_world_is_named(world: Path, tmp_path: Path):
    for path in world.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "synthetic_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"cannot be loaded as a world: .*; delete it"):
        worlds.load(str(tmp_path))


def test_a_world_is_known_by_its_content(world: Path, tmp_path: Path):
    for path in world.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert models.identity(str(tmp_path)) == models.identity(str(world))
    changed = json.loads((tmp_path / "hierarchy.json").read_text())
    (tmp_path / "hierarchy.json").write_text(json.dumps(changed | {"more": 1}))
    assert models.identity(str(tmp_path)) != models.identity(str(world))
    assert models.identity("synth2k") != models.identity("synth-sae-bench-16k")


# --- drawn from


def test_splits_are_other_draws_and_a_split_is_the_same_each_time(world: Path):
    torch.manual_seed(1)
    first = rows(world, "dev", 3000)
    state = torch.get_rng_state()
    again = rows(world, "dev", 3000)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert torch.equal(rows(world, "dev", 1024), first[:1024])
    known = {tuple(row) for row in first.tolist()}
    nothing = tuple(worlds.load(str(world)).feature_dict.bias.tolist())  # where no feature is present
    for other in ("sae", "test"):
        assert known & {tuple(row) for row in rows(world, other, 3000).tolist()} <= {nothing}


def test_the_harvest_holds_the_training_samples(world: Path):
    _, manifest = activations.ensure_harvest(str(world), "activations", 5000)
    stream = activations.stream(str(world), "activations", tokens=5000, batch=500, seed=0)
    streamed, drawn = torch.cat(list(stream)), rows(world, "sae", 5000) * manifest.scale
    assert manifest.d_in == D_IN
    assert streamed.norm(dim=1).mean().item() == pytest.approx(D_IN**0.5, rel=1e-3)
    assert not torch.allclose(streamed, drawn, atol=0.02), "shuffled"
    assert torch.allclose(streamed.sort(0).values, drawn.sort(0).values, rtol=1e-3, atol=0.02)  # float16


def test_a_world_has_one_hook(world: Path):
    with pytest.raises(UserError, match=r"has no hook 'blocks.1.hook_resid_post': its one hook is activations"):
        activations.stream(str(world), "blocks.1.hook_resid_post", tokens=100, batch=10, seed=0)
    with pytest.raises(UserError, match="has no hook 'resid'"):
        WorldEvaluator(str(world), "resid")


def test_a_mistyped_world_is_answered_with_its_name():
    with pytest.raises(UserError, match="synth2k"):
        models.identity("synth2")


# --- settings of a study


def test_a_world_brings_its_own_settings_unless_the_idea_has_some():
    fixed = Fixed(model="synth2k")
    assert (fixed.hook_name, fixed.tokens, fixed.d_sae) == ("activations", 1_000_000, 512)
    said = Fixed(model="synth2k", d_sae=256)
    assert (said.hook_name, said.tokens, said.d_sae) == ("activations", 1_000_000, 256)
    assert said.with_changes(model="tiny-lm") == Fixed(d_sae=256)
    assert Fixed().with_changes(model="synth2k") == fixed
    assert Fixed.model_validate_json(said.model_dump_json()) == said


def test_the_baseline_of_a_world_comes_out_of_the_same_template():
    ours, shipped = ideas.render_baseline(Fixed(model="synth2k")), ideas.render_baseline(Fixed())
    changed = [a for a, b in zip(ours.splitlines(), shipped.splitlines(), strict=True) if a != b]
    names = [line.partition(" ")[0] for line in changed]
    assert {"MODEL", "HOOK_NAME", "TOKENS", "D_SAE", "K", "BATCH"} <= set(names)
    assert all(name.isupper() for name in names), "nothing but constants"
    assert "K = 8  #" in ours


def test_the_primary_metric_is_one_that_the_model_has():
    idea = ideas.load("hierarchical_sae")
    assert ideas.primary_metric_and_effect(idea, "tiny-lm") == ("ce_loss_score", 0.005)
    assert ideas.primary_metric_and_effect(idea, "synth2k") == ("f1", 0.01)
    own = idea.model_copy(update={"primary_metric": "explained_variance_centered"})
    assert ideas.primary_metric_and_effect(own, "synth2k") == ("explained_variance_centered", 0.005)
    truth = idea.model_copy(update={"primary_metric": "mcc"})
    assert ideas.primary_metric_and_effect(truth, "tiny-lm") == ("ce_loss_score", 0.005)


# --- scored


@pytest.fixture(scope="module")
def info(evaluator: WorldEvaluator, trained: Path) -> FinalInfo:
    return scoring.score(evaluator, Score(run_dir=trained, evals=catalogue.TIERS["full"]))


@pytest.mark.slow
def test_a_run_on_a_world(evaluator: WorldEvaluator, trained: Path, info: FinalInfo):
    assert info.verdict.ok, info.verdict
    assert not info.errors
    assert info.core
    assert info.core.ce_loss_score is None
    assert info.core.l0 == pytest.approx(K, rel=0.1)
    measured = {name for name in metrics.HEADLINE if info.metric(name) is not None}
    assert measured == {
        *("l0", "explained_variance_centered", "f1", "uniqueness", "mcc", "alive_fraction", "absorption_true"),
        "meta_structure",  # which needs the decoder alone
    }
    assert all(catalogue.measurable(name, world=True) for name in measured)
    assert not catalogue.measurable("ce_loss_score", world=True)
    sae = evaluator.checkpoint_sae(
        evaluator.load_checkpoint(trained, evaluator.held_out("dev")), evaluator.held_out("dev")
    )
    torch.manual_seed(7)
    found = eval_sae_on_synthetic_data(
        sae,
        evaluator.world.feature_dict,
        evaluator.world.activation_generator,
        65_536,
        1024,  # type: ignore[arg-type]
    )
    assert info.metric("f1") == pytest.approx(found.classification.f1_score, abs=0.01), "samples of another seed"
    assert info.metric("mcc") == pytest.approx(found.mcc, abs=1e-6)
    assert info.metric("uniqueness") == found.uniqueness
    assert info.evaluations["synthetic"].metrics["recall"] == pytest.approx(found.classification.recall, abs=0.01)
    own = info.evaluations["synthetic"].metrics
    assert info.core.explained_variance_centered == pytest.approx(own["explained_variance"], abs=1e-4)
    assert info.core.l0 == pytest.approx(own["l0"], abs=1e-3)
    assert info.core.l2_ratio == pytest.approx(own["shrinkage"], abs=1e-3)
    (kept,) = (trained / "eval/synthetic").iterdir()
    assert json.loads(kept.read_text())["mcc"] == info.metric("mcc")


@pytest.mark.slow
def test_the_floor_has_no_truth_in_it(info: FinalInfo):
    assert info.floor
    assert info.floor.ce_loss_score is None
    assert info.floor.truth["f1"] < info.metric("f1") - 0.1
    assert info.floor.explained_variance_centered < info.metric("explained_variance_centered") - 0.1


@pytest.mark.slow
def test_test_samples_give_other_figures(evaluator: WorldEvaluator, trained: Path, info: FinalInfo):
    tested = scoring.score(evaluator, Score(run_dir=trained, split="test", evals=("core", "synthetic")))
    assert tested.metric("f1") != info.metric("f1")
    assert tested.metric("f1") == pytest.approx(info.metric("f1"), abs=0.02)


@pytest.mark.slow
def test_a_slice_is_scored_without_the_truth(evaluator: WorldEvaluator, trained: Path):
    sliced = scoring.score(evaluator, Score(run_dir=trained, slice=True))
    assert sliced.verdict.ok
    assert not sliced.evaluations


@pytest.mark.slow
def test_a_dead_sae_scores_nothing_perfect(evaluator: WorldEvaluator, trained: Path):
    loaded = evaluator.load_checkpoint(trained, evaluator.held_out("dev"))
    sae = CheckpointSAE(evaluator.config(D_SAE, D_IN), loaded, evaluator.held_out("dev").activations[:64])
    sae.encode = lambda x: torch.zeros(len(x), D_SAE)  # type: ignore[method-assign]
    scored, _ = ground_truth.measure(evaluator.world, sae, evaluator.held_out("dev", 16).features)
    assert scored.metrics["absorption"] is None
    assert scored.not_applicable == {"absorption": "no latent fires"}
    assert scored.metrics["f1"] == 0
    assert scored.metrics["dead_latents"] == D_SAE


@pytest.mark.slow
def test_the_sentinels_hold_and_a_broken_evaluation_shows(evaluator: WorldEvaluator, trained: Path, tmp_path: Path):
    tried = sentinels.build_sentinels(evaluator, trained)
    found = sentinels.check_expectations(evaluator, tried, tmp_path)
    assert [each for each in found.expectations if not each.held] == []
    assert {each.metric for each in found.expectations} == {"explained_variance_centered", "l0", "f1", "mcc"}
    swapped = dataclasses.replace(tried, permuted=tried.trained, random=tried.random)
    broken = {
        (e.sentinel, e.metric)
        for e in sentinels.check_expectations(evaluator, swapped, tmp_path).expectations
        if not e.held
    }
    assert broken == {("permuted decoder", "explained_variance_centered"), ("permuted decoder", "f1")}


# --- absorption, by hand


class ByHand:
    """Reads the features of a world with orthonormal directions exactly; its latents are what is asked for."""

    def __init__(self, world: SyntheticModel, W_dec: Tensor, quiet: Sequence[tuple[int, int]] = (), on: bool = True):
        self.W_dec, self.world, self.quiet, self.on = W_dec, world, quiet, on

    def eval(self) -> "ByHand":
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Latent i is feature i, but silent where `quiet` has (i, j) and feature j is present."""
        dictionary = self.world.feature_dict
        features = (x - dictionary.bias) @ dictionary.feature_vectors.T
        features = torch.where(features > 0.01, features, 0.0)
        latents = features.clone()
        for latent, present in self.quiet:
            latents[features[:, present] > 0, latent] = 0
        return latents * self.on

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.world.feature_dict.bias


@pytest.fixture(scope="module")
def family() -> SyntheticModel:
    """Feature 0 with the children 1 and 2, and 3 below 1; 4 stands alone. Orthonormal, in 8 dimensions."""
    made_as = SyntheticModelConfig(num_features=5, hidden_dim=8, bias=0.5, seed=0)
    dictionary = FeatureDictionary(5, 8, bias=0.5, initializer=None, seed=0)
    dictionary.feature_vectors.data = torch.linalg.qr(torch.randn(8, 5)).Q.T.contiguous()
    below = HierarchyNode(1, children=[HierarchyNode(3)])
    hierarchy = Hierarchy(roots=[HierarchyNode(0, children=[below, HierarchyNode(2)])], modifier=None)
    return SyntheticModel(made_as, feature_dict=dictionary, hierarchy=hierarchy).requires_grad_(False)


# The features of ten samples: the parent is in nine of them, with 1 in four, once of these with 3, with 2 in two.
PRESENT = [(0,), (0,), (0,), (0, 1), (0, 1), (0, 1, 4), (0, 1, 3), (0, 2), (0, 2), (4,)]


def absorbed(family: SyntheticModel, rows: dict[int, dict[int, float]], **by_hand: Any) -> ground_truth.Absorption:
    """Of latents whose decoder row is their own feature and, for those in `rows`, parts of others."""
    parts = torch.eye(5)
    for latent, others in rows.items():
        for feature, part in others.items():
            parts[latent, feature] = part
    sae = ByHand(family, parts @ family.feature_dict.feature_vectors, **by_hand)
    features = torch.zeros(len(PRESENT), 5)
    for sample, present in enumerate(PRESENT):
        features[sample, list(present)] = 2.0
    return ground_truth.absorption(family, sae, [batch.to_sparse() for batch in features.split(4)])  # type: ignore[arg-type]


def test_absorption_by_hand(family: SyntheticModel):
    found = absorbed(family, {1: {0: 0.9}}, quiet=[(0, 1)])
    assert found.parents[0] == {"present": 9, "silent": pytest.approx(4 / 9), "absorbed": pytest.approx(4 / 9)}
    assert found.parents[1]["absorbed"] == 0, "feature 1 is a parent too, and its own latent speaks"
    assert found.rate == pytest.approx(4 / 9 / 2)


@pytest.mark.parametrize(
    ("says", "rows", "quiet", "rate"),
    [
        ("each latent speaks for itself", {}, [], 0.0),
        ("silent, but no child carries the parent: missing, not absorbed", {}, [(0, 1)], 0.0),
        ("carried, but the parent's own latent fires: split, not absorbed", {1: {0: 0.9}}, [], 0.0),
        ("carried too little", {1: {0: 0.39}}, [(0, 1)], 0.0),
        ("carried just enough", {1: {0: 0.41}}, [(0, 1)], 4 / 9 / 2),
        ("carried by a grandchild, where it is present", {3: {0: 0.9}}, [(0, 1)], 1 / 9 / 2),
        ("carried by a stranger", {4: {0: 0.9}}, [(0, 1)], 0.0),
        ("both children absorb", {1: {0: 0.9}, 2: {0: 0.9}}, [(0, 1), (0, 2)], 6 / 9 / 2),
    ],
)
def test_what_counts_as_absorption(family: SyntheticModel, says: str, rows: Any, quiet: Any, rate: float):
    assert absorbed(family, rows, quiet=quiet).rate == pytest.approx(rate), says


def test_where_absorption_has_no_value(family: SyntheticModel):
    silent = absorbed(family, {}, on=False)
    assert (silent.rate, silent.reason) == (None, "no latent fires")
    strangers = {0: {0: 0, 4: 1}, 1: {1: 0, 4: 1}}
    unmatched = absorbed(family, strangers)
    assert (unmatched.rate, unmatched.reason) == (None, "no latent matches a parent feature")
    flat = SyntheticModel(family.cfg, feature_dict=family.feature_dict)
    assert absorbed(flat, {}).reason == "the world has no hierarchy"


# --- as a user meets it


@pytest.mark.slow
def test_a_run_by_hand_on_a_world(world: Path, tmp_path: Path):
    script = experiment(tmp_path, world)
    ended = run(script, f"--out_dir={tmp_path / 'run_0'}")
    assert ended.returncode == 0, ended.stderr
    assert "\nf1: 0." in ended.stdout
    assert "\nuniqueness: " in ended.stdout
    shown = run("-m", "agent", "show", tmp_path / "run_0").stdout
    assert "ground truth" in shown
    assert "uniqueness" in shown


def test_a_wrong_hook_is_one_line(world: Path, tmp_path: Path):
    script = experiment(tmp_path, world)
    script.write_text(script.read_text().replace('HOOK_NAME = "activations"', 'HOOK_NAME = "blocks.0.hook_mlp_out"'))
    ended = run(script, f"--out_dir={tmp_path / 'run_0'}")
    assert ended.returncode == 2
    assert "its one hook is activations" in one_line(ended.stderr)
