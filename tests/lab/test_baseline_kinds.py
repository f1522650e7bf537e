"""The kinds of baseline: each trains on a small model and leaves a checkpoint of its kind, and ideas work on them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ruff import find_ruff_bin
from small_lab import D_SAE, experiment, load, of_idea, stream

from agent import ideas
from agent.ideas import Fixed
from agent.lab import checkpoint, results
from agent.lab.architectures import BASELINES, BaselineName
from agent.running import preflight

KNOBS = {"K": (4, 16), "L1_COEFFICIENT": (5.0, 0.5)}  # the first gives the lower L0
SAE_LENS = {"topk": "topk", "gated": "gated", "relu": "standard"}  # others are JumpReLUs there
SHIPPED = [ideas.load(name) for name in ideas.idea_names()]
PAIRS = [(idea.name, baseline) for idea in SHIPPED for baseline in idea.baselines if baseline != "batchtopk"]


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_file_of_a_baseline_names_its_knob_passes_preflight_and_is_well_formatted(baseline: BaselineName):
    fixed = Fixed(baseline=baseline)
    source = ideas.render_baseline(fixed, 3)
    assert f"\n{fixed.architecture.knob} = 3  # " in source
    preflight.check(source, fixed, {})
    command = [find_ruff_bin(), "format", "--isolated", "--line-length", "120", "--check", "-"]
    assert subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0
    assert max(map(len, source.splitlines())) <= 120


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "batchtopk"])
def test_a_baseline_trains_and_saves_its_kind(small_model: Path, harvest: Any, tmp_path: Path, baseline: BaselineName):  # noqa: ARG001
    saved, x = trained(small_model, baseline, 0, tmp_path)
    first, *_, last = [row.mse or 0.0 for row in results.read_metrics(tmp_path)]
    assert 0 < last < first
    checkpoint.check_behaviour(saved, x)
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(D_SAE))
    _check_in_sae_lens(tmp_path / "sae_lens", saved, x, SAE_LENS.get(baseline, "jumprelu"))


@pytest.mark.slow
@pytest.mark.parametrize("baseline", BASELINES)
def test_l0_follows_the_knob(small_model: Path, harvest: Any, tmp_path: Path, baseline: BaselineName):  # noqa: ARG001
    l0 = []
    for number in (0, 1):
        saved, x = trained(small_model, baseline, number, tmp_path / f"{number}")
        l0.append((saved.encode(x) > 0).sum(1).float().mean().item())
    assert l0[0] < 0.8 * l0[1]


def trained(
    model: Path, baseline: BaselineName, number: int, folder: Path
) -> tuple[checkpoint.Checkpoint, torch.Tensor]:
    """Train a baseline for a few steps with one of its KNOBS; return its checkpoint and the model's activations."""
    knob = BASELINES[baseline].knob
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_SMOKE", "1")
        path = experiment(folder, model, baseline=baseline, LEARNING_RATE=0.02, **{knob: KNOBS[knob][number]})
        load(path).main(folder)
    saved = checkpoint.load(folder / "checkpoint")
    return saved, next(iter(stream(model))) / saved.header.scale


@torch.no_grad()
def _check_in_sae_lens(folder: Path, saved: checkpoint.Checkpoint, x: torch.Tensor, architecture: str) -> None:
    from sae_lens import SAE

    opened = SAE.load_from_disk(folder)
    assert opened.cfg.architecture() == architecture
    ours, theirs = saved.encode(x), opened.encode(x)
    theirs = theirs.to_dense() if theirs.is_sparse else theirs
    assert (
        (ours > 0) == (theirs > 0)
    ).float().mean() > 0.999  # of a pre-activation at a threshold the last bits decide
    torch.testing.assert_close(saved.decode(ours), opened.decode(ours), rtol=1e-4, atol=1e-4)


def test_topk_keeps_exactly_k_of_every_token_and_takes_whole_numbers_only(
    small_model: Path,
    harvest: Any,  # noqa: ARG001
    tmp_path: Path,
):
    module = load(experiment(tmp_path, small_model, baseline="topk"))
    data = stream(small_model)
    sae = module.SAE(data.d_in, D_SAE, data.mean)
    x = next(iter(data))
    assert (sae.encode(x) > 0).sum(1).tolist() == [module.K] * len(x)
    torch.testing.assert_close(sae.select(sae.pre_activations(x)).to_dense(), sae.encode(x))
    with pytest.raises(ValueError, match="TopK keeps a whole number of latents per token"):
        Fixed(baseline="topk", k=2.5)


def test_jumprelus_thresholds_have_the_gradients_of_the_source(small_model: Path, harvest: Any, tmp_path: Path):  # noqa: ARG001
    """Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12, of a window that holds two tokens."""
    module = load(experiment(tmp_path, small_model, baseline="jumprelu"))
    pre = torch.tensor([[0.9], [1.1], [5.0], [0.0]], requires_grad=True)
    threshold = torch.tensor([1.0], requires_grad=True)
    active = module.Step.apply(pre, threshold)
    assert active.tolist() == [[0.0], [1.0], [1.0], [0.0]]
    (by_l0,) = torch.autograd.grad(active.sum(), threshold, retain_graph=True)
    assert by_l0.tolist() == pytest.approx([-2 / module.BANDWIDTH])
    by_pre, by_threshold = torch.autograd.grad((pre * active).sum(), (pre, threshold))
    assert by_threshold.tolist() == pytest.approx([-(0.9 + 1.1) / module.BANDWIDTH])
    assert by_pre.tolist() == active.tolist()


def test_gated_latents_are_those_of_the_source(small_model: Path, harvest: Any, tmp_path: Path):  # noqa: ARG001
    """Rajamanoharan et al. 2024, arXiv 2404.16014, equations 6 and 7."""
    module = load(experiment(tmp_path, small_model, baseline="gated"))
    data = stream(small_model)
    sae = module.SAE(data.d_in, D_SAE, data.mean)
    with torch.no_grad():
        for parameter in (sae.b_gate, sae.b_mag, sae.r_mag):
            parameter.normal_(std=0.3)
    x = next(iter(data))
    inner = (x - sae.b_dec) @ sae.W_enc
    expected = (inner + sae.b_gate > 0) * (inner * sae.r_mag.exp() + sae.b_mag).relu()
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-4, atol=1e-4)


# Ideas on them


@pytest.mark.parametrize(("idea", "baseline"), PAIRS)
def test_each_step_of_an_idea_passes_preflight_on_each_baseline_that_it_names(idea: str, baseline: BaselineName):
    fixed = Fixed(baseline=baseline)
    found = ideas.load(idea)
    for step in found.plan[:1]:
        preflight.check(ideas.render_step(found, step, fixed), fixed, {"run 0": ideas.render_baseline(fixed)})
    for step in found.plan[1:]:
        compile(ideas.render_step(found, step, fixed), step.name, "exec")  # of the same template


@pytest.mark.slow
@pytest.mark.parametrize(("idea", "baseline"), PAIRS)
def test_an_idea_trains_on_each_baseline_that_it_names(
    small_model: Path,
    harvest: Any,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    idea: str,
    baseline: BaselineName,
):
    """Its template with every mechanism off, and the first and the last step of its plan."""
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules = of_idea(tmp_path, small_model, idea, baseline)
    plan = ideas.load(idea).plan
    for name in ("off", plan[0].name, plan[-1].name):
        modules[name].main(tmp_path / name)
        checkpoint.load(tmp_path / name / "checkpoint")


def test_an_idea_that_names_another_baseline_than_it_is_asked_for_says_why():
    assert all(idea.why_not_others for idea in SHIPPED if set(idea.baselines) != set(BASELINES))
