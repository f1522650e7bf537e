"""What is kept of a run's latents: contexts, effects, neighbours, counterparts; on a language model and on a world."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_lab import D_SAE, HOOK, experiment, load, save, stream, train
from torch import Tensor, nn

from agent.lab import activations, checkpoint, features, worlds
from agent.lab.activations import Manifest
from agent.lab.evaluation import direct_effect, keep_features, named_latents
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.feature_collector import COUNTED, SAMPLE
from agent.lab.evaluation.feature_text import FeatureText
from agent.lab.evaluation.requests import KeepFeatures
from agent.lab.evaluation.world_evaluator import WorldEvaluator
from agent.lab.features import FEW, Context, Feature, Features
from agent.lab.files import BadFile

TOKENS = 60_000
DEAD, RARE = 3, 5  # latents made so


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path, harvest: tuple[Path, Manifest]
) -> tuple[Path, Manifest]:
    """A study with run 0, and with run 1, which is run 0 with its latents in another order and a half that is new."""
    directory, manifest = tmp_path_factory.mktemp("study"), harvest[1]
    module = load(experiment(directory, small_model))
    sae = train(module, stream(small_model))
    with torch.no_grad():
        sae.b_enc[DEAD] = -1e9
        sae.b_enc[RARE] -= 4.0
    save(directory / "run_0", sae, manifest)
    generator = torch.Generator().manual_seed(1)  # not that of the weights at the start of training
    with torch.no_grad():
        for tensor in (sae.W_dec, sae.W_enc.T, sae.b_enc):
            tensor.copy_(tensor.flip(0))
        sae.W_dec[: D_SAE // 2] = F.normalize(torch.randn(D_SAE // 2, sae.W_dec.shape[1], generator=generator), dim=1)
    save(directory / "run_1", sae, manifest)
    (directory / "run_0/eval/analysis").mkdir(parents=True)
    named_latents.add(directory / "run_0/eval/analysis", D_SAE, {DEAD: "dead", RARE: "rare"}, {RARE: [DEAD]})
    return directory, manifest


@pytest.fixture(scope="module")
def baseline(study: tuple[Path, Manifest], evaluator: Evaluator) -> Features:
    return kept(evaluator, study[0] / "run_0")


def kept(evaluator: Evaluator, run_dir: Path, **request: Any) -> Features:
    found = keep_features.keep(evaluator, KeepFeatures(run_dir=run_dir, **({"tokens": TOKENS} | request)))
    features.write(run_dir, found)
    return found


def of(record: Features, latent: int) -> Feature:
    return next(feature for feature in record.features if feature.latent == latent)


def latents_of(study: tuple[Path, Manifest], evaluator: Evaluator, run: str = "run_0") -> Tensor:
    """Return the latents `[tokens, d_sae]` on the text that was looked at, from the activations as they are kept."""
    sae, text = checkpoint.load(study[0] / run / "checkpoint"), FeatureText(evaluator, TOKENS)
    return torch.cat([sae.encode(text.unscaled(part.rows)) for part in text.parts(1000)])


def test_all_the_text_is_looked_at_and_its_share_said(baseline: Features, evaluator: Evaluator):
    ordinary = activations.ordinary_mask(evaluator.model, FeatureText(evaluator, TOKENS).ids)
    assert TOKENS <= baseline.tokens <= int(ordinary.sum())
    dev = int(activations.ordinary_mask(evaluator.model, evaluator.token_windows("dev")).sum())
    assert 0.95 * dev < int(baseline.text.split(" tokens")[0].replace(",", "")) <= dev
    assert "of the dev text and " in baseline.text
    assert "of the training text" in baseline.text


def test_firing_is_counted_on_every_token(study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features):
    latents = latents_of(study, evaluator)
    assert baseline.tokens == len(latents)
    assert baseline.alive == int((latents != 0).any(0).sum())
    for feature in baseline.features:
        own = latents[:, feature.latent]
        assert feature.fired == int((own != 0).sum())
        assert feature.max_activation == pytest.approx(own.max().item(), rel=1e-3)
        assert sum(feature.histogram) == feature.fired
        if feature.fired:
            expected = torch.histc(own[own != 0], 20, 0, own.max().item())
            assert (torch.tensor(feature.histogram) - expected).abs().sum() <= 2, "at most one on an edge"


def test_contexts_have_the_activations_of_the_sae(
    study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features
):
    text, sae = FeatureText(evaluator, TOKENS), checkpoint.load(study[0] / "run_0/checkpoint")
    strings = ["\0".join(text.strings(window.tolist())) + "\0" for window in text.ids]
    checked = 0
    for feature in [feature for feature in baseline.features if feature.fired > 50][:6]:
        for context in [*feature.top[:2], *feature.spread[:2]]:
            places = [i for i, window in enumerate(strings) if "\0".join(context.tokens) in window]
            ids = text.ids[places]
            hidden = activations.run_to_hook(evaluator.model, ids, HOOK)
            own = sae.encode(hidden)[..., feature.latent] * activations.ordinary_mask(evaluator.model, ids)
            n = len(context.tokens)
            candidates = own.unfold(1, n, 1).reshape(-1, n)
            distance = (candidates - torch.tensor(context.activations)).abs().amax(1).min().item()
            assert distance < 0.02 * feature.max_activation, (feature.latent, context)
            checked += 1
    assert checked > 10


def test_the_strongest_contexts_come_first_and_no_two_show_the_same(
    study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features
):
    def peak(context: Context) -> float:
        return context.activations[context.peak]

    latents = latents_of(study, evaluator)
    for feature in baseline.features:
        contexts = [*feature.top, *feature.spread]
        assert len({tuple(context.tokens) for context in contexts}) == len(contexts)
        assert all(len(context.tokens) == len(context.activations) <= 32 for context in contexts)
        assert all(peak(context) > 0 for context in contexts)
        assert len(feature.top) <= 10
        assert [peak(context) for context in feature.top] == sorted(map(peak, feature.top), reverse=True)
        if feature.fired > 100:
            assert len(feature.top) == 10
            assert peak(feature.top[0]) == pytest.approx(latents[:, feature.latent].max().item(), rel=1e-3)
            assert peak(feature.spread[-1]) < peak(feature.spread[0]) <= peak(feature.top[0])


def test_named_latents_are_kept_however_rarely_they_fire(baseline: Features):
    dead, rare = of(baseline, DEAD), of(baseline, RARE)
    assert (dead.fired, dead.top, dead.spread, dead.histogram, dead.labels) == (0, [], [], [], ["dead"])
    assert DEAD not in baseline.sampled
    assert rare.fired < FEW
    assert (rare.labels, rare.related) == (["rare"], [DEAD])


def test_what_is_kept_is_bounded_and_sampled_among_those_that_fire(baseline: Features, study: tuple[Path, Manifest]):
    assert len(baseline.sampled) == min(SAMPLE, baseline.alive)
    assert len(baseline.features) <= len(baseline.sampled) + 2
    assert [feature.latent for feature in baseline.features] == sorted({*baseline.sampled, DEAD, RARE})
    assert len(baseline.rows()) == 2 * 32 * len(baseline.features)
    assert (study[0] / "run_0" / features.FILE).stat().st_size < 5_000_000


def test_the_same_is_kept_again(study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features):
    before = (study[0] / "run_0" / features.FILE).read_bytes()
    assert kept(evaluator, study[0] / "run_0") == baseline == features.read(study[0] / "run_0")
    assert (study[0] / "run_0" / features.FILE).read_bytes() == before


def test_neighbours_are_by_cosine_and_by_the_correlation_of_firing(
    study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features
):
    rows = F.normalize(checkpoint.load(study[0] / "run_0/checkpoint").W_dec, dim=1)
    fires = (latents_of(study, evaluator)[:COUNTED] != 0).double()
    phi = torch.corrcoef(fires.T).nan_to_num(0)
    for feature in baseline.features:
        cosines = (rows @ rows[feature.latent]).index_fill(0, torch.tensor(feature.latent), -1)
        assert feature.near[0].latent == int(cosines.argmax())
        assert feature.near[0].value == pytest.approx(cosines.max().item(), abs=1e-3)
        assert all(other.latent != feature.latent for other in [*feature.near, *feature.fires_with])
        for other in feature.fires_with:
            assert other.value == pytest.approx(phi[feature.latent, other.latent].item(), abs=1e-3)
        if feature.fires_with:
            own = phi[feature.latent].index_fill(0, torch.tensor(feature.latent), -1)
            assert feature.fires_with[0].value == pytest.approx(own.max().item(), abs=1e-3)


def test_a_run_has_the_counterparts_of_the_baseline_and_its_turnover(
    study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features
):
    run = kept(evaluator, study[0] / "run_1", baseline=study[0] / "run_0")
    found = {feature.latent for feature in run.features}
    same = [latent for latent in baseline.sampled if latent < D_SAE // 2]  # whose rows run 1 has, in another order
    assert {D_SAE - 1 - latent for latent in same} <= found
    for latent in same:
        counterpart = of(run, D_SAE - 1 - latent).in_baseline
        assert counterpart
        assert (counterpart.latent, counterpart.value) == (latent, pytest.approx(1, abs=1e-4))
    (turnover,) = run.turnover
    assert turnover.of == "run 1 and the baseline"
    assert 0.3 < turnover.appeared < 0.7
    assert 0.3 < turnover.lost < 0.7


def test_two_seeds_of_the_baseline_stand_beside_it(
    study: tuple[Path, Manifest], evaluator: Evaluator, tmp_path: Path, baseline: Features
):
    shutil.copytree(study[0] / "run_0/checkpoint", tmp_path / "run_0/checkpoint")
    same = kept(evaluator, tmp_path / "run_0", reseeded=study[0] / "run_0", tokens=5000)
    assert [(each.of, each.appeared, each.lost) for each in same.turnover] == [("two seeds of the baseline", 0, 0)]
    run = kept(evaluator, study[0] / "run_1", baseline=tmp_path / "run_0", tokens=5000)
    assert [each.of for each in run.turnover] == ["run 1 and the baseline", "two seeds of the baseline"]
    assert baseline.turnover == []


def test_when_the_time_is_spent_what_was_seen_has_to_do(study: tuple[Path, Manifest], evaluator: Evaluator):
    short = kept(evaluator, study[0] / "run_1", seconds=1e-6)
    assert 0 < short.tokens < TOKENS
    assert len(short.features) > 10


# The direct effect


def test_the_direct_effect_is_the_change_of_the_logits_with_the_scale_frozen(evaluator: Evaluator):
    model: Any = evaluator.model
    generator = torch.Generator().manual_seed(0)
    row, residual = torch.randn(2, 32, generator=generator)
    row = F.normalize(row, dim=0)
    centred = row - row.mean()
    residual = residual - residual.mean()
    residual = residual - (residual @ centred) / (centred @ centred) * centred  # so that adding the row keeps its scale
    step = 1e-2

    def logits(x: Tensor) -> Tensor:
        return model.unembed(model.ln_final(x[None, None]))[0, 0].double()

    change = (logits(residual + step * row) - logits(residual - step * row)) / (2 * step)
    change = (change - change.mean()) * residual.std(unbiased=False)
    effect = direct_effect.logits(model, HOOK, 7 * row[None])[0]
    torch.testing.assert_close(effect, change.float(), rtol=1e-3, atol=1e-3 * change.abs().max().item())


def test_a_norm_without_centring_is_told_by_what_it_does():
    norm, unembed = nn.RMSNorm(8), nn.Linear(8, 20)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    row = F.normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    effect = direct_effect.logits(SimpleNamespace(ln_final=norm, unembed=unembed), HOOK, row)  # type: ignore[arg-type]
    expected = (row * norm.weight) @ unembed.weight.T
    torch.testing.assert_close(effect, (expected - expected.mean()).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("hook", "adds"), [("attn.hook_z", "hook_attn_out"), ("mlp.hook_post", "hook_mlp_out")])
def test_rows_inside_a_layer_go_through_its_output_weights(evaluator: Evaluator, hook: str, adds: str):
    model: Any = evaluator.model
    ids, name, out = evaluator.token_windows("dev")[:1], f"blocks.1.{hook}", f"blocks.1.{adds}"
    _, cached = model.run_with_cache(ids, names_filter=[name, out], prepend_bos=False)
    row = torch.randn(cached[name].shape[-1], generator=torch.Generator().manual_seed(0))
    after: list[Tensor] = []
    model.run_with_hooks(
        ids,
        fwd_hooks=[(name, lambda x, hook: x + row), (out, lambda x, hook: after.append(x))],  # noqa: ARG005
    )
    added = direct_effect.into_residual(model, name, row[None])[0]
    torch.testing.assert_close((after[0] - cached[out])[0, 5], added, rtol=1e-3, atol=1e-4)


def test_what_a_part_of_the_layer_reads_has_no_direct_effect(evaluator: Evaluator):
    with pytest.raises(direct_effect.NoDirectEffect, match="its rows reach no logit by themselves"):
        direct_effect.logits(evaluator.model, "blocks.1.hook_mlp_in", torch.randn(1, 32))


def test_the_tokens_that_a_row_promotes_are_those_of_its_direct_effect(
    study: tuple[Path, Manifest], evaluator: Evaluator, baseline: Features
):
    W_dec = checkpoint.load(study[0] / "run_0/checkpoint").W_dec
    effect = direct_effect.logits(evaluator.model, HOOK, W_dec[[baseline.sampled[0]]])[0]
    feature, text = of(baseline, baseline.sampled[0]), FeatureText(evaluator, TOKENS)
    assert [token for token, _ in feature.promoted] == text.strings(effect.topk(10).indices.tolist())
    assert feature.suppressed[0][1] == pytest.approx(effect.min().item(), rel=1e-3)
    assert baseline.direct_effect == ""


# A world


def test_a_latent_of_a_world_has_its_true_feature_with_those_above_it(tmp_path: Path, cache_dir: Path):  # noqa: ARG001
    folder = tmp_path / "small world"
    worlds.build(worlds.world_config(64, 24, 4)).save(folder)
    evaluator = WorldEvaluator(str(folder), "activations")
    vectors = evaluator.world.feature_dict.feature_vectors
    root = next(root for root in evaluator.world.hierarchy.roots if root.children)  # type: ignore[union-attr]
    child = root.children[0]
    assert root.feature_index is not None
    assert child.feature_index is not None
    directions = F.normalize(vectors[[root.feature_index, child.feature_index]], dim=1)
    sae = SimpleNamespace(W_dec=directions, b_dec=torch.zeros(24), encode=lambda x: (x @ directions.T - 2.0).relu())
    manifest = SimpleNamespace(model=str(folder), scale=1.0)
    save(tmp_path / "run_0", sae, manifest)  # type: ignore[arg-type]
    header = tmp_path / "run_0/checkpoint/header.json"
    header.write_text(header.read_text().replace(HOOK, "activations"))
    found = kept(evaluator, tmp_path / "run_0", tokens=100_000)
    assert found.direct_effect == "a world has no logits"
    assert found.text == "65,536 samples of the dev text and 34,464 of the training text"
    own, below = (of(found, latent).true_feature for latent in (0, 1))
    assert own
    assert below
    assert (own.feature, own.cosine, own.parents) == (root.feature_index, pytest.approx(1, abs=1e-3), [])
    assert (below.feature, below.parents) == (child.feature_index, [root.feature_index])
    assert own.f1
    assert own.f1 > 0.5
    assert len(of(found, 0).top) == 10
    assert all(len(context.tokens) == 1 for context in of(found, 0).top)


# Names


def test_names_are_bounded_and_one_line(tmp_path: Path):
    named_latents.add(tmp_path, 1000, {7: "first\nline \x1b[2J" + "x" * 500}, {7: range(100)})
    named_latents.add(tmp_path, 1000, {7: "second"}, {})
    named_latents.add(tmp_path, 1000, dict.fromkeys(range(500), "many"), {})
    found = named_latents.read(tmp_path)
    assert len(found) == 200
    assert found[7].labels[0].startswith("first line \\x1b[2Jxxx")
    assert (len(found[7].labels[0]), found[7].labels[1:], len(found[7].related)) == (120, ["second", "many"], 16)


def test_what_is_no_latent_is_not_named(tmp_path: Path):
    with pytest.raises(ValueError, match="8 is none of the 8 latents"):
        named_latents.add(tmp_path, 8, {3: "fine"}, {3: [8]})
    assert named_latents.read(tmp_path) == {}


@pytest.mark.parametrize("latents", [[{"latent": -1, "labels": []}], [{"latent": 1, "labels": ["x" * 121]}], "all"])
def test_names_that_were_planted_are_refused(tmp_path: Path, latents: object):
    (tmp_path / named_latents.FILE).write_text(json.dumps({"latents": latents}))
    with pytest.raises(BadFile, match=r"latents\.json is damaged"):
        named_latents.read(tmp_path)
