"""A hub on this machine: it serves directories as repositories, in the answers that huggingface_hub expects."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlparse


@dataclass
class LoopbackHub:
    """Serve `repositories`, directories by name: OWNER/NAME of a model, datasets/OWNER/NAME of a dataset.

    `gated` ones give their files to nobody, and the files in `broken`, by name, break off in their middle.
    """

    repositories: Mapping[str, Path]
    gated: frozenset[str] = frozenset()
    broken: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)  # REPOSITORY/FILE, as they were fetched

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
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
    def port(self) -> int:
        return self._server.server_port

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables of a process that asks this hub, and keeps what it fetches in `cache`."""
        url = f"http://127.0.0.1:{self.port}"
        return {"HF_ENDPOINT": url, "HF_HOME": str(cache), "http_proxy": "", "HTTP_PROXY": "", "no_proxy": "127.0.0.1"}

    def commit(self, repository: str) -> str:
        """Return the commit of a repository, by its files."""
        content = "".join(f"{name} {_oid(path)}" for name, path in self._files(repository).items())
        return hashlib.sha1(content.encode()).hexdigest()

    def _files(self, repository: str) -> dict[str, Path]:
        folder = self.repositories[repository]
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlparse(request.path).path).strip("/")
        is_api, path = path.startswith("api/"), path.removeprefix("api/").removeprefix("models/")
        repository = next((name for name in self.repositories if f"{path}/".startswith(f"{name}/")), None)
        if repository is None:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif is_api:
            self._describe(request, repository, path.removeprefix(repository).strip("/"))
        else:
            self._send_file(request, repository, path.removeprefix(f"{repository}/resolve/").partition("/")[2])

    def _describe(self, request: BaseHTTPRequestHandler, repository: str, question: str) -> None:
        files = self._files(repository)
        entries: list[dict[str, Any]] = [
            {"type": "file", "path": name, "rfilename": name, "size": path.stat().st_size, "oid": _oid(path)}
            for name, path in files.items()
        ]
        name = repository.removeprefix("datasets/")
        info = {"id": name, "sha": self.commit(repository), "siblings": entries, "private": False, "tags": []}
        kind, _, rest = question.partition("/")
        body = unquote(request.rfile.read(int(request.headers.get("Content-Length") or 0)).decode())
        folders = [
            {"type": "directory", "path": path, "oid": repository, "size": 0}
            for path in sorted({name.rpartition("/")[0] for name in files} - {""})
        ]
        within = rest.partition("/")[2]
        answers = {
            "paths-info": [entry for entry in entries if entry["path"] in body],
            "tree": [entry for entry in entries + folders if entry["path"].startswith(f"{within}/" if within else "")],
        }
        content = json.dumps(answers.get(kind, info)).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _send_file(self, request: BaseHTTPRequestHandler, repository: str, name: str) -> None:
        path, gated = self._files(repository).get(name), repository in self.gated
        if path is None or gated:
            request.send_response(403 if gated else 404)
            request.send_header("X-Error-Code", "GatedRepo" if gated else "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content = path.read_bytes()
        start = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("ETag", f'"{_oid(path)}"')
        request.send_header("X-Repo-Commit", self.commit(repository))
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if request.command == "GET":
            self.downloads.append(f"{repository}/{name}")
            request.wfile.write(content[start : len(content) // 2 if name in self.broken else None])


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
