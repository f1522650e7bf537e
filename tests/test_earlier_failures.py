"""What earlier attempts at such a program failed by, put into the shipped baseline and told by the parts that guard it.

Where another file has such a failure tested with real parts, it is not tested twice:
- weights of zero, on scores: test_evaluation.py, test_a_sick_sae_is_called_what_it_is (an SAE that is silent); no plan
  may start from such a run: test_answers.py, test_a_plan_that_cannot_be_used_is_said
- zero steps, in the notes and in what is said of them: test_notes.py,
  test_a_run_that_does_not_count_has_no_results_even_where_it_was_measured, and test_audit.py on
  audit_corpus/first/zero_steps and second/never_trained
- nine runs in a row at the ceiling: a run has four attempts, test_loop.py,
  test_a_run_has_four_attempts_and_only_what_an_edit_can_mend_is_tried_again
- an L0 of 1,782 called better than one of 320: test_comparison.py, test_why_a_run_cannot_be_compared and
  test_a_comparison_blind_to_l0_is_fooled; test_notes.py, test_a_run_far_from_every_baseline_is_not_compared;
  test_evaluation.py for what is dense
- a higher L1 norm called better sparsity: test_audit.py on audit_corpus/first/sparsity and second/norms; test_prose.py,
  test_a_claim_that_only_results_may_make_is_found
- optimizer state addressed by parameter instead of index: test_absorption_prevention_sae.py,
  test_adam_forgets_a_resampled_latent_and_no_other
- equal metrics described as an effect: test_audit.py on audit_corpus/first/identical and second/nothing_changed
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import run as as_run
from small_lab import D_SAE, TOKENS, experiment, load
from standin import make_checkout

from agent.ideas import Fixed
from agent.lab import checkpoint, results
from agent.lab.checkpoint import CheckpointError
from agent.lab.evaluation import scoring
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.requests import Score
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import FinalInfo
from agent.lab.training import TrainingStopped
from agent.lab.verdicts import Verdict, judge_scores
from agent.proposers import answers
from agent.proposers.answers import BadAnswer
from agent.running import preflight
from agent.study.outcomes import RunFailed

DEAD = [3, 50, 90]
EV = "explained_variance_centered"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch, harvest: Any) -> None:  # noqa: ARG001
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")


def with_fault(directory: Path, model: Path, *faults: tuple[str, str], **constants: Any) -> Path:
    """directory/experiment.py: the baseline, with parts of its text replaced."""
    path = experiment(directory, model, **constants)
    source = path.read_text()
    for sound, fault in faults:
        assert source.count(sound) == 1, f"the baseline has {sound!r} {source.count(sound)} times"
        source = source.replace(sound, fault)
    path.write_text(source)
    return path


def trained(directory: Path, model: Path, *faults: tuple[str, str], **constants: Any) -> Path:
    """The run that comes of it."""
    run_dir = directory / "run"
    run_dir.mkdir(parents=True)
    load(with_fault(directory, model, *faults, **constants)).main(run_dir)
    return run_dir


def scored(evaluator: Evaluator, run_dir: Path) -> FinalInfo:
    """What the evaluator says of a run that was tried for a few steps."""
    return scoring.score(evaluator, Score(run_dir=run_dir, slice=True))


ZERO = ("directions = F.normalize(torch.randn(d_sae, d_in), dim=1)", "directions = torch.zeros(d_sae, d_in)")


def test_weights_of_zero_are_a_dead_sae_from_the_first_steps_and_nothing_starts_from_it(
    small_model: Path, evaluator: Evaluator, tmp_path: Path
):
    """Its bias learns, so parameters have moved and the loss has fallen; its latents are silent for ever."""
    run_dir = trained(tmp_path, small_model, ZERO)
    assert results.read_metrics(run_dir)[-1].l0 == 0
    info = scored(evaluator, run_dir)
    assert info.verdict.name == "degenerate"
    assert info.verdict.evidence.startswith("L0 is 0.000")
    baseline = as_run(tmp_path, 0, "Baseline", FinalInfo(verdict=Verdict(name="ok", evidence="")))
    run = as_run(tmp_path, 1, "Zero", info)
    starts = {each.number for each in (baseline, run) if each.counts}
    text = "## Reasoning\nOnce more.\n\n## Plan\n1. [from run 1] Zero, again: as before.\n"
    with pytest.raises(BadAnswer, match="starts from run 1, which has no result"):
        answers.parse_plan(text, 2, 5, lambda _, start: start in starts)


def test_a_training_that_ends_after_no_step_leaves_nothing_to_describe(
    small_model: Path, evaluator: Evaluator, tmp_path: Path
):
    with pytest.raises(TrainingStopped, match="zero_steps: training ended without a step"):
        trained(tmp_path, small_model, ("        if step % DEAD_EVERY == 0:", "        break\n        if step == 0:"))
    info = scored(evaluator, tmp_path / "run")
    assert info.verdict.name == "bad_checkpoint"
    assert (info.core, info.training) == (None, None)


def test_a_training_whose_steps_change_nothing_is_none(small_model: Path, tmp_path: Path):
    with pytest.raises(TrainingStopped, match="zero_steps: no parameter moved in 40 steps"):
        trained(tmp_path, small_model, ("        optimizer.step()\n", ""), ("    sae.W_dec.copy_(", "    ("))


def test_a_loss_at_the_ceiling_ends_the_training_at_once_and_the_same_code_is_not_run_again(
    small_model: Path, tmp_path: Path
):
    """It took 48 steps, nine runs in a row."""
    fault = ("    return mse + AUX_COEFFICIENT", "    return 1e8 * latents.sum(1).mean() + mse + AUX_COEFFICIENT")
    with pytest.raises(TrainingStopped, match="loss_ceiling: loss"):
        trained(tmp_path, small_model, fault)
    assert len(results.read_metrics(tmp_path / "run")) == 1
    source, fixed = (tmp_path / "experiment.py").read_text(), Fixed(model=str(small_model), tokens=TOKENS, d_sae=D_SAE)
    preflight.check(source, fixed, {})
    with pytest.raises(RunFailed) as failure:
        preflight.check(f"{source}\n# once more\n", fixed, {"run 1, attempt 1": source})
    verdict = failure.value.verdict
    assert verdict
    assert (verdict.name, "the same code as run 1" in verdict.evidence) == ("no_effect", True)


def test_a_decoder_that_is_transposed_on_its_way_out_is_refused(
    small_model: Path, evaluator: Evaluator, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=r"W_dec is .* \[32, 128\] and must be"):
        trained(tmp_path, small_model, ("        W_dec=sae.W_dec,\n", "        W_dec=sae.W_dec.T,\n"))
    assert scored(evaluator, tmp_path / "run").verdict.name == "bad_checkpoint"


def test_a_square_decoder_that_is_transposed_explains_nothing(small_model: Path, evaluator: Evaluator, tmp_path: Path):
    """No shape tells it, so the scores have to."""
    square = {"D_SAE": 32, "K": 4, "THRESHOLD_RATE": 0.2}  # the threshold has few steps in which to settle
    fault = ("        W_dec=sae.W_dec,\n", "        W_dec=sae.W_dec.T,\n")
    sound = scored(evaluator, trained(tmp_path / "sound", small_model, **square)).metric(EV)
    transposed = scored(evaluator, trained(tmp_path / "transposed", small_model, fault, **square)).metric(EV)
    assert sound is not None
    assert transposed is not None
    assert sound > 0.3
    floor = {"floor_explained_variance": 0.0, "floor_ce_loss_score": None}
    kept = {"l0": 4.0, "d_sae": 32, "ce_loss_score": 0.9, "alive_fraction": 1.0}
    assert judge_scores(explained_variance=transposed, **kept, **floor).name == "degenerate"


@pytest.mark.parametrize("fault", [None, ("pre[:, dead].topk", "pre[:, : len(dead)].topk")])
def test_the_dead_latents_are_columns_of_the_encoder_and_rows_of_the_decoder(
    small_model: Path, tmp_path: Path, fault: tuple[str, str] | None
):
    """They and no others learn from the residual; with a mask that takes others, others do."""
    module = load(with_fault(tmp_path, small_model, *([fault] if fault else [])))
    torch.manual_seed(0)
    sae, x = module.SAE(32, D_SAE, torch.zeros(32)), torch.randn(64, 32)
    module.auxiliary_loss(sae, sae.pre_activations(x), x, torch.tensor(DEAD)).backward()
    columns = sae.W_enc.grad.any(0).nonzero().flatten().tolist()
    rows = sae.W_dec.grad.any(1).nonzero().flatten().tolist()
    assert rows == DEAD
    assert (columns == DEAD) == (fault is None)


def test_a_mask_of_latents_on_the_batch_does_not_pass_for_one_on_the_latents(small_model: Path, tmp_path: Path):
    fault = ("    return (rebuilt - residual)", "    rebuilt[dead] = 0\n    return (rebuilt - residual)")
    module = load(with_fault(tmp_path, small_model, fault))
    sae, x = module.SAE(32, D_SAE, torch.zeros(32)), torch.randn(64, 32)
    with pytest.raises(IndexError, match="out of bounds"):
        module.auxiliary_loss(sae, sae.pre_activations(x), x, torch.tensor(DEAD))


def test_a_change_that_never_reaches_the_loss_leaves_the_same_checkpoint(small_model: Path, tmp_path: Path):
    """Other code, so preflight lets it pass; what the study compares afterwards is equal to the last bit."""
    line = "    residual, latents = x - sae"
    fault = (line, f"    penalty = 0.5 * selected.to_dense().abs().mean()\n{line}")
    idle = trained(tmp_path / "idle", small_model, fault)
    plain = trained(tmp_path / "plain", small_model)
    source, other = ((tmp_path / name / "experiment.py").read_text() for name in ("idle", "plain"))
    preflight.check(source, Fixed(model=str(small_model), tokens=TOKENS, d_sae=D_SAE), {"run 0": other})
    used = trained(tmp_path / "used", small_model, fault, ("return mse +", "return penalty + mse +"))
    hashes = [checkpoint.content_hash(run_dir / "checkpoint") for run_dir in (plain, idle, used)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_a_run_with_the_checkpoint_of_another_has_no_effect(tmp_path: Path):
    """Two steps whose code differs and whose training does not."""
    checkout = make_checkout(tmp_path)
    checkout.plan("denser", "denser")
    path = checkout.root / "templates/ideas/stand_in/idea.yaml"
    idea = yaml.safe_load(path.read_text())
    idea["plan"][1]["parameters"]["more"] = "PENALTY = 0.5"
    path.write_text(yaml.safe_dump(idea))
    ended = checkout.run(2, SAE_AGENT_CACHE=str(tmp_path / "cache"))
    assert ended.returncode == 0, ended.stderr
    verdict = results.read(checkout.study.run_dir(2)).verdict
    assert (verdict.name, verdict.evidence) == ("no_effect", "its checkpoint equals that of run 1")
    section = checkout.notes.split("## Run 2: ")[1]
    assert "Results: none\nVerdict: no_effect (" in section


def test_no_figure_of_sparsity_has_a_better_direction():
    """So no L0 and no norm can be called better, whatever else is said of a run."""
    sparsity = {name for name, metric in METRICS.items() if "l0" in name or "l1" in name}
    assert sparsity == {"l0"}
    assert METRICS["l0"].better == "none"
    assert "l0" in HEADLINE
