"""The git of a study runs nothing that an experiment planted, and a study without its repository goes on."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from git import Repo

from agent.study.workspace import Study

SECRET = "sk-of-the-driver-0123456789"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with one commit, whose driver has a key and runs in a hook of another repository."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    study = Study(tmp_path / "a study", tmp_path / "notes")
    study.directory.mkdir()
    (study.directory / "experiment.py").write_text("first\n")
    study.commit("the first")
    return study


def git(directory: Path, *arguments: str) -> None:
    """Run git as an experiment would: without the driver's environment."""
    subprocess.run(["git", *arguments], cwd=directory, check=True, env={"PATH": os.environ["PATH"]})


def messages(study: Study) -> list[str]:
    with Repo(study.directory) as repo:
        return [str(commit.message).strip() for commit in repo.iter_commits("main")]


def committed(study: Study, name: str = "experiment.py") -> str:
    with Repo(study.directory) as repo:
        return (repo.head.commit.tree / name).data_stream.read().decode()


def spy(study: Study) -> Path:
    """Write a program that leaves its environment beside the study, and return it."""
    program = study.directory / "spy"
    program.write_text(f"#!/bin/sh\nenv > '{study.directory.parent}/stolen'\ncat\n")
    program.chmod(0o755)
    return program


def fsmonitor(study: Study) -> None:
    with (study.directory / ".git/config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = \"'{spy(study)}'\"\n")


def hook(study: Study) -> None:
    folder = study.directory / ".git/hooks"
    folder.mkdir(exist_ok=True)
    for name in ("post-commit", "post-index-change", "pre-commit", "reference-transaction", "post-checkout"):
        spy(study).rename(folder / name)
    with (study.directory / ".git/config").open("a") as file:
        file.write(f"[core]\n\thooksPath = {folder}\n")


def clean_filter(study: Study) -> None:
    with (study.directory / ".git/config").open("a") as file:
        file.write(f'[filter "spy"]\n\tclean = "\'{spy(study)}\'"\n\tsmudge = "\'{spy(study)}\'"\n')
    (study.directory / ".git/info/attributes").write_text("* filter=spy\n")
    (study.directory / ".gitattributes").write_text("* filter=spy working-tree-encoding=nonsense\n")


def included(study: Study) -> None:
    (study.directory / "more").write_text(f"[core]\n\tfsmonitor = \"'{spy(study)}'\"\n")
    with (study.directory / ".git/config").open("a") as file:
        file.write(f"[include]\n\tpath = {study.directory}/more\n[extensions]\n\tworktreeConfig = true\n")
    (study.directory / ".git/config").rename(study.directory / ".git/config.worktree")


def nested(study: Study) -> None:
    run = study.run_dir(1)
    run.mkdir()
    git(run, "init", "-q")
    with (run / ".git/config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = \"'{spy(study)}'\"\n")
    (run / "final_info.json").write_text("{}")


@pytest.mark.parametrize("plant", [fsmonitor, hook, clean_filter, included, nested], ids=lambda plant: plant.__name__)
def test_git_runs_nothing_that_an_experiment_planted(study: Study, plant: Callable[[Study], None]):
    plant(study)
    (study.directory / "experiment.py").write_text("second\n")
    study.commit("the second")
    assert messages(study) == ["the second", "the first"]
    assert committed(study) == "second\n"
    assert not (study.directory.parent / "stolen").exists()


def pipe_for_head(folder: Path) -> None:
    (folder / "HEAD").unlink()
    os.mkfifo(folder / "HEAD")


def locks(folder: Path) -> None:
    for name in ("index.lock", "HEAD.lock", "refs/heads/main.lock", "config.lock"):
        (folder / name).touch()


def assume_unchanged(folder: Path) -> None:
    git(folder.parent, "update-index", "--assume-unchanged", "experiment.py")


def folders_for_files(folder: Path) -> None:
    (folder / "refs/heads/main.lock/deep.lock").mkdir(parents=True)
    (folder / "index").unlink()
    (folder / "index").mkdir()
    shutil.rmtree(folder / "logs")
    (folder / "logs").write_text("")


def alternates(folder: Path) -> None:
    (folder / "objects/info").mkdir(exist_ok=True)
    os.mkfifo(folder / "objects/info/alternates")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "damage",
    [pipe_for_head, locks, assume_unchanged, folders_for_files, alternates],
    ids=lambda damage: damage.__name__,
)
def test_the_story_goes_on_where_only_the_rest_of_the_repository_is_damaged(
    study: Study, damage: Callable[[Path], None]
):
    damage(study.directory / ".git")
    (study.directory / "experiment.py").write_text("second\n")
    study.commit("the second")
    assert messages(study) == ["the second", "the first"]
    assert committed(study) == "second\n"


def removed(study: Study) -> None:
    (study.directory / ".git").rename(study.directory.parent / "elsewhere")


def another(study: Study) -> None:
    other = study.directory.parent / "other"
    other.mkdir()
    git(other, "init", "-q")
    removed(study)
    (study.directory / ".git").write_text(f"gitdir: {other}/.git\n")


def link(study: Study) -> None:
    removed(study)
    (study.directory / ".git").symlink_to("../elsewhere")


def without_objects(study: Study) -> None:
    for path in (study.directory / ".git/objects").glob("??/*"):
        path.unlink()


def nonsense(study: Study) -> None:
    (study.directory / ".git/refs/heads/main").write_text("nonsense\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "damage", [removed, another, link, without_objects, nonsense], ids=lambda damage: damage.__name__
)
def test_a_study_without_its_repository_begins_another(study: Study, damage: Callable[[Study], None]):
    damage(study)
    study.commit("the second")
    assert messages(study) == ["the second"]
    assert committed(study) == "first\n"
    assert (study.directory / "git_damaged_1").exists() == (damage in (without_objects, nonsense))
    other = study.directory.parent / "other/.git"
    assert not other.exists() or not list((other / "refs/heads").iterdir())


def test_git_gets_no_key(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "git").write_text(f'#!/bin/sh\nenv >> "{tmp_path}/seen"\nexec {real} "$@"\n')
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    study.commit("the second")
    seen = (tmp_path / "seen").read_text()
    assert "SAE_AGENT_STUDY=" in seen
    assert SECRET not in seen


def test_what_does_not_tell_the_story_is_not_committed(study: Study):
    (study.directory / "agent").mkdir()
    (study.directory / "agent/evil.py").write_text("")
    study.run_dir(1).mkdir()
    for name in ("final_info.json", "bomb", ".gitignore"):
        (study.run_dir(1) / name).write_text("!*")
    (study.run_dir(1) / "metrics.jsonl").symlink_to("/etc/passwd")
    (study.directory / "run_2").symlink_to("run_1")
    (study.directory / "experiment.py").unlink()
    os.mkfifo(study.directory / "experiment.py")
    study.commit("the second")
    with Repo(study.directory) as repo:
        assert repo.git.ls_files().splitlines() == ["run_1/final_info.json"]


def test_a_commit_is_not_repeated_though_another_came_between(study: Study):
    study.commit("run 1, result: ok")
    study.commit("baseline with K 16, seed 1: ok")
    study.commit("run 1, result: ok")
    assert messages(study) == ["baseline with K 16, seed 1: ok", "run 1, result: ok", "the first"]


def test_a_file_that_changes_between_two_commits_is_in_the_second(study: Study):
    study.commit("the second")
    (study.directory / "experiment.py").write_text("again\n")
    study.commit("the third")
    assert committed(study) == "again\n"
