"""A harvest is hashed once a study: after that its files are told by what no program can set back."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agent.lab import activations, rows
from agent.lab.activations import DamagedHarvest
from agent.lab.rows import Manifest, Shard

SHARD = "shard_0000.safetensors"
HUGE = 100 * 2**30  # bytes; hashing them takes a minute


def manifest(sha256: str) -> Manifest:
    shards = [Shard(name=SHARD, rows=8, sha256=sha256)]
    about = {"format": 2, "model": "m", "hook_name": "h", "d_in": 4, "rows": 8, "scale": 1.0, "stored_scale": 1.0}
    return Manifest(**about, mean=[0.0] * 4, shards=shards)


@pytest.fixture
def harvest(tmp_path: Path) -> Path:
    save_file({"activations": torch.ones(8, 4, dtype=torch.float16)}, tmp_path / SHARD)
    checksum = subprocess.run(["sha256sum", tmp_path / SHARD], capture_output=True, text=True, check=True).stdout
    (tmp_path / "manifest.json").write_text(manifest(checksum.split()[0]).model_dump_json())
    return tmp_path


def change_unseen(path: Path) -> None:
    """Change the last byte of a file, and put back its size and the time of its change."""
    status, content = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_files_that_are_as_they_were_sealed_are_not_read(tmp_path: Path):
    with (tmp_path / SHARD).open("wb") as file:
        file.truncate(HUGE)
    (tmp_path / "manifest.json").write_text(manifest("0" * 64).model_dump_json())
    started = time.monotonic()
    activations.check_harvest(tmp_path, rows.seal(tmp_path, manifest("0" * 64)))
    assert time.monotonic() - started < 5


def test_a_check_leaves_a_seal_for_the_next(harvest: Path):
    found = activations.check_harvest(harvest)
    assert activations.kept_seal(harvest) == rows.seal(harvest, found)


def test_a_file_that_was_changed_and_made_to_look_as_before_is_found(harvest: Path):
    activations.check_harvest(harvest)
    sealed = activations.kept_seal(harvest)
    change_unseen(harvest / SHARD)
    with pytest.raises(DamagedHarvest, match="does not have its checksum"):
        activations.check_harvest(harvest, sealed)


def test_a_manifest_that_was_changed_breaks_the_seal(harvest: Path):
    activations.check_harvest(harvest)
    sealed = activations.kept_seal(harvest)
    (harvest / "manifest.json").write_text(manifest("0" * 64).model_dump_json())
    with pytest.raises(DamagedHarvest, match="does not have its checksum"):
        activations.check_harvest(harvest, sealed)


def test_files_that_were_copied_are_hashed_and_sealed_anew(harvest: Path, tmp_path_factory: pytest.TempPathFactory):
    """As on a machine with a cache of its own."""
    activations.check_harvest(harvest)
    sealed, other = activations.kept_seal(harvest), tmp_path_factory.mktemp("another disk")
    for path in harvest.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert activations.check_harvest(other, sealed) == activations.check_harvest(harvest, sealed)
    assert activations.kept_seal(other) != sealed
