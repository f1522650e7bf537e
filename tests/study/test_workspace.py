"""The directory of a study: what an experiment plants there does no harm, and one driver at a time works in it."""

import os
from pathlib import Path

import pytest
from builders import STARTED

from agent.lab.files import BadFile
from agent.running.run_files import DRIVER_FILES, collect_run_files, log_path
from agent.study.ledger import Ledger
from agent.study.workspace import Study, StudyBusy, find_study, find_study_to_resume


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path / "study", tmp_path / "notes")
    study.directory.mkdir()
    log_path(study.run_dir(1), "stdout").write_text("output")
    return study


def test_the_driver_writes_through_no_link_of_an_experiment(study: Study, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    directory = study.run_dir(1)
    directory.mkdir()
    for name in (*DRIVER_FILES, "stdout.log", "stderr.log"):
        (directory / name).symlink_to(outside)
    assert collect_run_files(study.run_dir(1), "as it ran") is None
    assert outside.read_text() == "untouched"
    assert (directory / "experiment.py").read_text() == "as it ran"
    assert (directory / "stdout.log").read_text() == "output"
    assert not (directory / "final_info.json").is_symlink()


def test_a_directory_with_the_name_of_a_driver_file_is_replaced(study: Study):
    (study.run_dir(1) / "experiment.py" / "deep").mkdir(parents=True)
    (study.run_dir(1) / "stdout.log").mkdir()
    collect_run_files(study.run_dir(1), "as it ran")
    assert (study.run_dir(1) / "experiment.py").read_text() == "as it ran"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_run_whose_directory_was_replaced_is_tampered(study: Study, tmp_path: Path, kind: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        study.run_dir(1).symlink_to(elsewhere)
    else:
        study.run_dir(1).write_text("")
    verdict = collect_run_files(study.run_dir(1), "as it ran")
    assert verdict
    assert (verdict.name, verdict.evidence) == ("tampered", "run_1 was not a directory")
    assert list(elsewhere.iterdir()) == []
    assert (study.run_dir(1) / "experiment.py").exists()


def test_logs_survive_a_second_collection(study: Study):
    collect_run_files(study.run_dir(1), "as it ran")
    collect_run_files(study.run_dir(1), "as it ran")
    assert (study.run_dir(1) / "stdout.log").read_text() == "output"


def test_a_study_in_use_names_its_driver_and_is_free_afterwards(study: Study):
    message = r"study is in use by process \d+ on \w+"
    with study.lock(), pytest.raises(StudyBusy, match=message), study.lock():
        pass
    with study.lock():
        pass


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_lock_that_an_experiment_planted_is_neither_waited_for_nor_written_through(
    study: Study, tmp_path: Path, kind: str
):
    lock, outside = study.directory / "lock", tmp_path / "outside"
    outside.write_text("untouched")
    os.mkfifo(lock) if kind == "pipe" else lock.symlink_to(outside)
    with study.lock():
        assert lock.read_text().startswith("process ")
    assert outside.read_text() == "untouched"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_damaged_study_does_not_block_another(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    sound, damaged = tmp_path / "runs/1_sound", tmp_path / "runs/2_damaged"
    for directory in (sound, damaged):
        directory.mkdir(parents=True)
    Ledger(sound / "events.jsonl").append(STARTED)
    ledger = damaged / "events.jsonl"
    os.mkfifo(ledger) if kind == "pipe" else ledger.symlink_to("/dev/zero")
    found, _ = find_study_to_resume(tmp_path, None)
    assert found.directory == sound
    assert f"2_damaged is passed over: {ledger} is not a regular file" in capsys.readouterr().err
    with pytest.raises(BadFile, match="is not a regular file"):
        find_study(damaged)
