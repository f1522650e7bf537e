"""The main job from end to end on stand-in experiments: what each run's end leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from git import Repo
from standin import Checkout, make_checkout, processes, wait_for

from agent.lab import results

Troubled = tuple[Checkout, "subprocess.CompletedProcess[str]"]

# What the stand-in experiment does, and what the notes must say of it.
FAILURES = {
    "nan": ("nan", "loss was not finite at step 11"),
    "above_ceiling": ("loss_ceiling", "above the ceiling"),
    "malformed": ("crashed", "metrics.jsonl line 11 is damaged"),
    "hanging": ("timed_out", "still running after 3 s"),
    "crashing": ("crashed", "ValueError: the edit was wrong"),
    "guarded": ("nan", "a parameter was not finite at step 11"),
    "full": ("disk_full", "No space left on device"),
    "greedy": ("out_of_memory", "MemoryError"),
    "killed": ("killed", "SIGKILL"),
    "forging": ("crashed", "error: forged and gone"),
    "without_checkpoint": ("not_evaluated", "error: the evaluator broke"),
    "linked": ("crashed", "metrics.jsonl is not a regular file"),
    "narrow": ("not_comparable", "d_sae is 512, the study's is 1024"),
    "deadly": ("not_evaluated", "error: the evaluator died of it"),
    "piping": ("tampered", "stderr.log was not the log that the driver had opened"),
    "counting": ("crashed", "metrics.jsonl line 11 is damaged"),
    "singing": ("crashed", "\\x1b[2J\\x1b]52;c;cm0gLXJm\\x07 done"),
    "planting": ("crashed", "ValueError: planted"),
    "tampering": ("tampered", "the experiment changed run_0/final_info.json; put back as it was"),
    "rewriting": ("tampered", "the experiment changed the ledger; put back as it was"),
    "sound": ("no_effect", "the same code as run 0"),
    "smoking": ("crashed", "in the first steps: ValueError: wrong from the first step"),
    "importing": ("preflight", "os"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    """A study in which everything goes wrong once, and then one run goes well."""
    checkout = make_checkout(tmp_path_factory.mktemp("troubled"))
    checkout.plan(*FAILURES, "denser")
    secrets = {"OPENAI_API_KEY": "sk-1", "HF_TOKEN": "hf-1", "SAE_AGENT_API_KEY": "sk-2"}
    ended = checkout.run(50, "--run-timeout", "3", CUDA_VISIBLE_DEVICES="7", **secrets)
    return checkout, ended


def test_a_failed_run_is_recorded_and_the_next_one_tried(troubled: Troubled):
    checkout, ended = troubled
    assert ended.returncode == 0, ended.stderr
    used = len(checkout.state.runs) - 1
    assert checkout.state.runs_used == used
    assert checkout.state.ended == f"the plan ended after {used} of at most 50 runs"
    assert checkout.state.ended in ended.stdout


def test_a_run_has_four_attempts_and_only_what_an_edit_can_mend_is_tried_again(troubled: Troubled):
    checkout, _ = troubled
    runs = checkout.state.runs[1:]
    assert [run.attempt for run in runs] == [4, 3, 2, 4, 4, 4, 3]
    assert [run.verdict and run.verdict.name for run in runs] == [
        *("timed_out", "disk_full", "killed", "not_comparable", "crashed", "no_effect", "ok"),
    ]


@pytest.mark.parametrize(("number", "behaviour"), enumerate(FAILURES, 1))
def test_the_verdict_and_its_evidence_are_in_results_and_notes(troubled: Troubled, number: int, behaviour: str):
    checkout, _ = troubled
    name, evidence = FAILURES[behaviour]
    run, directory, said = tried(checkout, f"Step {number} that is {behaviour}")
    info = results.read(directory)
    assert info.verdict.name == name
    assert evidence in info.verdict.evidence
    section = checkout.notes.split(f"## Run {run}: ")[1].split("\n## ")[0]
    assert f"{said} {name} (" in section
    assert evidence in section
    assert (directory / "experiment.py").exists()


def tried(checkout: Checkout, title: str) -> tuple[int, Path, str]:
    """The run in which a step was tried, where what it left is kept, and how the notes begin to tell it."""
    for run in checkout.state.runs:
        for attempt, failure in run.failed_attempts.items():
            if failure.proposal.title == title:
                return run.number, checkout.study.attempt_dir(run.number, attempt), f"Attempt {attempt} failed:"
        if run.proposal.title == title:
            return run.number, checkout.study.run_dir(run.number), "Verdict:"
    raise AssertionError(f"{title} was not tried")


def test_a_failed_run_has_no_results_in_the_notes(troubled: Troubled):
    section = troubled[0].notes.split("## Run 1: ")[1].split("\n## ")[0]
    assert "Results: none\nVerdict: timed_out (" in section
    assert "difference" not in section


def test_a_run_keeps_its_experiment_and_logs(troubled: Troubled):
    checkout, _ = troubled
    _, run, _ = tried(checkout, "Step 5 that is crashing")
    assert 'BEHAVIOUR = "crashing"' in (run / "experiment.py").read_text()
    assert "Traceback" in (run / "stderr.log").read_text()
    assert (run / "stdout.log").exists()
    slot = checkout.study.directory / "slot_1"
    assert "evaluating" in (slot / "evaluator.log").read_text()
    assert {log.name for log in slot.iterdir()} == {"evaluator.log", "slot.log", "stream.log"}
    assert not list((checkout.study.directory / "jobs").iterdir()), "each job's files are the run's now"


def test_links_that_an_experiment_planted_are_not_written_through(troubled: Troubled):
    checkout, ended = troubled
    assert (checkout.root / "victim").read_text() == "mine"
    assert "\x1b" not in ended.stdout + checkout.notes
    for name in ("smoke", "beside.py", "experiment.py"):
        assert not (checkout.study.directory / name).is_symlink()


@pytest.mark.usefixtures("troubled")
def test_nothing_of_a_run_that_timed_out_is_left():
    assert not [line for line in processes() if "sleep 61.5" in line]


def test_an_experiment_sees_no_secrets(troubled: Troubled):
    checkout, _ = troubled
    seen = json.loads((checkout.study.run_dir(0) / "environment.json").read_text())
    assert seen["SAE_AGENT_DRIVEN"] == "1"
    assert seen["CUDA_VISIBLE_DEVICES"] == "7"
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "SAE_AGENT_API_KEY"} & set(seen)


def test_a_result_stands_beside_the_baseline_at_its_own_l0(troubled: Troubled):
    """L0 20 is far from the baseline's 16: baselines are trained there, and nothing is left of the difference."""
    checkout, _ = troubled
    section = checkout.notes.split("## Run 7: ")[1]
    assert "Within noise: CE-loss score differs by " in section
    assert {20, 21} & {baseline.k for baseline in checkout.state.baselines}
    comparison = checkout.state.runs[7].comparison
    assert comparison
    assert abs(comparison.metrics["ce_loss_score"].difference) < 0.004
    assert "only 40% of the latents are alive" in section


def test_the_plots_exist_and_their_descriptions_say_what_is_missing(troubled: Troubled):
    checkout, _ = troubled
    for name in ("training_curves.png", "l0_front.png", "comparison.png"):
        assert (checkout.study.notes / name).read_bytes().startswith(b"\x89PNG")
    described = checkout.notes.split("# Plot descriptions")[1]
    assert "run 1 has no result (timed_out)" in described


def test_git_log_tells_the_story(troubled: Troubled):
    checkout, _ = troubled
    with Repo(checkout.study.directory) as repo:
        messages = [str(commit.message).splitlines()[0] for commit in repo.iter_commits(reverse=True)]
        messages = [message for message in messages if not message.startswith("baseline with K ")]
        assert messages[:6] == [
            "run 0, proposal: Baseline",
            "run 0, result: ok",
            "run 1, proposal: Step 1 that is nan",
            "run 1, attempt 1, result: nan",
            "run 1, attempt 2, proposal: Step 2 that is above_ceiling",
            "run 1, attempt 2, result: loss_ceiling",
        ]
        tracked = repo.git.ls_files().splitlines()
        assert not repo.is_dirty()
        assert repo.untracked_files == ["run_4_attempt_3/metrics.jsonl"], "an experiment made it a link"
    assert "run_0/final_info.json" in tracked
    assert "run_0/metrics.jsonl" in tracked
    assert not [name for name in tracked if "checkpoint" in name or name.endswith(".log")]


def test_the_ledger_tells_the_same_story(troubled: Troubled):
    checkout, _ = troubled
    kinds = [event.event for event in checkout.events]
    assert kinds[:2] == ["study_started", "artefacts_recorded"]
    of_any_moment = ("artefacts_recorded", "records_lost", "notes_written")
    kinds = [kind for kind in kinds if kind not in of_any_moment]
    assert kinds[:9] == [
        "study_started",
        "proposal_made",
        "run_reserved",
        "attempt_started",
        "job_submitted",
        "attempt_ended",
        "evaluation_ended",
        "run_committed",
        "job_submitted",
    ]
    assert kinds[9:11] == ["sentinels_scored", "proposal_made"], "the first run comes before the noise is measured"
    assert [kind for kind in kinds if kind not in ("job_submitted", "features_kept")][-2:] == [
        "test_scored",
        "study_ended",
    ]
    assert checkout.events[-1].event == "notes_written"


@pytest.mark.slow
def test_the_budget_ends_the_study_and_a_strange_git_set_up_does_no_harm(checkout: Checkout, tmp_path: Path):
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n")
    (hooks / "pre-commit").chmod(0o755)
    (tmp_path / "home").mkdir()
    settings = f"[commit]\n gpgsign = true\n[core]\n hooksPath = {hooks}\n excludesFile = {tmp_path}/ignored\n"
    (tmp_path / "home/.gitconfig").write_text(settings)
    (tmp_path / "ignored").write_text("*.json\n")
    checkout.plan("fine.1", "fine.2")
    ended = checkout.run(1, GIT_DIR=str(tmp_path / "elsewhere"))
    assert ended.returncode == 0, ended.stderr
    assert "the budget of 1 run is spent" in checkout.notes
    assert len(checkout.state.runs) == 2
    with Repo(checkout.study.directory) as repo:
        assert "run_1/final_info.json" in repo.git.ls_files()


@pytest.mark.slow
def test_hours_end_the_study_before_a_run_that_would_exceed_them(checkout: Checkout):
    checkout.plan(*[f"fine.{number}" for number in range(80)])
    ended = checkout.run(80, "--max-hours", "0.01")
    assert ended.returncode == 0, ended.stderr
    assert "The study ended: the budget of 0.01 hours does not allow another run: " in checkout.notes
    assert checkout.state.seconds < 0.01 * 3600 + 10, "a job on a busy machine may take longer than any before it"


@pytest.mark.slow
def test_a_winner_is_confirmed_by_fresh_seeds_and_the_test_text_and_luck_is_not(checkout: Checkout):
    checkout.plan("better", "lucky", "worse", "overfitted")
    ended = checkout.run(4)
    assert ended.returncode == 0, ended.stderr
    sections = checkout.notes.split("## Run ")[2:]
    outcomes = ("Better (confirmed): ", "Not confirmed: ", "Worse: ", "Not upheld on the test text: ")
    for section, said in zip(sections, outcomes, strict=True):
        assert f"\n{said}CE-loss score differs by " in section
    seeds = [1000, 1001, 1002]
    assert {run: list(by_seed) for run, by_seed in checkout.state.replicates.items()} == {1: seeds, 2: seeds, 4: seeds}
    assert set(checkout.state.tested) == {0, 1, 4}
    assert {run: list(by_seed) for run, by_seed in checkout.state.tested_seeds.items()} == {1: seeds, 4: seeds}
    assert (16.0, 0) not in checkout.state.tested_baselines, "run 0, which has its score already"
    assert {(16.0, 1), (16.0, 2), (16.0, 3), (16.0, 4)} < set(checkout.state.tested_baselines)
    assert checkout.state.runs_used == 4
    tested = checkout.notes.split("# Test text")[1]
    assert "- run 1 (Step 1 that is better): L0 " in tested
    assert f"The test text was used {checkout.state.test_uses} times in this study: for run 0; run " in tested
    shown = " ".join(checkout.agent("show", str(checkout.study.directory), "--run", "4").stdout.split())
    assert "Not upheld on the test text: CE-loss score differs by +0.0" in shown
    assert checkout.agent("audit", str(checkout.study.notes / "notes.txt")).returncode == 0


@pytest.mark.slow
def test_a_second_study_takes_its_baselines_from_the_cache(checkout: Checkout):
    checkout.plan("fine")
    assert checkout.run(1).returncode == 0
    first = checkout.state
    shutil.rmtree(checkout.root / "runs")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    copied = [path.name for path in checkout.study.directory.glob("baseline_*")]
    assert copied == ["baseline_k16_seed1"], "whose latents are compared with run 0's; it is not trained again"
    assert re.search(r"baseline with K 16, seed 1: .* \(0 s\)", ended.stdout)
    assert [(each.k, each.seed, each.figures) for each in checkout.state.baselines] == [
        (each.k, each.seed, each.figures) for each in first.baselines
    ]
    shown = checkout.agent("cache").stdout
    assert "baselines" in shown
    assert "tiny-lm" in shown


def test_a_broken_evaluation_stops_the_study(checkout: Checkout, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/broken").touch()
    checkout.plan("fine")
    ended = checkout.run(1)
    assert ended.returncode == 1
    assert "the evaluation is broken: " in checkout.notes.split("# End")[1]
    assert "THE EVALUATION IS BROKEN" in checkout.notes
    assert len(checkout.state.runs) == 1


@pytest.mark.slow
def test_an_evaluator_that_was_killed_at_the_sentinels_is_tried_again_by_resume(checkout: Checkout, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/killed").touch()
    checkout.plan("fine")
    ended = checkout.run(1)
    assert (ended.returncode, ended.stderr) == (1, "")
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("interrupted: the evaluator returned no sentinel scores (killed by SIGKILL")
    assert "; agent resume continues; notes: " in last
    (tmp_path / "home/killed").unlink()
    resumed = checkout.agent("resume")
    assert resumed.returncode == 0, resumed.stderr
    assert checkout.state.runs_used == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("mute", "the evaluator returned no sentinel scores (error: the sentinels were too much)"),
        pytest.param(
            *("without.core", "core gave no result on the baseline: TypeError: no such dtype"), marks=pytest.mark.slow
        ),
    ],
)
def test_an_evaluator_that_breaks_ends_the_study(checkout: Checkout, tmp_path: Path, fault: str, reason: str):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / fault).touch()
    checkout.plan("fine")
    ended = checkout.run(1)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.splitlines()[-1].startswith(f"the evaluation is broken: {reason}; ")
    assert f"The study ended: the evaluation is broken: {reason};" in checkout.notes
    again = checkout.agent("resume")
    assert again.returncode == 2 or "has ended" in again.stdout


@pytest.mark.slow
def test_a_family_that_fails_is_named_and_the_study_goes_on(checkout: Checkout, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/without.sparse_probing_sae_probes").touch()
    checkout.plan("fine")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    failed = "sparse_probing_sae_probes gave no result: TypeError: no such dtype"
    for start in ("run 0: ok, ", "run 1: ok, ", "sentinels: ", "baseline with K 15, seed 0: L0 "):
        (line,) = [line for line in ended.stdout.splitlines() if line.startswith(start)]
        assert failed in line
    assert checkout.notes.count(f"\n{failed}.") == 2  # of the two runs
    assert "\nsparse_probing_sae_probes gave no result on the sentinels and 9 baselines: " in checkout.notes
    assert not list((tmp_path / "home").rglob("baselines/*/sentinels.json"))  # another study tries again
    assert "no result" not in checkout.agent("audit", str(checkout.study.notes / "notes.txt")).stdout  # no claim


@pytest.mark.slow
def test_a_run_by_hand_is_taken_into_notes_and_plots(checkout: Checkout):
    checkout.plan("fine")
    assert checkout.run(1).returncode == 0
    study = checkout.study.directory
    checkout.run_by_hand("run_2", "fine", "better")
    early = checkout.agent("note", str(study), "run_3", "-m", "Too early")
    assert (early.returncode, early.stdout) == (2, "")
    assert "is run_2, not run_3: rename its directory" in early.stderr
    noted = checkout.agent("note", str(study), "run_2", "-m", "My own idea\nIt is better.")
    assert noted.returncode == 0, noted.stderr
    section = checkout.notes.split("## Run 2: My own idea\n")[1]
    assert "Better (confirmed): " in section
    assert "Description: It is better." in section
    assert "Run by hand, outside the budget." in section
    assert (checkout.state.runs_used, checkout.state.finished) == (1, True)
    again = checkout.agent("note", str(study), "run_2", "-m", "Again")
    assert again.returncode == 2
    assert "is run_3, not run_2" in again.stderr


@pytest.mark.slow
def test_a_run_by_hand_in_a_study_whose_baseline_failed_is_not_compared(checkout: Checkout):
    template = checkout.root / "templates/baselines/batchtopk.py.j2"
    template.write_text(template.read_text().replace("%}sound{%", "%}crashing{%"))
    checkout.plan("fine")
    assert checkout.run(1).returncode == 1
    checkout.run_by_hand("run_1", "crashing", "fine")
    noted = checkout.agent("note", str(checkout.study.directory), "run_1", "-m", "Mended")
    assert noted.returncode == 0, noted.stderr
    assert "Not comparable: the noise between seeds was not measured." in checkout.notes.split("## Run 1: Mended")[1]
    assert "The study ended: the baseline failed" in checkout.notes


@pytest.mark.slow
def test_ctrl_c_while_a_run_by_hand_is_taken_in_leaves_it_to_resume(checkout: Checkout):
    checkout.plan("fine")
    assert checkout.run(1).returncode == 0
    checkout.run_by_hand("run_2", "fine", "slow_to_evaluate")
    silent = checkout.agent("note", str(checkout.study.directory), "run_2", "-m", " ")
    assert (silent.returncode, silent.stderr.startswith("error: --message is empty")) == (2, True)
    noting = checkout.start("note", str(checkout.study.directory), "run_2", "-m", "Mine")
    wait_for(lambda: len(checkout.state.runs) == 3)
    time.sleep(0.7)
    noting.send_signal(signal.SIGINT)
    stdout, stderr = noting.communicate(timeout=30)
    assert noting.returncode == 130, stderr
    assert stdout.splitlines()[-1].startswith("interrupted; agent resume continues; notes: ")
    assert "The study was interrupted at " in checkout.notes
    assert not checkout.state.finished


@pytest.mark.slow
def test_what_a_run_does_to_its_own_script_does_no_harm(checkout: Checkout):
    checkout.plan("vanishing")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    assert 'BEHAVIOUR = "vanishing"' in (checkout.study.run_dir(1) / "experiment.py").read_text()


@pytest.mark.slow
def test_what_a_run_changes_in_its_first_steps_is_put_back(checkout: Checkout):
    checkout.plan("meddling")
    checkout.run(1)
    said = "Verdict: tampered (in the first steps: the experiment changed run_0/final_info.json; put back as it was)"
    assert said in checkout.notes
    assert results.read(checkout.study.run_dir(0)).core


@pytest.mark.slow
def test_a_winner_that_ignores_its_seed_is_not_confirmed(checkout: Checkout):
    checkout.plan("unseeded")
    assert checkout.run(1).returncode == 0
    section = checkout.notes.split("## Run 1: ")[1]
    assert "Not confirmed: CE-loss score differs by " in section
    assert "fresh seed 1000 cannot be compared (its checkpoint equals the run's own: " in section


@pytest.mark.slow
def test_a_study_whose_lab_was_changed_measures_nothing_more(checkout: Checkout, tmp_path: Path):
    checkout.plan("better", "held")
    hold = tmp_path / "hold"
    hold.touch()
    hold_setting = {"SAE_AGENT_STANDIN_HOLD": str(hold)}
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "3", **hold_setting)
    wait_for(lambda: len(checkout.state.runs) == 3 and checkout.state.runs[2].stage == "training")
    with (checkout.root / "agent/lab/training.py").open("a") as file:
        file.write("CHANGED = True\n")
    hold.unlink()
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 0, stderr
    assert "The study ended: agent/lab was changed while the study ran" in checkout.notes
    assert "Seems better, not yet confirmed by fresh seeds" in checkout.notes
    assert (checkout.state.replicates, checkout.state.tested) == ({}, {})
    assert "Verdict: tampered (agent/lab changed while it ran: the study stops, put that back)" in checkout.notes


@pytest.mark.slow
def test_notes_edited_by_hand_are_kept_beside_the_new_ones(checkout: Checkout):
    checkout.plan("slow_to_evaluate")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1")
    wait_for(lambda: (checkout.study.directory / "jobs/run_1_attempt_1/trained.json").exists())
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=30)
    notes = checkout.study.notes / "notes.txt"
    notes.write_text(notes.read_text() + "I doubt it.\n")
    resumed = checkout.start("resume")
    wait_for(lambda: checkout.events[-1].event == "study_resumed")
    time.sleep(2)  # the evaluation is under way again, also on a busy machine
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=30)
    (kept,) = checkout.study.notes.glob("notes_edited_*.txt")
    assert kept.read_text().endswith("I doubt it.\n")
    assert "I doubt it." not in checkout.notes


@pytest.mark.slow
def test_a_loud_run_keeps_both_ends_of_what_it_said(checkout: Checkout):
    checkout.plan("loud")
    assert checkout.run(1).returncode == 0
    log = checkout.study.run_dir(1) / "stdout.log"
    assert log.stat().st_size <= 16 * 2**20 + 200
    assert b"bytes cut by the driver" in log.read_bytes()


def test_a_failed_baseline_ends_the_study(checkout: Checkout):
    template = checkout.root / "templates/baselines/batchtopk.py.j2"
    template.write_text(template.read_text().replace("%}sound{%", "%}crashing{%"))
    checkout.plan("fine")
    ended = checkout.run(1)
    assert ended.returncode == 1
    assert "the baseline failed (crashed: ValueError: the edit was wrong)" in checkout.notes
    assert len(checkout.state.runs) == 1


@pytest.mark.slow
def test_a_study_without_a_sound_run_failed(checkout: Checkout):
    checkout.plan("crashing")
    ended = checkout.run(1)
    assert ended.returncode == 1
    assert "no run but the baseline counts" in ended.stdout


@pytest.mark.parametrize(
    ("behaviour", "file", "left"),
    [
        pytest.param("stubborn", "metrics.jsonl", "reserved", marks=pytest.mark.slow),
        ("slow_to_evaluate", "trained.json", "evaluating"),
    ],
)
def test_ctrl_c_ends_the_child_and_leaves_notes(checkout: Checkout, behaviour: str, file: str, left: str):
    """A training that has come to its end is kept; only its evaluation is repeated."""
    checkout.plan(behaviour, "fine")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "2")
    wait_for(lambda: any((checkout.study.directory / "jobs/run_1_attempt_1").rglob(file)))
    time.sleep(1.2)
    driver.send_signal(signal.SIGINT)
    stdout, stderr = driver.communicate(timeout=30)
    assert driver.returncode == 130, stderr
    assert stdout.splitlines()[-1].startswith("interrupted; agent resume continues; notes: ")
    assert stderr == ""
    interrupted = checkout.state.runs[1]
    assert (interrupted.stage, interrupted.verdict) == (left, None)
    assert "The study was interrupted at " in checkout.notes
    assert "agent resume continues it" in checkout.notes
    assert checkout.state.ended is None
    assert not [line for line in processes() if str(checkout.root) in line]


def test_ctrl_c_while_harvesting_leaves_no_study(checkout: Checkout):
    checkout.plan("fine")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HARVEST="60")
    assert driver.stdout
    while driver.stdout.readline() != "harvesting\n":
        pass
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=30)
    assert (driver.returncode, stderr) == (130, "error: interrupted\n")
    assert not list((checkout.root / "runs").iterdir())


@pytest.mark.slow
def test_two_studies_of_the_same_second_do_not_collide(checkout: Checkout):
    checkout.plan("fine")
    drivers = [checkout.start("run", "--idea", "stand_in", "--max-runs", "1") for _ in range(2)]
    for driver in drivers:
        driver.communicate(timeout=60)
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert len(list((checkout.root / "runs").iterdir())) == 2
    assert len(list((checkout.root / "notes").iterdir())) == 2


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) for a terminal")
def test_a_terminal_gets_a_live_table(checkout: Checkout):
    checkout.plan("fine")
    command = f"{sys.executable} -P -m agent run --idea stand_in --max-runs 1"
    env = {"PATH": os.environ["PATH"], "HOME": str(checkout.root), "PYTHONPATH": str(checkout.root)}
    env |= {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "50"}
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=env, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stdout
    assert "CE-loss score" in shown.stdout
    assert "the budget of 1 run is spent" in shown.stdout


@pytest.mark.slow
def test_a_study_goes_on_without_the_repository_that_an_experiment_removed(checkout: Checkout):
    checkout.plan("forgetting", "denser")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    (failure,) = checkout.state.runs[1].failed_attempts.values()
    assert failure.verdict.evidence.startswith("the experiment changed the commits")
    assert results.read(checkout.study.run_dir(1)).verdict.ok
    with Repo(checkout.study.directory) as repo:
        assert "run_0/final_info.json" in repo.git.ls_files()


@pytest.mark.slow
def test_a_study_that_was_moved_while_it_ran_ends_in_a_line_and_goes_on_once_it_is_back(checkout: Checkout):
    checkout.plan("moving")
    ended = checkout.run(1)
    assert ended.returncode == 2
    (moved,) = (checkout.root / "runs").iterdir()
    (notes,) = (checkout.root / "notes").iterdir()
    study = moved.with_name(notes.name)
    assert f"error: {study} was moved while the study ran: move it back, then agent resume continues" in ended.stderr
    moved.rename(study)
    assert checkout.agent("resume").returncode == 2, "the same code moves it again"
    assert checkout.state.runs[1].failed_attempts[1].verdict.name == "killed"
