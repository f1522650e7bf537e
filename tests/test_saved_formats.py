"""Read what version 0.1 left on disk: every value is intact, and an interrupted study is resumed to its end."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from git import Repo
from safetensors.torch import load_file
from standin import Checkout, make_checkout

from agent.audit import audit, known_figures
from agent.lab import checkpoint, results
from agent.llm import transcript
from agent.report.notes import edited
from agent.study import ledger
from agent.study.events import StudyInterrupted
from agent.study.state import State, derive
from agent.study.workspace import Study

SAVED = Path(__file__).parent / "fixtures/version_0_1"
LLM_STUDY, INTERRUPTED = SAVED / "llm_study", SAVED / "interrupted_study"
CHECKPOINT, EVALUATED = SAVED / "checkpoint", SAVED / "evaluated_run"
NOT_OF_THE_STUDY = ("idea.yaml", "notes.txt", "repository.tar.gz")  # in the folder of the interrupted one

STUDIES = pytest.mark.parametrize("study", [LLM_STUDY, INTERRUPTED], ids=lambda path: path.name)


def run_dirs_with(name: str) -> "pytest.MarkDecorator":
    """Parametrize a test over the saved run directories that hold this file."""
    found = sorted(path.parent for path in SAVED.rglob(name))
    return pytest.mark.parametrize("run_dir", found, ids=lambda path: str(path.relative_to(SAVED)))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_intact(saved: Any, loaded: Any, where: str = "") -> None:
    """Assert that a loaded record holds all that was saved; it may have fields that were added later."""
    if isinstance(saved, dict):
        assert not saved.keys() - loaded.keys(), where
        for name, value in saved.items():
            assert_intact(value, loaded[name], f"{where}.{name}")
    elif isinstance(saved, list):
        assert len(saved) == len(loaded), where
        for index, (value, other) in enumerate(zip(saved, loaded, strict=True)):
            assert_intact(value, other, f"{where}.{index}")
    else:
        assert saved == loaded, where


def state_of(study: Path) -> State:
    return derive(ledger.read(study / "events.jsonl"))


# The ledger, and the state that follows from it


@STUDIES
def test_every_event_of_the_ledger_is_intact(study: Path):
    events = ledger.read(study / "events.jsonl")
    for line, event in zip(records(study / "events.jsonl"), events, strict=True):
        del line["check"]
        assert_intact(line, json.loads(event.model_dump_json()), line["event"])


def test_the_state_of_a_finished_study():
    state = state_of(LLM_STUDY)
    assert (state.started.idea, state.started.fixed.model, state.started.fixed.tokens) == (
        "stand_in",
        "tiny-lm",
        1_500_000,
    )
    assert (state.started.primary_metric, state.started.smallest_effect) == ("ce_loss_score", 0.005)
    assert state.started.evals == ("core", "sparse_probing_sae_probes")
    assert state.started.left_out == {"synthetic": "it has no stand-in: write one"}
    assert state.started.language_model
    assert (state.started.language_model.model, state.started.language_model.max_tokens) == ("scripted", 100_000)
    assert state.started.language_model.prices == (1, 2)
    assert (state.started.max_runs, state.started.run_timeout, state.runs_used) == (2, 30, 2)
    assert (state.finished, state.interrupted, state.broken) == (True, None, [])
    assert state.ended == "the budget of 2 runs is spent"
    assert state.sentinels
    assert [(each.sentinel, each.found, each.held) for each in state.sentinels] == [("permuted decoder", -1.2, True)]
    assert state.plan
    assert [(run.title, run.start) for run in state.plan.runs] == [("Slower", 1)]
    assert state.sent_back == []
    assert state.seconds == pytest.approx(36.356)
    assert state.seconds_before == pytest.approx(29.342)


def test_the_runs_of_a_finished_study():
    state = state_of(LLM_STUDY)
    assert [(run.number, run.proposal.title, run.proposal.start, run.attempt, run.by_hand) for run in state.runs] == [
        (0, "Baseline", 0, 1, False),
        (1, "Tiers", 0, 3, False),
        (2, "Slower", 1, 2, False),
        (3, "My own idea", 0, 1, True),
    ]
    assert {run.stage for run in state.runs} == {"done"}
    assert {run.verdict and run.verdict.name for run in state.runs} == {"ok"}
    assert [
        (run.number, attempt, failure.verdict.name, failure.verdict.evidence)
        for run in state.runs
        for attempt, failure in run.failed_attempts.items()
    ] == [
        (1, 1, "preflight", "line 15: BEHAVIOUR = undefined: Undefined name `undefined`"),
        (1, 2, "crashed", "ValueError: the edit was wrong"),
        (2, 1, "killed", "interrupted while training"),
    ]
    assert state.runs[1].proposal.predictions["ce_loss_score"] == "up"
    assert state.runs[1].proposal.source == (LLM_STUDY / "run_1/experiment.py").read_text()
    assert state.runs[1].described
    assert state.runs[1].described.startswith("Its CE-loss score {{run_1 vs baseline ce_loss_score}}")


def test_what_runs_of_a_finished_study_are_compared_with():
    state = state_of(LLM_STUDY)
    levels = [(16, 0), (15, 0), (17, 0), (16, 1), (16, 2), (16, 3), (16, 4), (8, 0), (32, 0)]
    assert [(baseline.k, baseline.seed) for baseline in state.baselines] == sorted(levels)
    assert list(state.baselines_tried) == levels
    assert state.baselines[sorted(levels).index((15, 0))].figures["ce_loss_score"] == 0.9538454053375754
    assert list(state.replicates) == [1]
    assert list(state.replicates[1]) == [1000, 1001, 1002]
    compared = state.replicates[1][1002].metrics["ce_loss_score"]
    assert (compared.value, compared.reference, compared.df) == (0.976064626424884, 0.9558666954527726, 4)
    assert list(state.tested) == [0, 1]
    assert state.tested[1].figures["ce_loss_score"] == 0.9760107698688539


def test_why_a_study_was_interrupted():
    stops = [event for event in ledger.read(LLM_STUDY / "events.jsonl") if isinstance(event, StudyInterrupted)]
    assert stops[0].why == ""
    assert stops[1].why.startswith("the account at 127.0.0.1:")


def test_the_state_of_an_interrupted_study():
    state = state_of(INTERRUPTED)
    assert [(run.number, run.stage, run.attempt) for run in state.runs] == [
        (0, "done", 1),
        (1, "done", 1),
        (2, "training", 1),
    ]
    assert (state.runs_used, state.ended, state.finished, len(state.baselines)) == (2, None, False, 9)


# The transcript


def test_every_exchange_of_the_transcript_is_intact():
    path = LLM_STUDY / "transcript.jsonl"
    exchanges = transcript.read(path)
    for line, exchange in zip(path.read_text().splitlines(), exchanges, strict=True):
        assert_intact(json.loads(line), json.loads(exchange.model_dump_json()))
    assert [exchange.purpose for exchange in exchanges] == [
        *("plan", "proposal", "proposal", "proposal", "description", "description"),
        *("plan", "proposal", "description", "description"),
    ]
    assert [exchange.error and exchange.error.kind for exchange in exchanges] == [*[None] * 8, "quota", None]
    assert sum(exchange.usage.tokens_in + exchange.usage.tokens_out for exchange in exchanges) == 1_080
    assert sum(exchange.cost or 0 for exchange in exchanges) == pytest.approx(0.00126)
    assert [exchange.seq for exchange in transcript.outcomes(exchanges)] == [0, 1, 2, 3, 4, 5, 6, 7, 9]


# Results


@run_dirs_with("final_info.json")
def test_every_figure_of_a_run_is_intact(run_dir: Path):
    saved = json.loads((run_dir / "final_info.json").read_text())
    assert_intact(saved, results.read(run_dir).model_dump(mode="json"))


def test_metrics_of_an_evaluated_run_by_name():
    info = results.read(EVALUATED)
    assert info.verdict.ok
    assert info.families == {"core", "sparse_probing_sae_probes"}
    wanted = {
        "steps": 293,
        "tokens": 150_000,
        "final_loss": 0.12721475958824158,
        "l0": 7.757218360900879,
        "alive_fraction": 0.9921875,
        "explained_variance_centered": 0.9027597075433469,
        "ce_loss_score": 0.8898590398063766,
        "loss_added": 0.09239673614501953,
        "probing_auc_5": 0.7049642514782319,
    }
    assert {name: info.metric(name) for name in wanted} == wanted
    assert info.analysis["tier_0_l0_share"] == 0.3635990899370513
    assert info.floor
    assert info.floor.ce_loss_score == 0.8192459348680804


def test_a_comparison_with_the_baseline():
    comparison = results.read(LLM_STUDY / "run_1").comparison
    assert comparison
    assert (comparison.levels, comparison.seeds, comparison.not_comparable) == ([15, 16], 5, None)
    compared = comparison.metrics["ce_loss_score"]
    assert (compared.value, compared.reference) == (0.9760107698688539, 0.9558538174510353)
    assert (compared.noise, compared.half_width) == (0.0005898051432997725, 0.0017904250625922031)


def test_ledger_and_results_agree_on_every_run():
    runs = Study(LLM_STUDY, LLM_STUDY).load_runs(state_of(LLM_STUDY))
    assert len(runs) == 4
    assert [run.info and run.info.verdict for run in runs] == [run.state.verdict for run in runs]


@run_dirs_with("metrics.jsonl")
def test_every_row_of_a_training_history_is_intact(run_dir: Path):
    rows = results.read_metrics(run_dir)
    assert rows
    assert_intact(records(run_dir / "metrics.jsonl"), [row.model_dump(mode="json") for row in rows])


# The checkpoint


def test_a_checkpoint_computes_what_it_did():
    loaded, expected = checkpoint.load(CHECKPOINT), load_file(SAVED / "checkpoint_encoded.safetensors")
    latents = loaded.encode(expected["x"])
    assert torch.equal(latents != 0, expected["latents"] != 0)
    # Another machine may sum in another order, so the last bits may differ.
    torch.testing.assert_close(latents, expected["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.decode(expected["latents"]), expected["reconstruction"], rtol=1e-5, atol=1e-5)


def test_a_checkpoint_holds_what_was_saved():
    loaded, saved = checkpoint.load(CHECKPOINT), load_file(CHECKPOINT / "tensors.safetensors")
    assert loaded.tensors.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.tensors.items())
    assert_intact(json.loads((CHECKPOINT / "header.json").read_text()), loaded.header.model_dump(mode="json"))
    assert loaded.header.groups == {"tier_0": (0, 19), "tier_1": (19, 48), "tier_2": (48, 128)}
    assert {name: tuple(tensor.shape) for name, tensor in loaded.extra.items()} == {
        "composition_0": (19, 29),
        "composition_1": (29, 80),
    }


def test_a_checkpoint_has_the_hash_that_its_results_name():
    assert checkpoint.content_hash(CHECKPOINT)[:16] == results.read(EVALUATED).environment["checkpoint"]


# Notes


@STUDIES
@pytest.mark.parametrize("held_against", ["notes", "results"])
def test_every_claim_of_the_notes_is_supported(study: Path, held_against: str):
    notes = study / "notes.txt"
    measured = known_figures.from_directory(study) if held_against == "results" else None
    findings = audit.findings(audit.read(notes), measured)
    assert len(findings) > 8
    assert [str(finding) for finding in findings if finding.status != "supported"] == []
    assert not edited(notes.read_text())


# The interrupted study goes on


@dataclass(frozen=True)
class Resumed:
    checkout: Checkout
    ended: "subprocess.CompletedProcess[str]"


def restore(directory: Path) -> Checkout:
    """Put the interrupted study into a stand-in checkout, as if it had started there."""
    checkout = make_checkout(directory)
    shutil.copy(INTERRUPTED / "idea.yaml", checkout.root / "templates/ideas/stand_in")
    study, notes = (checkout.root / folder / "interrupted" for folder in ("runs", "notes"))
    shutil.copytree(INTERRUPTED, study, ignore=shutil.ignore_patterns(*NOT_OF_THE_STUDY))
    shutil.unpack_archive(INTERRUPTED / "repository.tar.gz", study, filter="data")
    notes.mkdir(parents=True)
    shutil.copy(INTERRUPTED / "notes.txt", notes)
    with Repo(study) as repo:
        assert not repo.is_dirty(), "a saved file is not as it was committed; has a formatter been at it?"
    return checkout


def resume(checkout: Checkout, fingerprint: str) -> "subprocess.CompletedProcess[str]":
    """Resume the study on a machine whose lab, model and device have this fingerprint."""
    hold = str(checkout.root / "nothing holds run 2")
    return checkout.agent("resume", SAE_AGENT_STANDIN_HOLD=hold, SAE_AGENT_STANDIN_GROUND=fingerprint)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    checkout = restore(tmp_path_factory.mktemp("resumed"))
    return Resumed(checkout, resume(checkout, records(INTERRUPTED / "events.jsonl")[0]["ground"]))


def test_an_interrupted_study_is_resumed_to_its_end(resumed: Resumed):
    assert resumed.ended.returncode == 0, resumed.ended.stdout + resumed.ended.stderr
    state = resumed.checkout.state
    assert (state.finished, state.runs_used) == (True, 3)
    assert [(run.number, run.attempt, run.verdict and run.verdict.name) for run in state.runs] == [
        (0, 1, "ok"),
        (1, 1, "ok"),
        (2, 2, "ok"),
        (3, 1, "ok"),
    ]
    assert state.runs[2].failed_attempts[1].verdict.name == "killed"
    assert len(state.replicates[1]) == 3


def test_what_was_recorded_before_an_interruption_stays(resumed: Resumed):
    study, saved = resumed.checkout.study, INTERRUPTED / "events.jsonl"
    assert study.ledger.read_bytes().startswith(saved.read_bytes())
    for name in ("run_0/final_info.json", "run_0/metrics.jsonl", "run_1/final_info.json", "run_1/metrics.jsonl"):
        assert (study.directory / name).read_bytes() == (INTERRUPTED / name).read_bytes()
    kept = study.attempt_dir(2, 1) / "metrics.jsonl"
    assert kept.read_bytes() == (INTERRUPTED / "run_2/metrics.jsonl").read_bytes()


def test_nothing_that_is_recorded_is_measured_again(resumed: Resumed):
    kinds = Counter(event.event for event in resumed.checkout.events)
    assert (kinds["sentinels_scored"], kinds["baseline_measured"], kinds["proposal_made"]) == (1, 9 + 2, 4)
    trained = {path.name for path in resumed.checkout.study.directory.glob("baseline_*")}
    assert trained == {"baseline_k19_seed0", "baseline_k20_seed0"}, "run 3 is denser, and only that was missing"


def test_runs_after_an_interruption_compare_with_the_recorded_baselines(resumed: Resumed):
    comparison = resumed.checkout.state.runs[2].comparison
    assert comparison
    assert (comparison.levels, comparison.seeds, comparison.not_comparable) == ([15, 16], 5, None)


def test_the_story_in_git_goes_on(resumed: Resumed):
    with Repo(resumed.checkout.study.directory) as repo:
        messages = [str(commit.message).split("\n")[0] for commit in repo.iter_commits(reverse=True)]
        told = [message for message in messages if re.match(r"run \d+, ", message)]  # run 3 may start before 2 ended
        assert sorted(told, key=lambda message: message.partition(",")[0]) == [
            "run 0, proposal: Baseline",
            "run 0, result: ok",
            "run 1, proposal: Step 1 that is better",
            "run 1, result: ok",
            "run 2, proposal: Step 2 that is held",
            "run 2, result: ok",
            "run 3, proposal: Step 3 that is denser",
            "run 3, result: ok",
        ]
        assert not repo.is_dirty()


def test_the_notes_of_a_resumed_study_are_supported(resumed: Resumed):
    notes = resumed.checkout.study.notes / "notes.txt"
    findings = audit.findings(audit.read(notes), known_figures.from_directory(resumed.checkout.study.directory))
    assert [str(finding) for finding in findings if finding.status != "supported"] == []


def test_a_study_is_not_resumed_where_its_figures_would_not_compare(tmp_path: Path):
    checkout = restore(tmp_path)
    before = checkout.study.ledger.read_bytes()
    ended = resume(checkout, "another")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: interrupted ")
    assert ended.stderr.count("\n") == 1
    assert checkout.study.ledger.read_bytes() == before
