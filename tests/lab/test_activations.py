"""Harvested activations: scaled, shuffled, harvested once; a harvest that was cut short is never used."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_lab import D_MODEL, HOOK, TOKENS, run, start
from torch import Tensor

from agent.lab import activations, cache, fingerprint, models, tokens
from agent.lab.activations import DamagedHarvest, Manifest
from agent.lab.code_hash import lab_hash
from agent.lab.errors import UserError

Harvest = tuple[Path, Manifest]
OTHER_HOOK, OTHER_TOKENS = "blocks.0.hook_resid_post", 140_000


def stream(model: Path, *, size: int = TOKENS, batch: int = 1000, seed: int = 0) -> activations.Stream:
    """Stream `size` tokens of the one harvest, whose key holds TOKENS."""
    whole = activations.stream(str(model), HOOK, tokens=TOKENS, batch=batch, seed=seed)
    return activations.stored_stream(
        activations.ensure_harvest(str(model), HOOK, TOKENS)[0], whole.manifest, size, batch, seed
    )


def rows(batch: Tensor) -> list[bytes]:
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in batch]


# The harvest


def test_activations_have_mean_norm_sqrt_d_in_and_the_mean_of_the_manifest(small_model: Path, harvest: Harvest):
    everything = torch.cat(list(stream(small_model)))
    assert everything.shape == (TOKENS, D_MODEL)
    assert everything.dtype == torch.float32
    assert everything.norm(dim=1).mean().item() == pytest.approx(D_MODEL**0.5, rel=0.01)
    torch.testing.assert_close(everything.mean(0), torch.tensor(harvest[1].mean), rtol=1e-2, atol=1e-2)


def test_the_harvest_holds_the_models_activations_on_ordinary_tokens(small_model: Path, harvest: Harvest):
    """Run the first windows by hand: every row is in the harvest, but those of special tokens are not."""
    folder, manifest = harvest
    model = models.load(str(small_model))
    ids = tokens.windows(model, ["sae", "lm"], models.context_size(model), TOKENS, activations.HARVEST_SEED)[:16]
    special = torch.isin(ids, torch.tensor(sorted(tokens.special_ids(model))))
    assert special[:, 0].all()
    assert special.sum() > len(ids)  # documents end inside windows too
    _, cached = model.run_with_cache(ids, prepend_bos=False)
    expected = cached[HOOK]
    stored = torch.cat([load_file(folder / shard.name)["activations"] for shard in manifest.shards])
    stored_scale = manifest.stored_scale
    distance = torch.cdist(expected.flatten(0, 1) * stored_scale, stored.float()).amin(1).view(ids.shape)
    assert distance[~special].max() < 0.01
    assert distance[:, 0].min() > 0.1


def test_a_pass_yields_every_harvested_row_once_in_another_order(small_model: Path, harvest: Harvest):
    folder, manifest = harvest
    assert len(manifest.shards) == 2
    correction = manifest.scale / manifest.stored_scale
    stored = [load_file(folder / s.name)["activations"].float() * correction for s in manifest.shards]
    streamed = rows(torch.cat(list(stream(small_model))))
    assert Counter(streamed) == Counter(rows(torch.cat(stored)))
    assert streamed != rows(torch.cat(stored))


def test_neighbours_in_the_text_are_apart_in_the_stream(small_model: Path):
    """Tokens of one window are alike; a batch of the stream varies as much as the whole."""
    batches = list(stream(small_model))[:20]
    whole = torch.cat(list(stream(small_model))).var(0).sum()
    for batch in batches:
        assert batch.var(0).sum().item() == pytest.approx(whole.item(), rel=0.15)


# The stream


def test_a_stream_yields_exactly_the_requested_tokens(small_model: Path):
    short = stream(small_model, size=10_500, batch=1000)
    lengths = [len(x) for x in short]
    assert lengths == [1000] * 10 + [500]
    assert short.steps == len(lengths)


def test_a_stream_longer_than_the_harvest_repeats_it_in_another_order(small_model: Path):
    everything = rows(torch.cat(list(stream(small_model, size=2 * TOKENS))))
    first, second = everything[:TOKENS], everything[TOKENS:]
    assert Counter(first) == Counter(second)
    assert first != second


def test_the_seed_fixes_the_order(small_model: Path):
    one, same, other = (next(iter(stream(small_model, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_batch_stays_as_it_is_when_the_next_is_read(small_model: Path):
    batches = iter(stream(small_model, batch=100))
    first = next(batches)
    kept = first.clone()
    next(batches)
    assert torch.equal(first, kept)


def test_a_smoke_run_streams_fewer_tokens(small_model: Path, harvest: Harvest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    short = activations.stream(str(small_model), HOOK, tokens=TOKENS, batch=1000, seed=0)
    assert short.manifest == harvest[1]
    assert sum(len(x) for x in short) == activations.SMOKE_TOKENS


@pytest.mark.parametrize("size", [{"tokens": 0, "batch": 8}, {"tokens": 8, "batch": 0}, {"tokens": -5, "batch": 8}])
def test_tokens_and_batch_must_be_positive(small_model: Path, size: dict[str, int]):
    with pytest.raises(UserError, match="must be positive"):
        activations.stream(str(small_model), HOOK, seed=0, **size)


# Harvests that are interrupted, concurrent or damaged


@pytest.fixture(scope="module")
def after_a_kill(small_model: Path) -> Path:
    """A harvest made by two processes at once, after a third was killed while it harvested."""
    key = activations.HarvestKey(str(small_model), models.identity(str(small_model)), OTHER_HOOK, OTHER_TOKENS)
    partial = key.folder().with_name(key.folder().name + ".partial")
    killed = prepare(small_model)
    wait_until(lambda: any(raw.stat().st_size > 0 for raw in partial.glob("*.raw")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert partial.is_dir()
    assert not key.folder().exists()
    two = [prepare(small_model), prepare(small_model)]
    for process in two:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert f"activations: {OTHER_TOKENS:,}" in out
    assert not partial.exists()
    return key.folder()


def prepare(model: Path) -> "subprocess.Popen[str]":
    arguments = ["--model", str(model), "--hook_name", OTHER_HOOK, "--tokens", str(OTHER_TOKENS)]
    return start("-P", "-m", "agent.lab.prepare", *arguments)


def wait_until(condition, process: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.slow
def test_after_a_kill_two_processes_share_one_clean_harvest(after_a_kill: Path):
    manifest = activations.check_harvest(after_a_kill)
    assert manifest.rows == sum(shard.rows for shard in manifest.shards) == OTHER_TOKENS
    assert {path.name for path in after_a_kill.iterdir()} == {
        "manifest.json",
        "seal",
        *(s.name for s in manifest.shards),
    }


def test_a_whole_harvest_is_not_made_again(small_model: Path, after_a_kill: Path):
    before = {path: path.stat().st_mtime_ns for path in after_a_kill.iterdir()}
    activations.ensure_harvest(str(small_model), OTHER_HOOK, OTHER_TOKENS)
    assert {path: path.stat().st_mtime_ns for path in after_a_kill.iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "no json", "gone", "shard gone", "shard truncated"])
def test_a_damaged_harvest_is_detected(after_a_kill: Path, tmp_path: Path, damage: str):
    for path in after_a_kill.iterdir():
        os.link(path, tmp_path / path.name)
    manifest, shard = tmp_path / "manifest.json", tmp_path / "shard_0001.safetensors"
    hurt = shard if "shard" in damage else manifest
    content = hurt.read_bytes()
    hurt.unlink()
    if "gone" not in damage:
        hurt.write_bytes(b"[]" if damage == "no json" else content[: len(content) // 2])
    with pytest.raises(DamagedHarvest, match=hurt.name) as caught:
        activations.check_harvest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_flipped_byte_is_reported_and_the_activations_harvested_again(
    small_model: Path, after_a_kill: Path, capfd: pytest.CaptureFixture[str]
):
    shard, manifest = after_a_kill / "shard_0000.safetensors", json.loads((after_a_kill / "manifest.json").read_text())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    activations.ensure_harvest(str(small_model), OTHER_HOOK, OTHER_TOKENS)
    assert "shard_0000.safetensors does not have its checksum); harvesting them again" in capfd.readouterr().err
    assert json.loads((after_a_kill / "manifest.json").read_text()) == manifest  # the same activations once more


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UserError, match=r"activations need 1000000000\.0 GB and .* GB free: free some space or point"):
        cache.require_space(tmp_path / "new", 10**18, "activations")
    assert not (tmp_path / "new").exists()


# The fingerprint of what figures depend on


@pytest.mark.usefixtures("harvest")
def test_the_fingerprint_changes_with_the_model_and_with_nothing_else(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["--model", str(small_model), "--hook_name", HOOK, "--tokens", str(TOKENS)]
    ended = run("-P", "-m", "agent.lab.prepare", *arguments, "--fingerprint", tmp_path / "prepared.json")
    assert ended.returncode == 0, ended.stderr
    one = json.loads((tmp_path / "prepared.json").read_text())
    copy = shutil.copytree(small_model, tmp_path / "a copy")
    monkeypatch.setenv("SAE_AGENT_THREADS", "1")  # as a study has them on a CPU
    assert {name: one[name] for name in ("fingerprint", "parts")} == fingerprint.fingerprint(str(copy))
    assert one["evals"] == ["core", "sparse_probing_sae_probes"]
    assert len(one["fingerprint"]) == 16
    assert one["parts"]["lab"] == lab_hash()
    assert one["parts"]["model"] == models.identity(str(small_model))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    changed = fingerprint.fingerprint(str(copy))
    assert changed["fingerprint"] != one["fingerprint"]
    assert {name for name, part in changed["parts"].items() if part != one["parts"][name]} == {"model"}


def test_the_hash_of_the_lab_needs_no_torch():
    ended = run(
        "-c",
        "import sys; from agent.lab.code_hash import lab_hash; print(lab_hash()); sys.exit('torch' in sys.modules)",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == lab_hash()
