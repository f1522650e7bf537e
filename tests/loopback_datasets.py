"""A hub on this machine with datasets, as the `datasets` library asks for them when it streams."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlparse

import pyarrow
from pyarrow import parquet

TOKEN = "hf_accepted"


def as_jsonl(documents: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: document}) + "\n" for document in documents).encode()


def as_parquet(documents: list[str]) -> bytes:
    return as_table(text=documents, meta=documents)


def as_table(**columns: list[Any]) -> bytes:
    """Return a parquet file of these columns."""
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content, row_group_size=500)
    return content.getvalue()


@dataclass
class LoopbackDatasets:
    """Serve `datasets`: the files of each, by the names of both.

    Files in `broken` break off in their middle. `private` datasets are for those with TOKEN alone, and nobody has
    accepted the terms of `gated` ones.
    """

    datasets: Mapping[str, Mapping[str, bytes]]
    private: frozenset[str] = frozenset()
    gated: frozenset[str] = frozenset()
    broken: set[str] = field(default_factory=set)
    served_bytes: int = 0

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, name: str) -> str:
        """Return the commit of a dataset, by its files."""
        content = "".join(f"{file} {_oid(data)}" for file, data in sorted(self.datasets[name].items()))
        return hashlib.sha1(content.encode()).hexdigest()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(urlparse(request.path).path).strip("/")
        match = re.fullmatch(r"(api/)?datasets/([^/]+/[^/]+)/?(.*)", path)
        name = match[2] if match else ""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            _send(request, 401, b'{"error": "Invalid user token."}')
        elif match is None or name not in self.datasets or (name in self.private and not token):
            _send(request, 401 if not token else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name in self.gated:
            _send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif match[1]:
            self._describe(request, name, match[3], body)
        else:
            self._send_file(request, name, match[3].removeprefix("resolve/").partition("/")[2])

    def _describe(self, request: BaseHTTPRequestHandler, name: str, question: str, body: bytes) -> None:
        kind, _, rest = question.partition("/")
        revision, _, folder = rest.partition("/")
        if revision not in ("", "main", self.commit(name)):
            _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        entries = [
            {"type": "file", "path": file, "rfilename": file, "size": len(data), "oid": _oid(data)}
            for file, data in sorted(self.datasets[name].items())
        ]
        if kind == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]*)", body.decode())
            answer: Any = [entry for entry in entries if entry["path"] in map(unquote, wanted)]
        elif kind == "tree":
            folders = {f.rpartition("/")[0] for f in self.datasets[name]} - {""}
            entries += [{"type": "directory", "path": path, "oid": _oid(path.encode()), "size": 0} for path in folders]
            answer = [entry for entry in entries if str(entry["path"]).startswith(f"{folder}/" if folder else "")]
        else:
            answer = {"id": name, "sha": self.commit(name), "siblings": entries, "private": False, "tags": []}
        _send(request, 200, json.dumps(answer).encode())

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, file: str) -> None:
        data = self.datasets[name].get(file)
        if data is None:
            _send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.commit(name), "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(data)) if span and span[2] else len(data)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        whole, half = data[start:end], len(data) // 2
        content = data[start : min(end, half)] if file in self.broken else whole
        self.served_bytes += len(content) * (request.command == "GET")
        _send(request, 206 if span else 200, content, headers, length=len(whole))
        request.close_connection = file in self.broken


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
