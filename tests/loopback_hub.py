"""A hub on this machine: it answers for models and datasets as huggingface_hub and the library `datasets` expect."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
class LoopbackHub:
    """Serve `repositories` by name: OWNER/NAME of a model, datasets/OWNER/NAME of a dataset.

    Each is a directory, or its files' contents by their names. `private` ones are for those with TOKEN alone. Nobody
    has accepted the terms of `gated` ones: nobody is given their files. The files in `broken`, by name, break off in
    their middle.
    """

    repositories: Mapping[str, Path | Mapping[str, bytes]]
    private: frozenset[str] = frozenset()
    gated: frozenset[str] = frozenset()
    broken: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)  # REPOSITORY/FILE, as they were fetched
    served_bytes: int = 0  # of files

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

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables of a process that asks this hub, as nobody, and keeps what it fetches in `cache`."""
        no_proxy = {"http_proxy": "", "HTTP_PROXY": "", "no_proxy": "127.0.0.1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_TOKEN": "", **no_proxy}

    def commit(self, repository: str) -> str:
        """Return the commit of a repository, by its files."""
        return _commit(self._files(repository))

    def _files(self, repository: str) -> dict[str, bytes]:
        content = self.repositories[repository]
        if isinstance(content, Path):
            paths = [path for path in content.rglob("*") if path.is_file()]
            content = {path.relative_to(content).as_posix(): path.read_bytes() for path in paths}
        return dict(sorted(content.items()))

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(urlparse(request.path).path).strip("/")
        is_api, path = path.startswith("api/"), path.removeprefix("api/").removeprefix("models/")
        name = next((name for name in self.repositories if f"{path}/".startswith(f"{name}/")), None)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            _send(request, 401, b'{"error": "Invalid user token."}')
        elif name is None or (name in self.private and not token):
            _send(request, 404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name in self.gated and not is_api:
            _send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif is_api:
            self._describe(request, name, path.removeprefix(name).strip("/"), body)
        else:
            self._send_file(request, name, path.removeprefix(f"{name}/resolve/").partition("/")[2])

    def _describe(self, request: BaseHTTPRequestHandler, name: str, question: str, body: bytes) -> None:
        files = self._files(name)
        commit = _commit(files)
        kind, _, rest = question.partition("/")
        revision, _, folder = rest.partition("/")
        if revision not in ("", "main", commit):
            _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        entries = [
            {"type": "file", "path": file, "rfilename": file, "size": len(data), "oid": _oid(data)}
            for file, data in files.items()
        ]
        if kind == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]*)", body.decode())
            answer: Any = [entry for entry in entries if entry["path"] in map(unquote, wanted)]
        elif kind == "tree":
            folders = sorted({file.rpartition("/")[0] for file in files} - {""})
            entries += [{"type": "directory", "path": path, "oid": _oid(path.encode()), "size": 0} for path in folders]
            answer = [entry for entry in entries if str(entry["path"]).startswith(f"{folder}/" if folder else "")]
        else:
            public = {"id": name.removeprefix("datasets/"), "private": name in self.private, "tags": []}
            answer = public | {"sha": commit, "siblings": entries}
        _send(request, 200, json.dumps(answer).encode())

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, file: str) -> None:
        files = self._files(name)
        data = files.get(file)
        if data is None:
            _send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": _commit(files), "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(data)) if span and span[2] else len(data)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        whole, half = data[start:end], len(data) // 2
        content = data[start : min(end, half)] if file in self.broken else whole
        if request.command == "GET":
            self.downloads.append(f"{name}/{file}")
            self.served_bytes += len(content)
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


def _commit(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1("".join(f"{name} {_oid(data)}" for name, data in files.items()).encode()).hexdigest()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
