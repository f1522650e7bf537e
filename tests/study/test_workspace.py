"""A study's directory: what an experiment planted there does no harm, and one driver at a time works on it."""

from pathlib import Path

import pytest

from agent.running.run_files import DRIVER_FILES, collect_run_files, log_path
from agent.study.workspace import Study, StudyBusy


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path / "study", tmp_path / "notes")
    study.directory.mkdir()
    log_path(study.run_dir(1), "stdout").write_text("said")
    return study


def test_nothing_is_written_through_a_planted_link(study: Study, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    directory = study.run_dir(1)
    directory.mkdir()
    for name in (*DRIVER_FILES, "stdout.log", "stderr.log"):
        (directory / name).symlink_to(precious)
    assert collect_run_files(study.run_dir(1), "as it ran") is None
    assert precious.read_text() == "untouched"
    assert (directory / "experiment.py").read_text() == "as it ran"
    assert (directory / "stdout.log").read_text() == "said"
    assert not (directory / "final_info.json").is_symlink()


def test_a_directory_in_the_place_of_a_file_is_removed(study: Study):
    (study.run_dir(1) / "experiment.py" / "deep").mkdir(parents=True)
    (study.run_dir(1) / "stdout.log").mkdir()
    collect_run_files(study.run_dir(1), "as it ran")
    assert (study.run_dir(1) / "experiment.py").read_text() == "as it ran"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_run_directory_that_is_none_is_tampered_with(study: Study, tmp_path: Path, kind: str):
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


def test_what_was_kept_already_stays(study: Study):
    collect_run_files(study.run_dir(1), "as it ran")
    collect_run_files(study.run_dir(1), "as it ran")
    assert (study.run_dir(1) / "stdout.log").read_text() == "said"


def test_the_lock_is_free_after_use_and_names_its_holder_meanwhile(study: Study):
    said = r"study is being worked on by process \d+ on \w+"
    with study.lock(), pytest.raises(StudyBusy, match=said), study.lock():
        pass
    with study.lock():
        pass
