"""The interface of an idea's analysis.py: parts of an SAE, ablations, gradients, kept data."""

from pathlib import Path

import pytest
import torch
from small_lab import D_SAE, HOOK, K

from agent.lab import activations, results
from agent.lab.evaluation import ablation
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.sae_adapter import BenchSAE, PartSAE
from agent.study.runs import Run


@pytest.fixture(scope="module")
def sae(evaluator: Evaluator) -> BenchSAE:
    return evaluator.random_sae(D_SAE, K)


@pytest.fixture(scope="module")
def windows(evaluator: Evaluator) -> ablation.Windows:
    return ablation.read_windows(evaluator.model, HOOK, evaluator.held_out("dev").ids[:6])


def test_a_part_of_an_sae_has_its_latents_and_no_others(evaluator: Evaluator, sae: BenchSAE):
    x = evaluator.held_out("dev").activations[:100]
    lower, upper = PartSAE(sae, 0, 48), PartSAE(sae, 48, D_SAE)
    assert (lower.cfg.d_sae, upper.cfg.d_sae, sae.cfg.d_sae) == (48, D_SAE - 48, D_SAE)
    torch.testing.assert_close(torch.cat([lower.encode(x), upper.encode(x)], 1), sae.encode(x))
    torch.testing.assert_close(lower(x) + upper(x) - sae.b_dec, sae(x))


def test_ablation_equals_the_whole_model_run_without_the_latents(
    evaluator: Evaluator, sae: BenchSAE, windows: ablation.Windows
):
    model, latents = evaluator.model, [3, 5, 8, 13, 21]

    def without(x: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
        return x - sae.encode(x)[..., latents] @ sae.W_dec[latents]

    mask = activations.ordinary_mask(model, windows.ids)[:, :-1]
    before = model(windows.ids).log_softmax(-1)[:, :-1][mask]
    changed = model.run_with_hooks(windows.ids, fwd_hooks=[(HOOK, without)]).log_softmax(-1)[:, :-1][mask]
    next_ids = windows.ids[:, 1:][mask][:, None]
    effects = ablation.ablate(evaluator.model, HOOK, windows, sae, [[latents]])[0]
    assert effects.loss_added[0] == pytest.approx((before - changed).gather(1, next_ids).mean().item(), rel=1e-3)
    assert effects.kl[0] == pytest.approx((before.exp() * (before - changed)).sum(1).mean().item(), rel=1e-3)
    assert effects.kl[0] > 1e-4


def test_ablations_are_compared_by_their_changes_of_the_predictions(
    evaluator: Evaluator, sae: BenchSAE, windows: ablation.Windows
):
    effects = ablation.ablate(evaluator.model, HOOK, windows, sae, [[[3, 5], [5, 3], [], [8]]])[0]
    assert effects.cosine[0, 1].item() == pytest.approx(1)
    assert effects.loss_added[0] == pytest.approx(effects.loss_added[1], abs=1e-6)
    assert effects.loss_added[2] == effects.kl[2] == effects.cosine[0, 2] == effects.cosine[2, 2] == 0
    assert effects.cosine[3, 3].item() == pytest.approx(1)
    assert abs(effects.cosine[0, 3].item()) < 0.999


def test_the_gradient_predicts_the_effect_of_a_small_ablation(
    evaluator: Evaluator, sae: BenchSAE, windows: ablation.Windows
):
    rows, gradient = ablation.loss_gradient(evaluator.model, HOOK, windows)
    latents = sae.encode(rows)
    predicted = -(latents * (gradient @ sae.W_dec.T)).sum(0)
    chosen = predicted.abs().topk(8).indices.tolist()
    share = 1e-2
    small = replace_decoder(sae, share * sae.W_dec)
    measured = [ablation.ablate(evaluator.model, HOOK, windows, small, [[[i]]])[0].loss_added[0] for i in chosen]
    expected = share * predicted[chosen] / windows.count
    torch.testing.assert_close(torch.tensor(measured), expected, rtol=0.05, atol=2e-6)


def replace_decoder(sae: BenchSAE, W_dec: torch.Tensor) -> BenchSAE:
    part = PartSAE(sae, 0, len(sae.W_dec))
    part.W_dec = W_dec
    return part


@pytest.mark.slow
def test_parts_of_an_sae_are_probed(evaluator: Evaluator, sae: BenchSAE, tmp_path: Path):
    exam = Examination(evaluator, sae, evaluator.held_out("dev"), tmp_path)  # type: ignore[arg-type]
    narrow, wide = (exam.probing_accuracy(exam.part(*part), f"part_{part[0]}") for part in ((0, 4), (4, D_SAE)))
    assert 0.5 < narrow < wide < 1


def test_data_that_an_analysis_keeps_can_be_read_for_its_plots(tmp_path: Path):
    folder = tmp_path / "eval/analysis"
    folder.mkdir(parents=True)
    results.keep(folder, "parts.json", {"rows": [1.0, float("nan")]})
    run = Run(state=None, directory=tmp_path, info=None)  # type: ignore[arg-type]
    assert run.kept("parts.json") == {"rows": [1.0, None]}
    assert run.kept("other.json") == {}
    (folder / "parts.json").write_text("{")
    with pytest.raises(results.BadResults, match=r"parts\.json is damaged"):
        run.kept("parts.json")
