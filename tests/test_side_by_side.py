"""Runs trained at once: what comes out is what comes out of one after the other."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from scripted_server import Answer, Request, ScriptedServer
from standin import HERE, Checkout, make_checkout, processes, wait_for

from agent.lab import results
from agent.report import notes as notes_module
from agent.study.agreement import work_ratio
from agent.study.events import BaselineMeasured, JobSubmitted, ProposalMade, RunCompared

PLAN = ("better", "fine", "worse", "denser")
RUN = ("run", "--idea", "stand_in", "--max-runs", "4")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def study_with(directory: Path, jobs: int, *plan: str) -> Checkout:
    """Run a study of a plan with so many jobs at once."""
    checkout = make_checkout(directory)
    checkout.plan(*plan)
    ended = checkout.agent(*RUN, "--jobs", str(jobs))
    assert ended.returncode == 0, ended.stderr
    return checkout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return study_with(tmp_path_factory.mktemp("one"), 1, *PLAN)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return study_with(tmp_path_factory.mktemp("three"), 3, *PLAN)


def figures(checkout: Checkout) -> list[str]:
    """Return all that a study measured and concluded, without what took how long."""
    state = checkout.state
    comparisons = {run.number: run.comparison for run in state.runs} | state.replicates
    tested = [state.tested, state.tested_seeds, state.tested_baselines]
    text = [json.dumps(each.figures) for each in state.baselines], comparisons, tested
    return [re.sub(r"work_ratio=\S+|time=\S+( \S+)*?\)|seq=\d+|elapsed=\S+", "", repr(each)) for each in text]


def told(checkout: Checkout) -> list[str]:
    """Return the lines of the notes, without those that tell times and the place."""
    lines = checkout.notes.splitlines()
    return [line for line in lines if not line.startswith((notes_module.CHECKSUM, "Cost: "))]


def test_figures_and_notes_do_not_depend_on_how_many_jobs_run_at_once(one: Checkout, three: Checkout):
    assert figures(three) == figures(one)
    assert told(three) == told(one)


def test_a_comparison_before_the_noise_is_known_is_provisional_and_made_again(three: Checkout):
    compared = [event for event in three.events if isinstance(event, RunCompared)]
    first = [event for event in compared if event.run == 1]
    assert [event.provisional for event in first] == [True, False]
    assert 2 <= first[0].comparison.seeds < first[1].comparison.seeds == 5
    assert all(not run.provisional for run in three.state.runs)
    with (three.study.run_dir(1) / "final_info.json").open() as file:
        assert json.load(file)["comparison"] is None, "comparisons are the ledger's"


def test_results_say_what_a_training_read_and_used(three: Checkout):
    for run in three.state.runs:
        assert results.read(three.study.run_dir(run.number)).work == run.work
        assert run.work
        expected = work_ratio(run.work, three.state.runs[0].work)  # none of a baseline that took less than a second
        assert run.number == 0 or (run.comparison and run.comparison.work_ratio == expected)


def test_run_1_starts_beside_the_baseline(three: Checkout):
    submitted = [event.job for event in three.events if isinstance(event, JobSubmitted)]
    assert submitted[:3] == ["run_0_attempt_1", "run_1_attempt_1", "baseline_k16_seed1"]


@pytest.mark.slow
def test_notes_say_that_a_comparison_is_provisional(checkout: Checkout):
    checkout.plan("worse")
    cut = {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": "run_compared"}
    assert checkout.agent(*RUN, "--jobs", "2", **cut).returncode == -signal.SIGKILL
    cut["STANDIN_KILL_AFTER"] = "notes_written"
    assert checkout.agent("resume", **cut).returncode == -signal.SIGKILL
    assert checkout.state.runs[1].provisional
    section = checkout.notes.split("## Run 1: ")[1]
    rests = r"Provisional: the noise rests on [2-4] trainings so far, and the comparison is made again\."
    assert re.search(rests, section)
    assert checkout.agent("resume").returncode == 0
    assert "rovisional" not in checkout.notes


@pytest.mark.slow
def test_at_most_so_many_jobs_run_at_once_and_ctrl_c_ends_them(checkout: Checkout, tmp_path: Path):
    checkout.plan("held.1", "held.2", "held.3")
    hold = tmp_path / "hold"
    hold.touch()
    settings = {"SAE_AGENT_STANDIN_HOLD": str(hold)}
    driver = checkout.start(*RUN, "--jobs", "2", **settings)
    trained = "jobs/run_[123]_attempt_1/try_*/run_*/metrics.jsonl"
    wait_for(lambda: len(list(checkout.study.directory.glob(trained))) == 2)
    time.sleep(1)
    assert len([line for line in processes() if "--out_dir=run_" in line and str(checkout.root) in line]) == 2
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=30)
    assert (driver.returncode, stderr) == (130, "")
    assert not [line for line in processes() if str(checkout.root) in line or "sleep 62.5" in line]
    hold.unlink()
    resumed = checkout.agent("resume", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert [run.verdict and run.verdict.name for run in checkout.state.runs] == ["ok"] * 4
    assert checkout.state.runs_used == 3


def test_a_failed_baseline_ends_the_runs_beside_it(checkout: Checkout, tmp_path: Path):
    template = checkout.root / "templates/baselines/batchtopk.py.j2"
    template.write_text(template.read_text().replace("%}sound{%", "%}crashing{%"))
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    ended = checkout.agent(*RUN, "--jobs", "2", SAE_AGENT_STANDIN_HOLD=str(hold))
    assert ended.returncode == 1
    assert "the baseline failed (crashed: ValueError: the edit was wrong)" in checkout.notes
    assert "Verdict: killed (the study ended: the baseline failed" in checkout.notes.split("## Run 1: ")[1]
    assert not [line for line in processes() if str(checkout.root) in line]


@pytest.mark.slow
def test_a_step_with_a_condition_waits_for_a_final_comparison(checkout: Checkout):
    checkout.plan("worse", "better", "fine")
    path = checkout.root / "templates/ideas/stand_in/idea.yaml"
    condition = "  when: {step: step_1, metric: ce_loss_score, came_out: down}\n  name: step_2\n"
    path.write_text(path.read_text().replace("  name: step_2\n", condition))
    assert checkout.agent(*RUN, "--jobs", "3").returncode == 0
    events = checkout.events
    (proposed,) = [e for e in events if isinstance(e, ProposalMade) and e.proposal.name == "step_2"]
    final = next(e for e in events if isinstance(e, RunCompared) and e.run == 1 and not e.provisional)
    assert proposed.seq > final.seq
    measured = [e.baseline.seed for e in events if isinstance(e, BaselineMeasured) and e.seq < proposed.seq]
    assert {0, 1, 2, 3, 4} <= set(measured)


# A language model

PREDICTIONS = "".join(
    f"{name}: same\n"
    for name in ("l0", "explained_variance_centered", "ce_loss_score", "loss_added", "alive_fraction", "probing_auc_5")
)
WORDS = ("one", "two", "three", "four")
BLOCK = '<<<<<<< SEARCH\nBEHAVIOUR = "sound"\n=======\nBEHAVIOUR = "late.{run}"\n>>>>>>> REPLACE'


def answered(request: Request) -> Answer:
    """Answer as a model that plans all the runs that are left whenever it is asked for a plan."""
    task = request.body["messages"][1]["content"]
    if left := re.search(r"(\d) of 4 runs are left to start.*## Plan", task, re.DOTALL):
        names = WORDS[4 - int(left[1]) :]
        titles = [f"{number}. [from baseline] Idea {name}: to see." for number, name in enumerate(names, 1)]
        return "## Reasoning\nTo see.\n\n## Plan\n" + "\n".join(titles)
    if asked := re.search(r"# Your task: run (\d+)", task):
        parts = {"Reasoning": "To see.", "Description": "It waits.", "Predictions": PREDICTIONS}
        text = "\n\n".join(f"## {name}\n{part}" for name, part in parts.items())
        return f"{text}\n\n## Edits\n{BLOCK.replace('{run}', asked[1])}"
    return "## Description\nIt waited."


def purposes(checkout: Checkout) -> list[str]:
    lines = checkout.study.transcript.read_text().splitlines()
    return [purpose for line in lines if (purpose := json.loads(line)["purpose"]) != "check"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, list[Request]]:
    """A study with two jobs at once whose model was asked for four runs; the first of them came in late."""
    checkout = make_checkout(tmp_path_factory.mktemp("asked"))
    checkout.plan("fine")
    with ScriptedServer(*[answered] * 20) as server:
        llm = ("--llm", "scripted", "--jobs", "2", "--max-runs", "4")
        late = {"SAE_AGENT_STANDIN_LATE": "late.1"}
        ended = checkout.agent("run", "--idea", "stand_in", *llm, **server.environment, **late)
        assert ended.returncode == 0, ended.stderr
        return checkout, server.requests


@pytest.mark.slow
def test_a_model_is_asked_for_as_many_runs_as_are_trained_at_once(asked: tuple[Checkout, list[Request]]):
    checkout, requests = asked
    assert purposes(checkout)[:3] == ["plan", "proposal", "proposal"]
    assert checkout.state.runs_used == 4
    second = requests[2].text
    assert "- run 1, Idea one: to see." in second.split("# In flight")[1].split("# What is left")[0]
    assert "2 of 4 runs are left to start" in second
    assert "# In flight" not in requests[1].text


@pytest.mark.slow
def test_it_is_not_told_of_a_run_that_another_timing_would_have_hidden(asked: tuple[Checkout, list[Request]]):
    """Run 2 came in before run 1; the question for run 3 tells of run 1 alone, that for run 4 of both."""
    _, requests = asked
    by_run = {match[1]: each.text for each in requests if (match := re.search(r"# Your task: run (\d+)", each.text))}
    assert "| 1 | Idea one |" in by_run["3"]
    assert "| 2 | Idea two |" not in by_run["3"]
    assert "- run 2, Idea two: to see." in by_run["3"]
    assert "| 2 | Idea two |" in by_run["4"]


@pytest.mark.slow
def test_a_replay_follows_the_recorded_order_whatever_is_faster(asked: tuple[Checkout, list[Request]], tmp_path: Path):
    recorded, replayed = asked[0], make_checkout(tmp_path)
    replayed.plan("fine")
    replay = ("--replay", str(recorded.study.transcript), "--jobs", "2", "--max-runs", "4")
    ended = replayed.agent("run", "--idea", "stand_in", *replay, SAE_AGENT_STANDIN_LATE="late.2")
    assert ended.returncode == 0, ended.stderr

    def decisions(checkout: Checkout) -> list[object]:
        runs = checkout.state.runs
        compared = [run.comparison and run.comparison.metrics for run in runs]
        return [compared, *((run.proposal, run.verdict, run.described) for run in runs)]

    assert decisions(replayed) == decisions(recorded)
