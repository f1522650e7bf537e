"""Files that several processes share: written whole or not at all, removed without following links."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.lab.files import (
    BadFile,
    atomic_path,
    open_plain,
    read_plain,
    read_plain_text,
    remove,
    remove_unless_plain,
    write_atomically,
)


def test_a_written_file_has_its_content_and_nothing_is_left_beside_it(tmp_path: Path):
    write_atomically(tmp_path / "text", "µ\n")
    write_atomically(tmp_path / "bytes", b"\xff")
    write_atomically(tmp_path / "text", "µ and more\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "text": "µ and more\n".encode(),
        "bytes": b"\xff",
    }


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "results"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["results"]
    assert path.read_text() == "old"


def test_a_folder_appears_whole(tmp_path: Path):
    with atomic_path(tmp_path / "world") as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "inner/file").write_text("x")
        assert not (tmp_path / "world").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert (tmp_path / "world/inner/file").read_text() == "x"


@pytest.mark.timeout(10)
def test_links_and_pipes_in_a_copied_folder_are_neither_followed_nor_waited_for(tmp_path: Path):
    with atomic_path(tmp_path / "copy") as partial:
        partial.mkdir()
        (partial / "link").symlink_to("nowhere")
        os.mkfifo(partial / "pipe")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"link", "pipe"}


def test_a_planted_link_is_not_written_through(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "results.partial").symlink_to(victim)
    (tmp_path / "results").symlink_to(victim)
    write_atomically(tmp_path / "results", "new")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "results").is_symlink()


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from agent.lab.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as partial: partial.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "figure.png")], check=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["half"]
    write_atomically(tmp_path / "figure.png", "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("figure.png", "whole")]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder").is_dir()
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")  # what is already gone is no error
    assert not list(tmp_path.iterdir())


PLANTED = {
    "pipe": lambda path: os.mkfifo(path),
    "link": lambda path: path.symlink_to(__file__),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "directory": lambda path: path.mkdir(),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("mode", ["rb", "r+b", "ab", "a+b"])
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str, mode: str):
    path = tmp_path / "log"
    PLANTED[kind](path)
    with pytest.raises(BadFile, match=r"log is not a regular file and not read: remove it, or put back what was there"):
        open_plain(path, mode)
    remove_unless_plain(path)
    assert not os.path.lexists(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "log"
    with pytest.raises(FileNotFoundError):
        read_plain(path, 5)
    path.write_bytes(b"five\xff")
    assert read_plain(path, 5) == b"five\xff"
    with pytest.raises(BadFile, match="log is not UTF-8 text"):
        read_plain_text(path)
    with path.open("ab") as file:
        file.truncate(10**13)
    with pytest.raises(BadFile, match="log is larger than 2 MiB and not read"):
        read_plain(path, 2 * 2**20)
    remove_unless_plain(path)
    assert path.exists()


def test_a_file_with_another_name_is_refused_where_it_must_have_one(tmp_path: Path):
    (tmp_path / "key").write_text("secret")
    (tmp_path / "log").hardlink_to(tmp_path / "key")
    with pytest.raises(BadFile, match="log is not a regular file"):
        open_plain(tmp_path / "log", only_name=True)
