"""Documents of the user's own files: whatever is a text is read, whatever is not is named in one line."""

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from agent.lab import text_files
from agent.lab.errors import UserError

DOCUMENTS = ["The first document.", "Ein zweites, mit Umlauten: äöü.", "第三篇文章没有空格", "четвёртый\nв две строки"]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": d, "id": 1}) + "\n" for d in documents))
    return path


def write_parquet(path: Path, documents: list[str], column: str = "text") -> Path:
    parquet.write_table(pyarrow.table({column: documents}), path)
    return path


def read(path: Path) -> list[str]:
    return [document.strip() for document in text_files.documents(path) if document.strip()]


def test_every_format_gives_the_same_documents(tmp_path: Path):
    files = [
        write_jsonl(tmp_path / "a.jsonl", DOCUMENTS),
        write_parquet(tmp_path / "b.parquet", DOCUMENTS),
        tmp_path / "c.txt",
    ]
    files[2].write_text("\n\n".join(DOCUMENTS))
    for file in files:
        assert read(file) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"one\ntwo\nthree", ["one", "two", "three"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"a\r\nb\r\n\r\nc\r\n", ["a\nb", "c"]),
        (b"a\n \t\nb\n\n\n\nc", ["a", "b", "c"]),
        (b"\xef\xbb\xbfwith a mark of the byte order", ["with a mark of the byte order"]),
        (b"no line ends here at all", ["no line ends here at all"]),
        (b"\n\n \n", []),
    ],
)
def test_documents_of_a_txt_file_are_divided_by_blank_lines_or_else_by_lines(
    tmp_path: Path, content: bytes, documents: list[str]
):
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt") == documents


def test_one_huge_line_is_divided_at_spaces_and_nothing_of_it_is_lost(tmp_path: Path):
    words = [f"word{number}" for number in range(300_000)]  # some 3 MB
    (tmp_path / "a.txt").write_text(" ".join(words))
    pieces = read(tmp_path / "a.txt")
    assert max(map(len, pieces)) <= text_files.LONGEST_PIECE
    assert " ".join(pieces).split() == words


def test_a_paragraph_across_the_pieces_in_which_a_file_is_read_stays_whole(tmp_path: Path):
    documents = [f"document {number} " + "x" * (number % 97) for number in range(40_000)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    assert read(tmp_path / "a.txt") == [d.strip() for d in documents]


def test_files_of_a_folder_are_read_in_turn(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [f"a{number}" for number in range(50)])
    (tmp_path / "deeper").mkdir()
    write_jsonl(tmp_path / "deeper/b.jsonl", [f"b{number}" for number in range(50)])
    (tmp_path / ".hidden.txt").write_text("not this")
    (tmp_path / "README.md").write_text("nor this")
    first = read(tmp_path)
    assert {document[0] for document in first[:2]} == {"a", "b"}
    assert len(first) == 100


def test_the_identity_is_of_the_content_and_not_of_the_place(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "a.jsonl", DOCUMENTS)
    assert text_files.identity(tmp_path / "one") == text_files.identity(tmp_path / "two")
    write_jsonl(tmp_path / "two/a.jsonl", DOCUMENTS[:3])
    assert text_files.identity(tmp_path / "one") != text_files.identity(tmp_path / "two")


BAD = {
    "not UTF-8": ("a.txt", "Grüße".encode("latin-1"), "is not UTF-8"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "is not UTF-8"),
    "binary": ("a.txt", b"\x7fELF\x00\x00\x01", "is binary"),
    "no JSON": ("a.jsonl", b'{"text": "one"}\n{"text": ', "line 2 is not JSON"),
    "JSON in latin-1": ("a.jsonl", '{"text": "ü"}\n'.encode("latin-1"), "is not UTF-8"),
    "a list": ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
    "no text column": ("a.jsonl", b'{"title": "t", "body": "b"}\n', "has no column text, but title, body"),
    "a number": ("a.jsonl", b'{"text": 7}\n', "the field text is int, not text"),
    "no parquet": ("a.parquet", b"PAR1 is cut short", "is no whole parquet file"),
    "another suffix": ("a.pdf", b"%PDF", "is not a .txt, .jsonl or .parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_named_in_one_line(tmp_path: Path, name: str):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(text_files.documents(tmp_path / file))
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(DOCUMENTS).dictionary_encode(),
        pyarrow.array(DOCUMENTS, pyarrow.large_string()),
        pyarrow.array(DOCUMENTS, pyarrow.string_view()),
    ],
    ids=["categories", "large", "views"],
)
def test_a_column_of_text_is_read_however_it_is_stored(tmp_path: Path, column: pyarrow.Array):
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == DOCUMENTS


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path):
    write_jsonl(tmp_path / "A.JSONL", DOCUMENTS)
    (tmp_path / "B.Txt").write_text("more")
    assert read(tmp_path / "A.JSONL") == DOCUMENTS
    assert set(read(tmp_path)) == {*DOCUMENTS, "more"}


def test_a_parquet_file_without_a_column_of_text_is_named(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", DOCUMENTS, column="content")
    with pytest.raises(UserError, match="has no column text, but content"):
        read(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="the column text is int64, not text"):
        read(tmp_path / "b.parquet")


def test_a_parquet_file_that_was_cut_short_is_not_taken_for_whole(tmp_path: Path):
    whole = write_parquet(tmp_path / "a.parquet", DOCUMENTS * 1000).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is no whole parquet file"):
        read(tmp_path / "a.parquet")


def test_a_line_too_long_for_memory_is_refused(tmp_path: Path):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(text_files.LONGEST_LINE + 10)  # sparse: it takes no room on the disk
    with pytest.raises(UserError, match="line 1 is longer than 64 MiB"):
        read(tmp_path / "a.jsonl")


def test_a_folder_without_text_and_a_path_without_anything_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no \.txt, \.jsonl or \.parquet file"):
        read(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nothing")


def test_a_part_of_a_folder_that_cannot_be_read_is_not_left_out_silently(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    (tmp_path / "b.txt").symlink_to("gone.txt")
    with pytest.raises(UserError, match=r"b\.txt is no file, or a link to one that is gone"):
        read(tmp_path)
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt is no file"):
        read(tmp_path)
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        read(tmp_path / "b.txt")
    (tmp_path / "b.txt").unlink()
    (tmp_path / "locked").mkdir(mode=0)
    if os.geteuid():  # root may read everything
        with pytest.raises(UserError, match=r"locked cannot be read \(Permission denied\)"):
            read(tmp_path)
    (tmp_path / "locked").chmod(0o700)


def test_a_link_that_leads_in_a_circle_is_not_followed(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    (tmp_path / "circle").symlink_to(".")
    assert read(tmp_path) == DOCUMENTS
