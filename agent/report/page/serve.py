"""A local server of the review page, which loads itself again while its studies run."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agent.lab.errors import UserError

HOSTS = ("127.0.0.1", "localhost")  # a page of another site that points its own name here is refused


class PageServer(ThreadingHTTPServer):
    """Serve what `build` makes of a version, on this machine alone; `watched` are the files that make a new version."""

    daemon_threads = True

    def __init__(self, port: int, watched: Sequence[Path], build: Callable[[str], str]) -> None:
        """Raise UserError if the port cannot be had."""
        self._watched, self._build = watched, build
        self._page: tuple[str, bytes] = ("", b"")
        self._building = threading.Lock()
        try:
            super().__init__((HOSTS[0], port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be used ({error}): give another --port, or leave it out") from None

    @property
    def address(self) -> str:
        """Return the URL of the page."""
        return f"http://{HOSTS[0]}:{self.server_address[1]}/"

    def version(self) -> str:
        """Return 16 hex digits that change when a watched file does."""
        digest = hashlib.sha256()
        for path in self._watched:
            with suppress(OSError):
                status = path.stat()
                digest.update(f"{path} {status.st_mtime_ns} {status.st_size}\n".encode())
        return digest.hexdigest()[:16]

    def page(self) -> bytes:
        """Return the page of the version that is there now; several requests wait for one build."""
        with self._building:
            version = self.version()
            if self._page[0] != version:
                self._page = version, self._build(version).encode()
            return self._page[1]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in HOSTS:
            return self._send(403, "text/plain", b"ask for 127.0.0.1 or localhost")
        match self.path.partition("?")[0]:
            case "/":
                return self._send_page()
            case "/version":
                return self._send(200, "text/plain", self.server.version().encode())
        return self._send(404, "text/plain", b"there is one page here, at /")

    def _send_page(self) -> None:
        try:
            page = self.server.page()
        except UserError as error:  # a study that is moved or damaged while it is shown
            return self._send(503, "text/plain", str(error).encode())
        return self._send(200, "text/html", page)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: a page asks for its version every second or two."""
