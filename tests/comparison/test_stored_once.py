"""A baseline's checkpoint is on the disk once, though its study and the cache have it both."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from agent.comparison.baselines import copy_run
from agent.study import digests

TENSORS = "checkpoint/tensors.safetensors"
HEADER = "checkpoint/header.json"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "baseline_k16_seed1"
    for name in (*digests.RUN_FILES, "eval/core.json"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(f"the content of {name}")
    (run_dir / "link").symlink_to(tmp_path / "precious.safetensors")
    return run_dir


def test_tensors_get_a_second_name_and_the_rest_is_copied(run_dir: Path, tmp_path: Path):
    copy_run(run_dir, tmp_path / "copy", "eval")
    assert (tmp_path / "copy" / TENSORS).samefile(run_dir / TENSORS)
    assert not (tmp_path / "copy" / HEADER).samefile(run_dir / HEADER)
    assert (tmp_path / "copy" / HEADER).read_text() == (run_dir / HEADER).read_text()
    assert (tmp_path / "copy/link").is_symlink()
    assert not (tmp_path / "copy/eval").exists()


def test_tensors_outlive_the_directory_that_they_came_from(run_dir: Path, tmp_path: Path):
    content = (run_dir / TENSORS).read_text()
    copy_run(run_dir, tmp_path / "copy")
    shutil.rmtree(run_dir)
    assert (tmp_path / "copy" / TENSORS).read_text() == content


def test_a_change_by_one_name_breaks_the_seal_of_the_other(run_dir: Path, tmp_path: Path):
    copy_run(run_dir, tmp_path / "cached")
    digests.seal(tmp_path / "cached", digests.RUN_FILES)
    assert digests.is_sealed(tmp_path / "cached", digests.RUN_FILES)
    with (run_dir / TENSORS).open("r+") as file:
        file.write("x")
    assert not digests.is_sealed(tmp_path / "cached", digests.RUN_FILES)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second disk")
def test_to_another_disk_tensors_are_copied(run_dir: Path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy_run(run_dir, Path(folder, "copy"))
        assert Path(folder, "copy", TENSORS).read_text() == (run_dir / TENSORS).read_text()
