"""The documents of a user's own files: .txt, .jsonl and .parquet, read in pieces, however large they are.

A line of a .jsonl file and a row of a .parquet file is a document, in the field `text`. In a .txt file documents are
divided by blank lines or, where its first MiB has none, by the ends of lines; what is longer than LONGEST_PIECE without
such a division is divided at a space.
"""

import hashlib
import json
import os
import random
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.lab.errors import UserError
from agent.lab.files import MIB

SUFFIXES = (".txt", ".jsonl", ".parquet")
FIELD = "text"  # of a line or a row
LONGEST_LINE = 64 * MIB  # of a .jsonl file, in bytes
LONGEST_PIECE = 10_000  # characters of a document of a .txt file
OPEN_FILES = 16  # that documents are taken from in turn
ORDER_SEED = 0
ROWS = 256  # of a .parquet file, read at once
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
LINE_END = re.compile(r"\n")


def find_files(path: Path) -> list[Path]:
    """Return the files of text at a path, a file or a directory with all below it. Raises UserError if there are none.

    Hidden files are left out.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path} is not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file: give one, or a folder")
        return [path]
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {what}: give a {', '.join(SUFFIXES)} file, a folder of them, or a hub dataset, OWNER/NAME"
        )
    names = sorted(file.relative_to(path) for file in _below(path) if file.suffix.lower() in SUFFIXES)
    if not names:
        raise UserError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file: give another folder")
    for name in names:
        if not (path / name).is_file():
            raise UserError(f"{path / name} is no file, or a link to one that is gone: mend that, or leave it out")
    return [path / name for name in names]


def _below(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder and those below it, but for other folders and what is hidden. Raises UserError."""

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename), error)

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def identity(path: Path) -> str:
    """Return a hash of the names and contents of the files at a path, 16 hex digits. Raises UserError."""
    digest = hashlib.sha256()
    for file in find_files(path):
        digest.update(f"{file.name if file == path else file.relative_to(path).as_posix()}\0".encode())
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise _unreadable(file, error) from None
    return digest.hexdigest()[:16]


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of the files at a path, one of each file in turn, so that no file crowds out another.

    Raises UserError for a file that cannot be read as text, with its name.
    """
    files = find_files(path)
    random.Random(ORDER_SEED).shuffle(files)
    waiting, readers = deque(map(_read, files)), deque[Iterator[str]]()
    while waiting or readers:
        while waiting and len(readers) < OPEN_FILES:
            readers.append(waiting.popleft())
        reader = readers.popleft()
        for document in reader:
            yield document
            readers.append(reader)
            break


def _read(file: Path) -> Iterator[str]:
    read = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[file.suffix.lower()]
    try:
        yield from read(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}): unpack it, or convert it with iconv") from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read ({error.strerror or error}): mend that, or leave it out")


def _read_txt(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as opened:
        rest = opened.read(MIB)
        division = BLANK_LINE if BLANK_LINE.search(rest) else LINE_END
        while more := opened.read(MIB):
            _check_no_binary(file, rest)
            *whole, rest = division.split(rest)
            yield from _cut(whole)
            while len(rest) > LONGEST_PIECE:
                piece, rest = _first_piece(rest)
                yield piece
            rest += more
        _check_no_binary(file, rest)
        yield from _cut(division.split(rest))


def _check_no_binary(file: Path, text: str) -> None:
    if "\0" in text:
        raise UserError(f"{file} is binary (it holds a null byte): give text, or leave it out")


def _cut(stretches: Iterable[str]) -> Iterator[str]:
    for rest in stretches:
        while len(rest) > LONGEST_PIECE:
            piece, rest = _first_piece(rest)
            yield piece
        yield rest


def _first_piece(text: str) -> tuple[str, str]:
    """Return a piece of at most LONGEST_PIECE characters, up to the last white space in it, and the rest."""
    last = max((text.rfind(space, 1, LONGEST_PIECE) for space in " \n\t"), default=-1)
    end = last if last > 0 else LONGEST_PIECE
    return text[:end], text[end:]


def _read_jsonl(file: Path) -> Iterator[str]:
    with file.open("rb") as opened:
        number = 0
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(f"{file} line {number} is longer than {LONGEST_LINE // MIB} MiB: divide it")
            if line.strip():
                yield _field(json_object(line, f"{file} line {number}"), f"{file} line {number}")


def json_object(line: bytes, place: str) -> object:
    """Parse a line of JSON. Raises UserError, with the place; UnicodeDecodeError."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): give an object with the field {FIELD} on each line") from None


def _field(record: object, place: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{place} is no JSON object: give one with the field {FIELD} on each line")
    if FIELD not in record:
        raise no_text_column(place, list(record))
    document = record[FIELD]
    if document is not None and not isinstance(document, str):
        raise UserError(f"{place}: the field {FIELD} is {type(document).__name__}, not text")
    return document or ""


def no_text_column(place: str, columns: list[str]) -> UserError:
    """Return the error of a source whose documents have no field `text`."""
    return UserError(
        f"{place} has no column {FIELD}, but {', '.join(columns[:8]) or 'none at all'}: rename the right one"
    )


def _read_parquet(file: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            schema = opened.schema_arrow
            if FIELD not in schema.names:
                raise no_text_column(str(file), schema.names)
            kind, types = schema.field(FIELD).type, pyarrow.types
            values = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)):
                raise UserError(f"{file}: the column {FIELD} is {kind}, not text")
            for batch in opened.iter_batches(batch_size=ROWS, columns=[FIELD]):
                yield from (document or "" for document in batch.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{file} is no whole parquet file ({' '.join(str(error).split())[:150]}): fetch or write it again"
        ) from None
