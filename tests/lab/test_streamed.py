"""Rows that a model makes as they are read: shuffled, the same for the same seed, and begun anywhere."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_MODEL, HOOK, run
from torch import Tensor

from agent.ideas import Fixed
from agent.lab import activations, fingerprint
from agent.lab.activations import Manifest, Stream
from agent.lab.defaults import MAX_HARVEST, STREAMED_VARIABLE
from agent.lab.errors import UserError
from agent.lab.rows import Connection, ServedRows
from agent.lab.streamed import FIRST_ROWS, WINDOWS, Blocks, StreamedRows
from agent.running.activation_server import ActivationServer
from agent.running.sandbox import UNCONFINED

TOKENS = 60_000  # three blocks, each larger than the one before but for the last


@pytest.fixture(scope="module")
def harvest(small_model: Path) -> tuple[Path, Manifest]:
    return activations.ensure_harvest(str(small_model), HOOK, TOKENS, streamed=True)


@pytest.fixture(scope="module")
def blocks(small_model: Path, harvest: tuple[Path, Manifest]) -> Blocks:
    return Blocks(*harvest, str(small_model))


@pytest.fixture(scope="module")
def one_pass(blocks: Blocks) -> Tensor:
    return read(blocks, 0, blocks.manifest.rows)


def read(blocks: Blocks, seed: int, count: int, skip: int = 0) -> Tensor:
    rows = StreamedRows(blocks, count)
    rows.start(seed, skip)
    return torch.cat([rows.take(min(BATCH, count - done)) for done in range(0, count, BATCH)])


def test_the_text_is_stored_and_no_activations(harvest: tuple[Path, Manifest]):
    folder, manifest = harvest
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "seal", WINDOWS}
    assert TOKENS <= manifest.rows < TOKENS + 64
    assert (folder / WINDOWS).stat().st_size < 5 * manifest.rows


def test_rows_are_scaled_and_have_the_mean_of_the_manifest(harvest: tuple[Path, Manifest], one_pass: Tensor):
    assert one_pass.dtype == torch.float16
    assert one_pass.float().norm(dim=1).mean().item() == pytest.approx(D_MODEL**0.5, rel=0.01)
    torch.testing.assert_close(one_pass.float().mean(0), torch.tensor(harvest[1].mean), rtol=0.02, atol=0.02)


def test_a_pass_has_every_row_once_whatever_the_seed(blocks: Blocks, one_pass: Tensor):
    other = read(blocks, 1, len(one_pass))
    assert not torch.equal(other[:BATCH], one_pass[:BATCH])
    ways = torch.randn(D_MODEL, 4, generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip((one_pass.float() @ ways).T, (other.float() @ ways).T, strict=True):
        torch.testing.assert_close(mine.sort().values, theirs.sort().values, rtol=0.01, atol=0.01)


def test_the_next_pass_has_another_order(blocks: Blocks, one_pass: Tensor):
    again = read(blocks, 0, FIRST_ROWS // 2, skip=len(one_pass))
    assert not torch.equal(again, one_pass[: len(again)])


@pytest.mark.parametrize("skip", [1, 5000, FIRST_ROWS, 50_000])
def test_a_training_can_go_on_from_any_row(blocks: Blocks, one_pass: Tensor, skip: int):
    assert torch.equal(read(blocks, 0, 9000, skip), one_pass[skip : skip + 9000])


def test_neighbours_in_the_text_are_apart_in_a_batch(one_pass: Tensor):
    whole = one_pass.float().var(0).sum()
    for batch in one_pass.split(1000)[:20]:
        assert batch.float().var(0).sum().item() == pytest.approx(whole.item(), rel=0.15)


@pytest.mark.slow
def test_two_runs_by_hand_with_the_same_seed_read_the_same_rows_to_the_last_bit(small_model: Path):
    code = f"""
import hashlib
from agent.lab.activations import stream
batches = stream({str(small_model)!r}, {HOOK!r}, tokens={TOKENS}, batch={BATCH}, seed=3)
print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in batches)).hexdigest(), batches.total)
"""
    one, two = (run("-c", code, **{STREAMED_VARIABLE: "1"}) for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.endswith(f" {TOKENS}\n")


def test_another_row_stands_in_the_place_of_an_outlier(small_model: Path, harvest: tuple[Path, Manifest]):
    folder, manifest = harvest
    norms = read(Blocks(*harvest, str(small_model)), 0, FIRST_ROWS).float().norm(dim=1)
    most = norms.quantile(0.9).item()
    few = manifest.model_copy(update={"median_norm": most / manifest.scale / 10})
    without = read(Blocks(folder, few, str(small_model)), 0, FIRST_ROWS).float().norm(dim=1)
    assert without.max() <= 1.001 * most < norms.max()
    torch.testing.assert_close(without[norms < 0.999 * most], norms[norms < 0.999 * most])


# Served to a training by another process


@pytest.fixture(scope="module")
def server(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActivationServer]:
    assert harvest
    fixed = Fixed(model=str(small_model), hook_name=HOOK, tokens=TOKENS, d_sae=128, stream=True)
    settings = {"SAE_AGENT_CACHE": os.environ["SAE_AGENT_CACHE"], "OMP_NUM_THREADS": "1"}
    server = ActivationServer(fixed, settings, tmp_path_factory.mktemp("server") / "stream.log", UNCONFINED)
    yield server
    server.end()


def served(descriptor: int, total: int) -> Stream:
    connection = Connection(descriptor)
    return Stream(ServedRows(connection), connection.manifest, total, BATCH, seed=0)


def test_a_training_is_served_what_it_would_make_itself(server: ActivationServer, one_pass: Tensor):
    with server.training(TOKENS) as training:
        rows = torch.cat(list(served(training.descriptor, 20_000)))
        assert training.report() == (20_000, None)
    assert torch.equal(rows, one_pass[:20_000].float())


def test_text_that_changes_while_the_study_runs_is_not_served(server: ActivationServer, harvest: Any):
    path = harvest[0] / WINDOWS
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-1] + b"\x01")
        with server.training(TOKENS) as training:
            with pytest.raises(UserError):
                list(served(training.descriptor, TOKENS))
            rows, verdict = training.report()
        assert rows == 0
        assert verdict
        assert verdict.name == "tampered"
        assert f"{WINDOWS} was changed after its checksum was compared" in verdict.evidence
    finally:
        path.write_bytes(before)
        server.end()


# When rows are streamed


def test_what_is_too_much_to_be_stored_is_streamed():
    assert Fixed(tokens=MAX_HARVEST + 1).stream
    assert not Fixed(tokens=MAX_HARVEST).stream
    assert Fixed(stream=True).stream
    assert not Fixed(model="synth2k", tokens=MAX_HARVEST + 1, stream=True).stream, "a world has no text to go through"


def test_studies_that_stream_and_that_do_not_share_no_baselines(small_model: Path):
    stored, streamed = (fingerprint.fingerprint(str(small_model), "", made) for made in (False, True))
    assert stored["fingerprint"] != streamed["fingerprint"]
    assert streamed["parts"] == stored["parts"] | {"rows": "streamed"}


def test_a_world_is_not_streamed(cache_dir: Path):
    assert cache_dir
    with pytest.raises(UserError, match="synth2k is a synthetic world and has no text: leave out --stream"):
        activations.ensure_harvest("synth2k", "activations", 1000, streamed=True)
    refused = run(
        "-m", "agent", "run", "--idea", "hierarchical_sae", "--max-runs", "1", "--model", "synth2k", "--stream"
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --stream is a language model's, and synth2k is a world without one: leave it out\n"
    )
