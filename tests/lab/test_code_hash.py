"""The lab's hash: it changes with code that may give other figures, and not with the wording of the same code."""

import time
from pathlib import Path

import pytest

from agent.lab import code_hash
from agent.lab.code_hash import lab_hash

CODE = '''"""A module."""


def mean(values):
    """The mean."""
    if not values:
        raise ValueError("nothing to average")
    return sum(values) / len(values)  # of a list
'''


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "figures.py").write_text(CODE)
    (tmp_path / "progress.py").write_text("print('working')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "The module of means."),
        ('    """The mean."""\n', ""),
        ("  # of a list", ""),
        ("nothing to average", "give at least one value"),
        ("sum(values) / len(values)", "(sum(values)\n            / len(values))"),
    ],
)
def test_other_words_for_the_same_code_keep_every_baseline(lab: Path, old: str, new: str):
    before = lab_hash(lab)
    assert CODE.count(old) == 1
    (lab / "figures.py").write_text(CODE.replace(old, new))
    assert lab_hash(lab) == before


@pytest.mark.parametrize(
    ("old", "new"), [("len(values)  ", "len(values) + 1  "), ("ValueError", "LookupError"), ("mean(", "average(")]
)
def test_other_code_is_another_lab(lab: Path, old: str, new: str):
    before = lab_hash(lab)
    assert old in CODE
    (lab / "figures.py").write_text(CODE.replace(old, new))
    assert lab_hash(lab) != before


def test_a_new_or_renamed_file_is_another_lab(lab: Path):
    before = lab_hash(lab)
    (lab / "more.py").write_text("x = 1\n")
    added = lab_hash(lab)
    (lab / "more.py").rename(lab / "other.py")
    assert len({before, added, lab_hash(lab)}) == 3


def test_files_of_messages_alone_are_left_out(lab: Path):
    before = lab_hash(lab)
    (lab / "progress.py").write_text("print('still working')\n")
    assert lab_hash(lab) == before


def test_every_file_that_is_left_out_exists():
    folder = Path(code_hash.__file__).parent
    assert [name for name in code_hash.WITHOUT_FIGURES if not (folder / name).is_file()] == []


def test_hashing_the_real_lab_is_quick():
    start = time.monotonic()
    assert lab_hash() == lab_hash()
    assert time.monotonic() - start < 10
