"""`agent resume`: a driver killed at any moment costs nothing but the attempt it was at."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from git import Repo
from standin import HERE, Checkout, make_checkout, processes, wait_for
from without_flock import without_flock

from agent.lab import results
from agent.report import notes as notes_module
from agent.study.events import StudyResumed

# Each link of a chain ends with SIGKILL just after the first event of this kind that it recorded.
CHAINS = {  # by the number of jobs at a time
    1: (
        *("study_started", "proposal_made", "run_reserved", "attempt_started", "study_resumed", "attempt_cut_short"),
        *("job_submitted", "attempt_ended", "evaluation_ended", "run_committed", "notes_written", "sentinels_scored"),
        *("preflight_failed", "proposal_made", "attempt_ended", "proposal_made", "baseline_measured", "run_compared"),
        *("run_committed", "replicate_ended", "test_scored", "study_ended", "notes_written"),
    ),
    3: (
        *("study_started", "job_submitted", "study_resumed", "attempt_cut_short", "attempt_started", "attempt_ended"),
        *("run_committed", "run_compared", "replicate_ended", "test_scored", "study_ended", "notes_written"),
    ),
}
RUN = ("run", "--idea", "stand_in", "--max-runs", "3", "--run-timeout", "30")
BEHAVIOURS = {1: ("importing", "crashing", "denser", "better", "fine"), 3: ("better", "denser", "fine")}
REPEATED_NEVER = (
    *("proposal_made", "preflight_failed", "run_reserved", "attempt_ended", "evaluation_ended", "run_committed"),
    *("sentinels_scored", "baseline_measured", "replicate_ended", "test_scored"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # seconds, with the chain of kills; it takes 100 on two cores that are free
    pytest.mark.skipif(sys.platform != "linux", reason="the power cut finds the ledger through /proc"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study that nothing happened to."""
    return undisturbed(tmp_path_factory.mktemp("calm"), 1)


@pytest.fixture(scope="module", params=CHAINS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Checkout]:
    """A study that nothing happened to, and the same study, its driver killed after every kind of event, one after the
    other, and then resumed."""
    jobs, checkout = request.param, make_checkout(tmp_path_factory.mktemp("chain"))
    checkout.plan(*BEHAVIOURS[jobs])
    command = (*RUN, "--jobs", str(jobs))
    for kind in CHAINS[jobs]:
        ended = cut(checkout, kind, *command)
        assert ended.returncode == -signal.SIGKILL, f"{kind}: {ended.stdout}{ended.stderr}"
        assert checkout.events[-1].event == kind
        command = ("resume",)
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr
    return undisturbed(tmp_path_factory.mktemp("calm"), jobs), checkout


def undisturbed(directory: Path, jobs: int) -> Checkout:
    checkout = make_checkout(directory)
    checkout.plan(*BEHAVIOURS[jobs])
    assert checkout.agent(*RUN, "--jobs", str(jobs)).returncode == 0
    return checkout


def cut(checkout: Checkout, last_event: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    path = f"{checkout.root}:{HERE / 'power_cut'}"
    return checkout.agent(*arguments, PYTHONPATH=path, STANDIN_KILL_AFTER=last_event)


def test_no_run_is_lost_and_none_repeated(both: tuple[Checkout, Checkout]):
    calm, chain = both
    runs, expected = chain.state.runs, calm.state.runs
    assert [(run.number, run.proposal, run.verdict) for run in runs] == [
        (run.number, run.proposal, run.verdict) for run in expected
    ]
    for run in runs:
        found, wanted = (results.read(study.study.run_dir(run.number)) for study in (chain, calm))
        found.work = wanted.work  # CPU seconds are measured
        if found.comparison and wanted.comparison:
            found.comparison.work_ratio = wanted.comparison.work_ratio
        assert found == wanted


def test_no_budget_is_miscounted(both: tuple[Checkout, Checkout]):
    calm, chain = both
    assert chain.state.runs_used == calm.state.runs_used == 3
    assert chain.state.ended == calm.state.ended == "the budget of 3 runs is spent"
    kinds = [event.event for event in chain.events]
    for kind in REPEATED_NEVER:
        assert kinds.count(kind) == [event.event for event in calm.events].count(kind), kind
    assert kinds.count("study_resumed") == kinds.count("study_started") * len(CHAINS[chain.state.started.jobs or 1])


def test_git_tells_the_same_story(both: tuple[Checkout, Checkout]):
    calm, chain = both
    in_order = (lambda messages: messages) if chain.state.started.jobs == 1 else sorted
    assert in_order(story(chain)) == in_order(story(calm))


def test_the_attempt_that_was_cut_short_is_kept_and_noted(both: tuple[Checkout, Checkout]):
    _, chain = both
    kept = chain.study.attempt_dir(0, 1)
    assert (kept / "experiment.py").exists()
    assert results.read(kept).verdict.name == "killed"
    said = r"Attempt 1 failed: killed \(the driver ended \w+ [\w ]+\); kept in run_0_attempt_1\."
    assert re.search(said, chain.notes.split("## Run 1: ")[0])


def test_the_notes_are_otherwise_those_of_a_study_that_nothing_happened_to(both: tuple[Checkout, Checkout]):
    calm, chain = both

    def lines(notes: str) -> list[str]:
        of_the_moment = ("the driver ended", "Cost: ", "Failed: ", notes_module.CHECKSUM)
        return [line for line in notes.splitlines() if not any(words in line for words in of_the_moment)]

    assert lines(chain.notes) == lines(calm.notes)


def test_a_study_that_has_ended_is_not_resumed(calm: Checkout):
    before = calm.study.ledger.read_bytes()
    ended = calm.agent("resume", str(calm.study.directory))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "has ended: the budget of 3 runs is spent" in ended.stdout
    assert calm.study.ledger.read_bytes() == before
    ended = calm.agent("resume")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is unfinished: start one with `agent run`" in ended.stderr


def test_what_is_no_study_is_not_resumed(calm: Checkout):
    ended = calm.agent("resume", str(calm.root))
    assert ended.returncode == 2
    assert "is not a study that has started" in ended.stderr


def test_a_run_whose_attempts_are_spent_counts_as_a_run(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_committed", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    for _ in range(4):
        assert cut(checkout, "attempt_started", "resume").returncode < 0
    ended = checkout.agent("resume")
    assert ended.returncode == 1
    assert "the budget of 1 run is spent; no run but the baseline counts" in ended.stdout
    run = checkout.state.runs[1]
    assert (run.attempt, run.verdict and run.verdict.name) == (4, "killed")
    assert [checkout.study.attempt_dir(1, attempt).exists() for attempt in (1, 2, 3, 4)] == [True, True, True, False]
    section = checkout.notes.split("## Run 1: ")[1]
    assert "Verdict: killed (the driver ended while training)" in section
    assert "Attempt 3 failed" in section


def test_a_driver_keeps_others_away_and_what_it_leaves_behind_is_ended(checkout: Checkout, tmp_path: Path):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    hold_setting = {"SAE_AGENT_STANDIN_HOLD": str(hold)}
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", **hold_setting)
    wait_for(lambda: len(checkout.state.runs) == 2 and any("sleep 62.5" in line for line in processes()))
    refused = checkout.agent("resume")
    assert refused.returncode == 2
    assert f"is in use by process {driver.pid} on " in refused.stderr
    not_noted = checkout.agent("note", str(checkout.study.directory), "run_1", "-m", "Mine")
    assert (not_noted.returncode, not_noted.stderr) == (2, refused.stderr)
    assert "not ended: continue it with `agent resume`" in checkout.agent("show", str(checkout.study.directory)).stdout
    (slot,) = (child for child in psutil.Process(driver.pid).children() if "agent.running.slot" in child.cmdline())
    driver.kill()
    slot.kill()  # it would have ended its training
    driver.communicate()
    assert [line for line in processes() if "--out_dir=run_1" in line], "nothing was left behind: no test"
    hold.unlink()
    resumed = checkout.agent("resume", **hold_setting)
    assert resumed.returncode == 0, resumed.stderr
    assert "that the last driver had left running" in resumed.stdout
    assert not [line for line in processes() if "sleep 62.5" in line]
    assert checkout.state.runs[1].attempt == 2
    assert (checkout.study.attempt_dir(1, 1) / "metrics.jsonl").exists()
    assert any(isinstance(event, StudyResumed) for event in checkout.events)


def test_jobs_of_this_machine_end_with_a_driver_that_is_killed(checkout: Checkout, tmp_path: Path):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HOLD=str(hold))
    wait_for(lambda: len(checkout.state.runs) == 2 and any("sleep 62.5" in line for line in processes()))
    driver.kill()
    driver.communicate()
    wait_for(lambda: not [line for line in processes() if str(checkout.root) in line or "sleep 62.5" in line])
    assert checkout.state.runs[1].stage == "training", "nobody was there to record how it ended"


def test_a_kill_while_an_interruption_is_recorded(checkout: Checkout, tmp_path: Path):
    checkout.plan("held")
    hold = tmp_path / "hold"
    hold.touch()
    settings = {"SAE_AGENT_STANDIN_HOLD": str(hold)}
    path = f"{checkout.root}:{HERE / 'power_cut'}"
    driver = checkout.start(*RUN, PYTHONPATH=path, STANDIN_KILL_AFTER="study_interrupted", **settings)
    wait_for(lambda: len(checkout.state.runs) == 2 and checkout.state.runs[1].stage == "training")
    driver.send_signal(signal.SIGINT)
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert checkout.state.interrupted
    hold.unlink()
    resumed = checkout.agent("resume", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert (checkout.state.runs[1].attempt, checkout.state.runs_used) == (2, 1)


def test_a_study_of_another_ground_is_not_resumed(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_committed", *RUN).returncode < 0
    before = checkout.study.ledger.read_bytes()
    ended = checkout.agent("resume", SAE_AGENT_STANDIN_GROUND="another")
    assert ended.returncode == 2
    assert "began with another agent/lab, package, model, text or device" in ended.stderr
    assert checkout.study.ledger.read_bytes() == before


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_study_goes_on_in_the_dtype_in_which_it_began(checkout: Checkout, way: str):
    checkout.plan("fine")
    chosen = {"option": [*RUN, "--dtype", "bfloat16"], "variable": RUN}[way]
    path = f"{checkout.root}:{HERE / 'power_cut'}"
    variable = {"SAE_AGENT_DTYPE": "bfloat16"} if way == "variable" else {}
    begun = checkout.agent(*chosen, PYTHONPATH=path, STANDIN_KILL_AFTER="run_committed", **variable)
    assert begun.returncode == -signal.SIGKILL
    assert checkout.state.started.fixed.dtype == "bfloat16"
    resumed = checkout.agent("resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Fixed in every run: model tiny-lm in bfloat16, " in checkout.notes


def test_an_edited_ledger_is_refused(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_committed", *RUN).returncode < 0
    ledger = checkout.study.ledger
    ledger.write_text(ledger.read_text().replace('"max_runs":3', '"max_runs":9'))
    ended = checkout.agent("resume")
    assert ended.returncode == 2
    assert "events.jsonl line 1 is not as it was recorded" in ended.stderr


def test_what_the_ledger_does_not_know_of_is_kept(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "notes_written", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    checkout.study.run_dir(1).mkdir()
    (checkout.study.run_dir(1) / "mine").write_text("by hand, and not noted")
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr
    assert (checkout.study.directory / "run_1_leftover_1" / "mine").exists()
    assert results.read(checkout.study.run_dir(1)).verdict.ok


def test_a_git_that_was_killed_is_no_obstacle(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_reserved", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    (checkout.study.directory / ".git/index.lock").touch()
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr


def test_a_kill_before_a_failed_preflight_is_recorded(checkout: Checkout):
    checkout.plan("importing", "importing", "fine")
    assert cut(checkout, "preflight_failed", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    unrecord(checkout)
    assert cut(checkout, "preflight_failed", "resume").returncode < 0
    assert cut(checkout, "preflight_failed", "resume").returncode < 0
    unrecord(checkout)
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr
    run = checkout.state.runs[1]
    assert (run.attempt, list(run.failed_attempts)) == (3, [1, 2])
    for attempt, failure in run.failed_attempts.items():
        kept = checkout.study.attempt_dir(1, attempt)
        assert results.read(kept).verdict == failure.verdict
        assert (kept / "experiment.py").read_text() == failure.proposal.source
    assert not checkout.study.attempt_dir(1, 0).exists()


def test_a_kill_just_after_a_commit_does_not_repeat_it(checkout: Checkout):
    checkout.plan("fine")
    idea = checkout.root / "templates/ideas/stand_in/idea.yaml"
    idea.write_text(idea.read_text().replace("What changed.", '"What changed. \\n\\n\\nAnd more."'))
    assert cut(checkout, "run_reserved", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    assert cut(checkout, "run_reserved", "resume").returncode < 0
    unrecord(checkout)
    assert checkout.agent("resume").returncode == 0
    titles = [message.splitlines()[0] for message in story(checkout)]
    assert titles.count("run 1, proposal: Step 1 that is fine") == 1


def test_an_attempt_that_was_cut_short_is_kept_with_the_code_it_ran(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_committed", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    assert cut(checkout, "attempt_started", "resume").returncode < 0
    (checkout.study.directory / "experiment.py").write_text("edited since")
    assert checkout.agent("resume").returncode == 0
    kept = checkout.study.attempt_dir(1, 1) / "experiment.py"
    assert kept.read_text() == checkout.state.runs[1].proposal.source


def test_a_study_that_was_moved_is_resumed_where_it_is(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_reserved", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    moved = checkout.root / "runs" / "renamed"
    checkout.study.directory.rename(moved)
    (next((checkout.root / "notes").iterdir())).rename(checkout.root / "notes" / "renamed")
    ended = checkout.agent("resume", str(moved))
    assert ended.returncode == 0, ended.stderr
    assert "the budget of 1 run is spent" in checkout.notes


def test_a_run_by_hand_before_anything_was_compared_gets_its_baselines(checkout: Checkout):
    checkout.plan("fine")
    assert cut(checkout, "run_committed", "run", "--idea", "stand_in", "--max-runs", "1").returncode < 0
    checkout.run_by_hand("run_1", "sound", "better")
    noted = checkout.agent("note", str(checkout.study.directory), "run_1", "-m", "My own idea")
    assert noted.returncode == 0, noted.stderr
    assert "Seems better, not yet confirmed by fresh seeds" in checkout.notes.split("## Run 1: ")[1]
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr
    assert "Better (confirmed)" in checkout.notes.split("## Run 1: ")[1].split("## Run 2: ")[0]


def test_a_run_by_hand_whose_noting_was_killed_is_confirmed_by_resume(checkout: Checkout):
    checkout.plan("fine")
    assert checkout.run(1).returncode == 0
    checkout.run_by_hand("run_2", "fine", "better")
    killed = cut(checkout, "notes_written", "note", str(checkout.study.directory), "run_2", "-m", "My own idea")
    assert killed.returncode < 0
    ended = checkout.agent("resume")
    assert ended.returncode == 0, ended.stderr
    assert "Better (confirmed)" in checkout.notes.split("## Run 2: ")[1]
    assert "the budget of 1 run is spent" in checkout.notes.split("# End")[1]


def unrecord(checkout: Checkout) -> None:
    """Take the newest event away, as if the kill had come just before it."""
    lines = checkout.study.ledger.read_bytes().splitlines(keepends=True)
    checkout.study.ledger.write_bytes(b"".join(lines[:-1]))


def story(checkout: Checkout) -> list[str]:
    with Repo(checkout.study.directory) as repo:
        return [str(commit.message) for commit in repo.iter_commits(reverse=True)]


def test_a_study_is_taken_up_where_there_is_no_flock(checkout: Checkout, tmp_path: Path):
    checkout.plan("fine")
    environment = without_flock(tmp_path)
    driver = checkout.start(*RUN, **environment)
    wait_for(lambda: checkout.state.started is not None and (checkout.study.directory / "lock.held").exists())
    second = checkout.agent("resume", **environment)
    assert (second.returncode, second.stdout) == (2, "")
    busy = f"error: {checkout.study.name} is in use by process {driver.pid} on {os.uname().nodename}"
    assert second.stderr == f"{busy}: wait until that has ended\n"
    driver.kill()
    driver.communicate()
    result = checkout.agent("resume", **environment)
    assert result.returncode == 0, result.stderr
    assert checkout.state.ended
    assert not list(checkout.study.directory.glob("lock.*"))
