"""Activations served to a training by another process, which counts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import HOOK, TOKENS, stream

from agent.ideas import Fixed
from agent.lab.activations import Stream
from agent.lab.defaults import SOCKET_VARIABLE
from agent.lab.errors import UserError
from agent.lab.rows import Connection, ServedRows
from agent.running.activation_server import ActivationServer
from agent.running.sandbox import UNCONFINED

BATCH = 1000


@pytest.fixture(scope="module")
def server(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActivationServer]:
    assert harvest
    fixed = Fixed(model=str(small_model), hook_name=HOOK, tokens=TOKENS, d_sae=128)
    settings = {"SAE_AGENT_CACHE": os.environ["SAE_AGENT_CACHE"]}
    server = ActivationServer(fixed, settings, tmp_path_factory.mktemp("server") / "stream.log", UNCONFINED)
    yield server
    server.end()


def batches(connection: Connection, seed: int = 0) -> Stream:
    return Stream(ServedRows(connection), connection.manifest, TOKENS, BATCH, seed)


def served(server: ActivationServer, read: Callable[[Connection], Any], total: int = TOKENS) -> int:
    """Return the rows that were served to `read`, which has a connection of its own."""
    with server.training(total) as training:
        read(Connection(training.descriptor))
        return training.report()[0]


def read_all(connection: Connection) -> None:
    assert sum(map(len, batches(connection))) == TOKENS


def test_an_experiment_is_served_the_rows_that_it_would_read_from_the_files(
    server: ActivationServer, small_model: Path, tmp_path: Path
):
    code = f"""
import torch
from agent.lab.activations import stream
torch.save(torch.cat(list(stream({str(small_model)!r}, {HOOK!r}, tokens=1, batch={BATCH}, seed=0))), "all.pt")
"""
    with server.training(TOKENS) as training:
        own = {
            SOCKET_VARIABLE: str(training.descriptor),
            "SAE_AGENT_FIXED": server.fixed.model_dump_json(),
            "SAE_AGENT_CACHE": str(tmp_path / "empty"),
        }
        command, descriptors = [sys.executable, "-c", code], [training.descriptor]
        subprocess.run(command, env=os.environ | own, cwd=tmp_path, pass_fds=descriptors, check=True, timeout=120)
        assert training.report()[0] == TOKENS
    assert torch.equal(torch.load(tmp_path / "all.pt"), torch.cat(list(stream(small_model, batch=BATCH))))


def test_rows_are_counted_as_they_are_read(server: ActivationServer):
    assert served(server, lambda connection: next(iter(batches(connection)))) == BATCH
    assert served(server, lambda _: None) == 0
    assert served(server, read_all) == TOKENS


def test_two_streams_have_an_order_each_and_one_budget(server: ActivationServer, small_model: Path):
    firsts: list[torch.Tensor] = []

    def read_pairs(connection: Connection) -> None:
        with pytest.raises(UserError, match="tokens of the study are spent"):
            firsts.extend(first for first, _ in zip(batches(connection), batches(connection, seed=1), strict=True))

    assert served(server, read_pairs) == TOKENS
    one = torch.cat(firsts)
    assert len(one) == TOKENS // 2
    assert torch.equal(one, torch.cat(list(stream(small_model, batch=BATCH)))[: len(one)])


def read_on(connection: Connection) -> None:
    data = batches(connection)
    list(data)
    data._rows.take(5000)


def pass_again(connection: Connection) -> None:
    data = batches(connection)
    list(data)
    list(data)


def ask_for_everything(connection: Connection) -> None:
    connection.ask(reader=0, seed=0)
    while connection.ask(reader=0, rows=10**9):
        pass
    raise UserError("no more rows")


def test_a_training_that_goes_on_is_served_the_rest_alone(server: ActivationServer, small_model: Path):
    whole, skip, saved = list(stream(small_model, batch=BATCH)), 40 * BATCH, 60 * BATCH
    found: list[torch.Tensor] = []

    def read_rest(connection: Connection) -> None:
        data = batches(connection)
        data.skip = skip
        for x in data:
            found.append(x)
            if data.position == saved:
                data.note_saved()
        with pytest.raises(UserError, match="spent"):
            data._rows.take(1)

    with server.training(TOKENS, skip) as training:
        read_rest(Connection(training.descriptor))
        assert training.saved_rows() == saved
        assert training.report()[0] == TOKENS
    assert torch.equal(torch.cat(found), torch.cat(whole[40:]))


@pytest.mark.parametrize("skip", [BATCH, 50 * BATCH])
def test_rows_are_skipped_only_after_a_saved_state(server: ActivationServer, skip: int):
    def skip_some(connection: Connection) -> None:
        data = batches(connection)
        data.skip = skip
        with pytest.raises(UserError, match="has ended"):
            next(iter(data))

    assert served(server, skip_some) == 0


def test_one_that_starts_over_has_all_rows(server: ActivationServer):
    with server.training(TOKENS, skip=40 * BATCH) as training:
        read_all(Connection(training.descriptor))
        assert training.report()[0] == TOKENS


@pytest.mark.parametrize("read", [read_on, pass_again, ask_for_everything])
def test_no_more_rows_are_served_than_the_study_has(server: ActivationServer, read: Callable[[Connection], None]):
    def attempt(connection: Connection) -> None:
        with pytest.raises(UserError):
            read(connection)

    assert served(server, attempt) == TOKENS


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"{}\n", b'{"reader": 99, "seed": 0}\n', b'{"reader": 0, "rows": 5}\n', b"[" * 9999 + b"\n"]
)
def test_a_training_that_breaks_the_protocol_ends_alone(server: ActivationServer, line: bytes):
    with server.training(TOKENS) as training:
        with socket.socket(fileno=os.dup(training.descriptor)) as connection:
            connection.sendall(line)
        assert training.report()[0] == 0
    assert served(server, lambda connection: next(iter(batches(connection)))) == BATCH


@pytest.mark.skipif(sys.platform != "linux", reason="files can be sealed on Linux alone")
def test_the_shared_memory_cannot_be_shrunk_or_grown(server: ActivationServer):
    """A server that wrote to memory that is gone would be killed, with the other trainings that it serves."""
    with server.training(TOKENS) as training, socket.socket(fileno=os.dup(training.descriptor)) as connection:
        _, (shared,), _, _ = socket.recv_fds(connection, 1, 1)
        for size in (0, 2**33):
            with pytest.raises(PermissionError):
                os.truncate(shared, size)


def test_a_server_that_was_killed_is_started_again(server: ActivationServer):
    with server.training(TOKENS) as training:
        assert server._child
        server._child._process.kill()
        _, verdict = training.report()
        assert verdict
        assert verdict.name == "killed"
    assert served(server, lambda connection: next(iter(batches(connection)))) == BATCH


def test_the_driver_limits_the_rows_of_a_smoke_run(server: ActivationServer):
    def read_past(connection: Connection) -> None:
        with pytest.raises(UserError, match="spent"):
            list(batches(connection))

    assert served(server, read_past, total=20_000) == 20_000


def test_a_shard_that_changes_while_the_study_runs_is_not_served(server: ActivationServer, harvest: Any):
    """An experiment that is not confined could mix the text it is scored on into the activations."""
    folder, manifest = harvest
    paths = [folder / shard.name for shard in manifest.shards]
    before = [path.read_bytes() for path in paths]
    try:
        for path, content in zip(paths, before, strict=True):
            status = path.stat()
            path.write_bytes(content[:-1] + b"\x00")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with server.training(TOKENS) as training:
            with pytest.raises(UserError):
                read_all(Connection(training.descriptor))
            rows, verdict = training.report()
        assert rows == 0
        assert verdict
        assert verdict.name == "tampered"
        assert "was changed after its checksum was compared" in verdict.evidence
    finally:
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content)
        server.end()
