"""python -P -m agent.lab.serve --model M --hook_name H --text T --tokens N --control FD: serve activations to runs.

An experiment under the driver is handed a socket in place of the files, so what it has read is counted here, out of its
reach. For each training the driver sends a line {"total": ROWS, "skip": ROWS} through its own socket FD, with two
descriptors: the server's end of the training's socket, and a pipe that is written a line {"saved": SERVED} whenever the
training has saved its state, and {"rows": SERVED} once it has ended. A training that goes on from a saved state begins
`skip` rows into the order, which count as served; one that begins at the first row has them all before it.
"""

import argparse
import fcntl
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from threading import Thread
from typing import IO

import torch

from agent.lab import activations
from agent.lab.exits import one_line_errors
from agent.lab.rows import ChangedShard, Manifest, Signatures, StoredRows, signatures
from agent.lab.streamed import Blocks, StreamedRows

SHARED_BYTES = 64 * 2**20  # at most, for the rows of one answer
MOST_READERS = 16  # streams of one training; each holds a shard in memory
MOST_BLOCK_READERS = 4  # likewise where rows are made as they are read; each holds two blocks

Reader = StoredRows | StreamedRows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m agent.lab.serve", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hook_name", required=True)
    parser.add_argument("--text", default="", help="pinned")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--stream", action="store_true", help="have the model make rows as they are read")
    parser.add_argument("--sealed", default="", help="what the harvest was sealed by when its checksums were compared")
    parser.add_argument("--control", type=int, required=True, metavar="FD")
    args = parser.parse_args()
    if not args.stream:
        torch.set_num_threads(1)  # the cores are the trainings'
    with one_line_errors("the trainings that are served end too"):
        harvest = (args.model, args.hook_name, args.tokens, args.text, args.sealed, args.stream)
        folder, manifest = activations.ensure_harvest(*harvest)
        checked = signatures(folder, manifest)  # just compared, or their checksums
        blocks = Blocks(folder, manifest, args.model, checked) if args.stream else None
        control = socket.socket(fileno=args.control)
        while (request := socket.recv_fds(control, 4096, 2))[0]:
            connection, report = request[1]
            training = Training(folder, manifest, checked, blocks, **json.loads(request[0]))
            Thread(target=training.serve, args=(socket.socket(fileno=connection), report), daemon=True).start()


class Training:
    """One training: the rows it is served, at most `total`, and their number so far."""

    def __init__(
        self, folder: Path, manifest: Manifest, checked: Signatures, blocks: Blocks | None, total: int, skip: int
    ) -> None:
        self.folder, self.manifest, self.checked, self.total, self.skip = folder, manifest, checked, total, skip
        self.served, self._blocks = 0, blocks
        self._readers: dict[int, Reader] = {}  # of the streams of the training, each with an order of its own
        self._most = max(1, min(SHARED_BYTES // (2 * manifest.d_in), total))  # rows of one answer

    def serve(self, connection: socket.socket, report: int) -> None:
        """Answer requests until the training closes its end, then report the rows served."""
        with connection, os.fdopen(report, "w") as counted, _shared_file(2 * self.manifest.d_in * self._most) as file:
            damage = ""
            try:
                self._answer_requests(connection, file.fileno(), counted)
            except ChangedShard as error:
                damage = str(error)
            except (OSError, ValueError, LookupError, TypeError, RecursionError):
                pass  # the training has ended, or does not keep to the protocol
            for reader in tuple(self._readers):
                self._close(reader)
            _write_line(counted, {"rows": self.served, "damage": damage})

    def _answer_requests(self, connection: socket.socket, shared: int, counted: IO[str]) -> None:
        socket.send_fds(connection, [b"\n"], [shared])
        connection.sendall(self.manifest.model_dump_json().encode() + b"\n")
        for line in connection.makefile("rb"):
            request = json.loads(line)
            if "saved" in request:
                _write_line(counted, {"saved": self.served})
                connection.sendall(b"0\n")
                continue
            count, rows = self._prepared(request)
            if count:
                os.pwrite(shared, rows.take(count).numpy().data, 0)
                self.served += count
            connection.sendall(b"%d\n" % count)
            rows.fill(min(count, self.total - self.served))  # while the training works on these

    def _prepared(self, request: dict[str, int]) -> tuple[int, Reader]:
        """Return the number of rows to hand out, and where from. Raise LookupError for what the protocol has not."""
        reader = request["reader"]
        if "seed" in request:
            if reader not in range(MOST_BLOCK_READERS if self._blocks else MOST_READERS):
                raise LookupError(reader)
            skip = request.get("skip", 0)
            if skip and (skip != self.skip or self.served):
                raise LookupError(skip)
            self.served += skip
            self._close(reader)
            rows = self._readers[reader] = self._new_rows()
            rows.start(request["seed"], skip)
            return 0, rows
        return max(0, min(request["rows"], self._most, self.total - self.served)), self._readers[reader]

    def _new_rows(self) -> Reader:
        if self._blocks:
            return StreamedRows(self._blocks, self.total)
        return StoredRows(self.folder, self.manifest, torch.device("cpu"), self.checked)

    def _close(self, reader: int) -> None:
        rows = self._readers.pop(reader, None)
        if isinstance(rows, StreamedRows):
            rows.close()


def _write_line(file: IO[str], content: dict[str, int | str]) -> None:
    file.write(json.dumps(content) + "\n")
    file.flush()


def _shared_file(size: int) -> IO[bytes]:
    """Return a file without a name, which on Linux the other side can neither shrink nor let grow."""
    if sys.platform == "linux":
        file = os.fdopen(os.memfd_create("rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    if sys.platform == "linux":
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return file


if __name__ == "__main__":
    main()
