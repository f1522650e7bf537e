"""`agent cache`: it lists and clears by kind, touches nothing else, and clears nothing that a study uses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from without_flock import without_flock

from agent.lab import cache

DAY = 86400


def agent_cache(root: Path, *arguments: str, **preload: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agent", "cache", *arguments]
    environment = os.environ | preload | {"SAE_AGENT_CACHE": str(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with entries of every kind, leftovers, links to the outside, and a file of the user."""
    root, setting = tmp_path / "the cache", {"model": "tiny-lm", "hook_name": "blocks.1.hook_resid_post"}
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 5_000_000)
    for folder in ("activations/a", "activations/b.partial", "baselines/c/k16_seed0", "baselines/c/k16_seed1"):
        (root / folder).mkdir(parents=True)
    (root / "evaluation/d").mkdir(parents=True)
    (root / "activations/a/manifest.json").write_text(json.dumps(setting | {"rows": 1_500_000}))
    (root / "activations/a/shard").write_bytes(b"x" * 2_000_000)
    (root / "activations/a/link").symlink_to(outside)
    (root / "activations/a.lock").touch()
    (root / "activations/b.partial/0.raw").write_bytes(b"x" * 300_000)
    (root / "baselines/c/about.json").write_text(json.dumps(setting | {"tokens": 1_500_000, "d_sae": 1024}))
    (root / "evaluation/d/probes").write_bytes(b"x" * 40_000)
    (root / "evaluation/e").symlink_to(outside)
    (root / "mine").mkdir()
    (root / "mine/notes").write_text("not the cache's")
    old = time.time() - 3 * DAY - 60
    for path in (root / "evaluation/d/probes", root / "evaluation/d"):
        os.utime(path, (old, old))
    return root


def test_the_cache_is_listed(root: Path):
    result = agent_cache(root)
    assert result.returncode == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert rows[0] == ["kind", "size", "age", "purpose", "name"]
    setting = "tiny-lm, blocks.1.hook_resid_post, 1,500,000 tokens"
    assert rows[1:4] == [
        ["activations", "2 MB", "just now", setting, "a"],
        ["activations", "300 kB", "just now", "not finished", "b.partial"],
        ["baselines", rows[3][1], "just now", f"2 of {setting}, d_sae 1024", "c"],
    ]
    assert rows[4][:3] == ["evaluation", "40 kB", "3 days"]
    assert rows[5][3:] == ["a link; not followed", "e"]
    assert rows[6] == [f"2.34 MB in {root}"]


def test_a_damaged_manifest_is_reported(root: Path):
    (root / "activations/a/manifest.json").write_text("{")
    assert "damaged; will be rebuilt when needed" in agent_cache(root).stdout


def test_clearing_one_kind_leaves_the_rest(root: Path):
    result = agent_cache(root, "--clear", "activations")
    assert result.stdout == "activations: 2.3 MB freed\n"
    assert not (root / "activations").exists()
    assert (root / "baselines/c/k16_seed1").is_dir()
    assert (root / "evaluation/d/probes").exists()
    assert (root.parent / "outside/precious").exists()


def test_clearing_all_kinds_leaves_the_files_of_the_user(root: Path):
    result = agent_cache(root, "--clear", "evaluation", "--clear", "all")
    assert result.returncode == 0
    assert sorted(path.name for path in root.iterdir()) == ["lock", "mine"]
    assert (root / "mine/notes").exists()
    assert (root.parent / "outside/precious").exists()
    assert agent_cache(root).stdout == f"the cache {root} is empty\n"


def test_a_cache_that_does_not_exist_is_empty(tmp_path: Path):
    for arguments in ([], ["--clear", "all"]):
        result = agent_cache(tmp_path / "nowhere", *arguments)
        assert (result.returncode, result.stdout) == (0, f"the cache {tmp_path / 'nowhere'} is empty\n")
    assert not (tmp_path / "nowhere").exists()


def test_a_cache_that_cannot_be_where_a_file_is(tmp_path: Path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/cache"):
        result = agent_cache(root)
        said = f"error: the cache {root} cannot be there, as {tmp_path / 'file'} is no folder: set SAE_AGENT_CACHE"
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(said)


@pytest.mark.parametrize("flock", [True, False])
def test_the_cache_is_cleared_only_after_the_last_study_has_ended(root: Path, flock: bool):
    preload = {} if flock else without_flock(root.parent)
    code = "import sys; from agent.lab import cache\nwith cache.in_use(): print('in use', flush=True); sys.stdin.read()"
    environment = os.environ | preload | {"SAE_AGENT_CACHE": str(root)}
    drivers = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for driver in drivers:
        assert driver.stdout
        assert driver.stdout.readline() == b"in use\n"
    assert agent_cache(root).returncode == 0
    for driver in drivers:
        refusal = agent_cache(root, "--clear", "all", **preload)
        assert refusal.returncode == 2
        user = "a study or a run" if flock else f"process ({'|'.join(str(user.pid) for user in drivers)}) on .+"
        error = f"error: {re.escape(str(root))} is in use by {user}: clear it after that has ended\n"
        assert re.fullmatch(error, refusal.stderr)
        assert (root / "activations/a/shard").exists()
        driver.kill()
        driver.communicate()
    assert agent_cache(root, "--clear", "all", **preload).returncode == 0
    assert sorted(path.name for path in root.iterdir()) == ["lock", "mine"]


def test_texts_are_told_apart(root: Path):
    for name in ("corpus-tiny-lm-0123456789ab", "sae-bench/0123456789abcdef"):
        (root / "texts" / name).mkdir(parents=True)
    (root / "texts/some%2Ftext.commit").write_text("0" * 40)
    rows = [re.split(r"\s{2,}", line.strip()) for line in agent_cache(root).stdout.splitlines()]
    assert {row[4]: row[3] for row in rows if row[0] == "texts"} == {
        "corpus-tiny-lm-0123456789ab": "what was read of a text, as tokens",
        "sae-bench": "SAE-Bench's own data",
        "some%2Ftext.commit": "the commit of a hub dataset",
    }


# Pruning


def put(root: Path, name: str, size: int, days: float) -> Path:
    """Put an entry into the cache that was used some days ago."""
    folder, then = root / name, time.time() - days * DAY - 10
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * size)
    for path in (folder / "data", folder):
        os.utime(path, (then, then))
    return folder


def test_pruning_removes_what_was_used_longest_ago(tmp_path: Path):
    root = tmp_path / "cache"
    old, older = put(root, "texts/old", 2_000_000, 5), put(root, "activations/older", 3_000_000, 9)
    new, left = put(root, "baselines/new", 4_000_000, 1), put(root, "activations/left.partial", 10_000, 0)
    result = agent_cache(root, "--prune", "0.005")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "activations/left.partial: 10 kB freed, last used just now",
        "activations/older: 3 MB freed, last used 9 days ago",
        "texts/old: 2 MB freed, last used 5 days ago",
        f"4 MB left in {root}",
    ]
    assert (new.exists(), old.exists(), older.exists(), left.exists()) == (True, False, False, False)


def test_pruning_removes_nothing_from_a_cache_that_is_small_enough(root: Path):
    before = sorted(root.rglob("*"))
    assert agent_cache(root, "--prune", "1").stdout == f"2.34 MB left in {root}\n"
    assert sorted(root.rglob("*")) == sorted({*before, root / "lock"})


def test_pruning_leaves_links_commits_and_files_of_the_user(root: Path):
    (root / "texts").mkdir()
    (root / "texts/some%2Ftext.commit").write_text("0" * 40)
    assert agent_cache(root, "--prune", "0").returncode == 0
    assert [path.name for kind in ("activations", "baselines") for path in (root / kind).iterdir()] == ["a.lock"]
    assert (root / "evaluation/e").is_symlink()
    assert (root / "texts/some%2Ftext.commit").exists()
    assert (root / "mine/notes").exists()
    assert (root.parent / "outside/precious").exists()


def test_nothing_is_pruned_while_a_study_uses_the_cache(root: Path):
    code = "import sys; from agent.lab import cache\nwith cache.in_use(): print('in use', flush=True); sys.stdin.read()"
    environment = os.environ | {"SAE_AGENT_CACHE": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == b"in use\n"
        refusal = agent_cache(root, "--prune", "0")
    assert refusal.returncode == 2
    assert refusal.stderr == f"error: {root} is in use by a study or a run: prune it after that has ended\n"
    assert (root / "activations/a/shard").exists()


def test_a_cache_is_cleared_or_pruned(root: Path):
    result = agent_cache(root, "--prune", "0", "--clear", "all")
    assert result.returncode == 2
    assert result.stderr == "error: --clear deletes by kind, and --prune by age: give one of them\n"
    assert (root / "activations/a/shard").exists()


def test_what_is_used_is_the_last_to_be_pruned(tmp_path: Path):
    root = tmp_path / "cache"
    used, idle = put(root, "activations/used", 1_000_000, 9), put(root, "activations/idle", 1_000_000, 5)
    cache.mark_used(used)
    assert agent_cache(root, "--prune", "0.001").returncode == 0
    assert (used.exists(), idle.exists()) == (True, False)
