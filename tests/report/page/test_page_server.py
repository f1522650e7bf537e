"""The server of the review page: this machine alone, one page, and names of other sites are refused."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.lab.errors import UserError
from agent.report.page.serve import PageServer


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "events.jsonl").write_text("one\n")
    return tmp_path / "events.jsonl"


@pytest.fixture
def server(watched: Path) -> Iterator[PageServer]:
    def build(version: str) -> str:
        if "broken" in watched.read_text():
            raise UserError("events.jsonl is damaged")
        return f"<p>{version} of {watched.read_text()}</p>"

    with PageServer(0, [watched, watched.parent / "missing"], build) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: PageServer, path: str, host: str = "localhost:80") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode(), dict(response.headers)


def test_a_version_changes_with_a_watched_file_and_the_page_with_it(server: PageServer, watched: Path):
    status, page, headers = ask(server, "/")
    before = ask(server, "/version")[1]
    assert (status, page) == (200, f"<p>{before} of one\n</p>")
    assert headers["Cache-Control"] == "no-store"
    watched.write_text("one\ntwo\n")
    assert ask(server, "/version")[1] != before
    assert "two" in ask(server, "/")[1]


def test_only_this_machine_and_its_names_are_answered(server: PageServer):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", host="evil.example")[0] == 403
    assert ask(server, "/version", host="evil.example:80")[0] == 403
    assert ask(server, "/../../etc/passwd")[0] == 404


def test_a_study_that_is_damaged_is_said_and_comes_back(server: PageServer, watched: Path):
    watched.write_text("broken")
    assert ask(server, "/")[:2] == (503, "events.jsonl is damaged")
    watched.write_text("mended, whole")
    assert ask(server, "/")[0] == 200


def test_a_port_in_use_is_one_line(server: PageServer):
    with pytest.raises(UserError, match=r"port \d+ cannot be used .*: give another --port"):
        PageServer(server.server_address[1], [], str)
