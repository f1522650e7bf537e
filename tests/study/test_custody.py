"""What later runs are judged by stays as it was recorded: each edit is noticed, by a person or by an experiment."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import STARTED
from git import Repo
from standin import Checkout, make_checkout

from agent.commands import run as command
from agent.commands.show import show
from agent.lab import results
from agent.report.glossary import describe_evidence
from agent.study.custody import changed_records, require_records
from agent.study.events import StudyResumed
from agent.study.state import derive
from agent.study.workspace import ChangedRecord, Study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_checkout(tmp_path_factory.mktemp("finished"))
    checkout.plan("crashing", "fine")
    assert checkout.run(1).returncode == 0
    return checkout


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A study whose first runs attack it, and whose last one is innocent."""
    checkout = make_checkout(tmp_path_factory.mktemp("attacked"))
    checkout.plan("better_by_tampering", "committing", "hiding", "pruning", "fine")
    ended = checkout.run(2)
    assert ended.returncode == 0, ended.stderr
    return checkout


def figures(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the numbers of a JSON value are."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from figures(part, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and value:
        yield path


def edited(content: Any, path: tuple[Any, ...]) -> str:
    """Return JSON with one number 2% larger."""
    content = json.loads(json.dumps(content))
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] *= 1.02
    return json.dumps(content)


def test_a_figure_changed_by_hand_is_noticed_by_show_resume_and_note(
    finished: Checkout, capsys: pytest.CaptureFixture[str]
):
    study = finished.study
    path = study.run_dir(1) / "final_info.json"
    before = path.read_text()
    content = json.loads(before)
    places = list(figures(content))
    assert len(places) > 50
    for place in places:
        path.write_text(edited(content, place))
        for directory in (study.directory, study.notes, path.parent):
            assert not show(directory), place
            assert "run_1/final_info.json was changed after it was recorded: not shown" in capsys.readouterr().out
        with pytest.raises(
            ChangedRecord, match=r"run_1/final_info\.json was changed after it was recorded: put it back"
        ):
            command.resume(study.directory, "off")
    with pytest.raises(ChangedRecord):
        command.note(study.directory, "run_2", "Mine")
    path.write_text(before)
    assert show(study.directory)
    assert show(path.parent)


def test_the_command_that_resume_gives_puts_the_file_back(finished: Checkout):
    path = finished.study.run_dir(0) / "metrics.jsonl"
    before = path.read_bytes()
    path.write_text(path.read_text().replace("0.1", "0.2"))
    refused = finished.agent("resume", str(finished.study.directory))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    subprocess.run(refused.stderr.split("put it back with ")[1], shell=True, check=True)
    assert path.read_bytes() == before
    assert finished.agent("show", str(finished.study.directory)).returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        *("run_0/checkpoint/header.json", "run_1/experiment.py", "run_1_attempt_1/final_info.json"),
        *("run_1_attempt_1/experiment.py", "baseline_k15_seed0/final_info.json", "baseline_k16_seed1/metrics.jsonl"),
    ],
)
def test_every_recorded_file_is_watched(finished: Checkout, name: str):
    study, path = finished.study, finished.study.directory / name
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    assert changed_records(study, finished.state) == [name]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert changed_records(study, finished.state) == [name]
    path.unlink()
    path.write_bytes(before)
    require_records(study, finished.state)


def test_a_deleted_checkpoint_is_no_change(finished: Checkout, tmp_path: Path):
    study = Study(tmp_path / "copy", tmp_path / "notes")
    shutil.copytree(finished.study.directory, study.directory)
    shutil.rmtree(study.run_dir(1) / "checkpoint")
    require_records(study, finished.state)


def test_a_run_that_commits_its_edit_of_an_earlier_run_is_tampered(attacked: Checkout):
    section = attacked.notes.split("## Run 2: ")[1]
    said = "tampered (the experiment changed the commits, run_0/final_info.json; put back as it was)"
    assert f"Attempt 1 failed: {said}" in section
    with Repo(attacked.study.directory) as repo:
        titles = [str(commit.message).splitlines()[0] for commit in repo.iter_commits()]
        assert titles.count("run 0, result: ok") == 1
        assert len([ref for ref in repo.references if ref.path.startswith("refs/tampered/")]) == 1


def test_an_edit_that_git_was_told_to_overlook_is_put_back(attacked: Checkout):
    section = attacked.notes.split("## Run 2: ")[1]
    assert "Attempt 2 failed: tampered (the experiment changed run_0/final_info.json; put back as it was)" in section
    core = results.read(attacked.study.run_dir(0)).core
    assert core
    assert core.cossim == 0.9


def test_a_file_of_which_there_is_no_copy_is_named_and_blamed_on_nobody_else(attacked: Checkout):
    section = attacked.notes.split("## Run 2: ")[1]
    said = "put back as it was, but for run_0/checkpoint/header.json in 2"
    assert "Attempt 3 failed: tampered" in section
    assert said in section
    assert attacked.state.lost == {"run_0/checkpoint/header.json"}
    assert attacked.state.runs[2].verdict
    assert attacked.state.runs[2].verdict.ok
    assert "header.json was changed after it was recorded" in attacked.state.tested[0].why_not


def test_an_edit_during_fresh_seeds_is_put_back_and_confirms_nothing(attacked: Checkout):
    replicates = attacked.state.replicates[1]
    assert len(replicates) == 3
    assert all((each.not_comparable or "").startswith("tampered: ") for each in replicates.values())
    assert "Not confirmed" in attacked.notes.split("## Run 1: ")[1].split("## Run 2: ")[0]
    assert show(attacked.study.directory)


# The cache


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, "subprocess.CompletedProcess[str]"]:
    """A study whose runs attack the cache."""
    checkout = make_checkout(tmp_path_factory.mktemp("cached"))
    checkout.plan("easier", "denser_with_baselines")
    return checkout, checkout.run(1)


def cache_of(checkout: Checkout) -> Path:
    return checkout.root.parent / "home/.cache/sae-agent"


def test_what_the_evaluator_keeps_is_made_again_if_a_run_changed_it(
    cached: tuple[Checkout, "subprocess.CompletedProcess[str]"],
):
    checkout, ended = cached
    assert ended.returncode == 0, ended.stderr
    said = "the experiment changed evaluation/stand-in/tokens-dev.safetensors in the cache; put back, and what lies"
    assert f"Attempt 1 failed: tampered ({said}" in checkout.notes.split("## Run 1: ")[1]
    assert "run 1: evaluation/stand-in/floor-99.json appeared in the cache meanwhile: made again" in ended.stdout
    folder = cache_of(checkout) / "evaluation/stand-in"
    assert (folder / "tokens-dev.safetensors").read_text() == "made by the evaluator"
    assert not (folder / "floor-99.json").exists()


def test_baselines_that_a_run_planted_are_not_used(cached: tuple[Checkout, "subprocess.CompletedProcess[str]"]):
    checkout, _ = cached
    section = checkout.notes.split("## Run 1: ")[1]
    assert "Within noise: CE-loss score differs by " in section
    trained = {path.name for path in checkout.study.directory.glob("baseline_*")}
    assert {"baseline_k19_seed0", "baseline_k20_seed0"} <= trained
    assert {(baseline.k, baseline.seed) for baseline in checkout.state.baselines} > {(20, 0)}


def test_a_cached_baseline_that_was_edited_is_trained_again(
    cached: tuple[Checkout, "subprocess.CompletedProcess[str]"],
):
    checkout, _ = cached
    (folder,) = (path for path in (cache_of(checkout) / "baselines").iterdir() if path.is_dir())
    edited_baseline = folder / "k15_seed0/final_info.json"
    before = edited_baseline.read_text()
    edited_baseline.write_text(before.replace("0.9", "0.8"))
    sentinels = folder / "sentinels.json"
    sentinels.write_text(sentinels.read_text().replace("-1.2", "-1.3"))
    earlier = checkout.study.directory
    earlier.rename(checkout.root / "earlier")
    checkout.plan("fine")
    ended = checkout.run(1)
    assert ended.returncode == 0, ended.stderr
    assert "k15_seed0 in the cache is not as it was saved: trained again" in ended.stdout
    trained = [path.parent.name for path in checkout.study.directory.glob("baseline_*/final_info.json")]
    assert trained == ["baseline_k15_seed0"]
    assert "-1.2" in sentinels.read_text()
    assert edited_baseline.read_text().count("0.9") == before.count("0.9")


# The code that judges


@pytest.mark.slow
def test_a_run_that_changes_how_it_is_compared_is_tampered_and_ends_the_study(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("rejudging", "fine")
    ended = checkout.run(2)
    assert ended.returncode == 1
    said = "agent/comparison/matching.py changed while it ran: the study stops, put that back"
    assert f"Verdict: tampered ({said})" in checkout.notes.split("## Run 1: ")[1]
    assert "The study ended: agent/comparison/matching.py was changed while the study ran" in checkout.notes
    assert len(checkout.state.runs) == 2


def test_notes_say_that_the_code_which_compares_changed_between_drivers():
    started = STARTED.model_copy(update={"judging": "0123"})
    same, other = (StudyResumed(pid=1, host="here", judging=judging) for judging in ("0123", "4567"))
    said = "The code that compares runs and writes these notes changed between two drivers of the study."
    assert said not in describe_evidence(derive([started, same])).alarms
    assert said in describe_evidence(derive([started, same, other])).alarms
