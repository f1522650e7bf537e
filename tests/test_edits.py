"""SEARCH/REPLACE blocks: read in every usual form, applied all or none, refused with a reason that helps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.edits import Edit, EditError, apply, parse

BASELINE = (Path(__file__).parents[1] / "experiment.py").read_text()
FILE = """\
import torch

K = 16
RATE = 1e-3


class SAE:
    def encode(self, x):
        pre = x @ self.W
        return pre

    def decode(self, z):
        out = z @ self.V
        return out


def main():
    for step in range(3):
        loss = step
        loss.backward()
    finish()
"""


def block(search: str, replace: str, lengths: tuple[int, int, int] = (7, 7, 7)) -> str:
    opening, dividing, closing = lengths
    return f"{'<' * opening} SEARCH\n{search}{'=' * dividing}\n{replace}{'>' * closing} REPLACE\n"


def edit(search: str, replace: str, file: str | None = None) -> Edit:
    return Edit(search, replace, file)


def said(source: str, *edits: Edit) -> str:
    with pytest.raises(EditError) as error:
        apply(source, edits)
    return str(error.value)


def unreadable(answer: str) -> str:
    with pytest.raises(EditError) as error:
        parse(answer)
    return str(error.value)


# parse

ONE = block("K = 16\n", "K = 32\n")


@pytest.mark.parametrize(
    ("answer", "file"),
    [
        (ONE, None),
        (f"I double K.\n\n{ONE}\nThat is all.", None),
        (f"```python\n{ONE}```\n", None),
        (f"~~~~\n{ONE}~~~~", None),
        (f"experiment.py\n{ONE}", "experiment.py"),
        (f"experiment.py\n```python\n{ONE}```\n", "experiment.py"),
        (f"```python\nexperiment.py\n{ONE}```\n", "experiment.py"),
        (f"```python experiment.py\n{ONE}```\n", "experiment.py"),
        (f"```python:experiment.py\n{ONE}```\n", "experiment.py"),
        (f"**experiment.py**\n\n```\n{ONE}```\n", "experiment.py"),
        (f"### File: `./experiment.py`:\n{ONE}", "./experiment.py"),
        (f"agent/lab/training.py\n{ONE}", "agent/lab/training.py"),
        (f"It moves e.g.\n{ONE}", None),
        (f"Set it as torch.nn does\n{ONE}", None),
        (ONE.replace("\n", "\r\n"), None),
        (ONE.replace("SEARCH", "SEARCH ").replace("REPLACE", "REPLACE\t").replace("=\n", "=  \n"), None),
        ("<<<<<<< SEARCH>\nK = 16\n=======\nK = 32\n>>>>>>> REPLACE", None),
        (block("K = 16\n", "K = 32\n", (5, 9, 6)), None),
    ],
)
def test_one_block_is_read_in_every_usual_form(answer: str, file: str | None):
    assert parse(answer) == [edit("K = 16\n", "K = 32\n", file)]


def test_several_blocks_are_read_in_their_order():
    answer = f"First\n```\n{ONE}```\nthen\n\n" + block("a\n\tb\n", "") + block("é\n", "\n")
    assert parse(answer) == [edit("K = 16\n", "K = 32\n"), edit("a\n\tb\n", ""), edit("é\n", "\n")]


@pytest.mark.parametrize("answer", ["", "ALL_COMPLETED", f"```python\n{BASELINE}```", "A title\n=======\n"])
def test_an_answer_without_a_block_holds_no_edit(answer: str):
    assert parse(answer) == []
    assert "holds no edit" in said(FILE)


def test_a_line_of_the_file_that_looks_like_the_divider_is_told_from_it():
    heading = "Title\n=====\n"
    assert parse(block(heading, "Title\n")) == [edit(heading, "Title\n")]
    assert parse(block("a\n    =======\n", "b\n")) == [edit("a\n    =======\n", "b\n")]
    assert "several lines that may be its `=======`" in unreadable(block("Title\n=======\n", "Title\n"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("<<<<<<< SEARCH\na\n=======\nb\n", "line 1 of the answer opens has no `>>>>>>> REPLACE` before the answer's"),
        (f"<<<<<<< SEARCH\na\n=======\nb\n{ONE}", "before the `<<<<<<< SEARCH` in line 5"),
        ("<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "the block in lines 1 to 3 of the answer has no `=======`"),
        ("text\na\n=======\nb\n>>>>>>> REPLACE\n", "line 5 of the answer is `>>>>>>> REPLACE` without a SEARCH"),
        ("<<<< SEARCH\na\n====\nb\n>>>> REPLACE\n", "line 1 of the answer, `<<<< SEARCH`, is no marker"),
        (f"{ONE}<<<<<<< HEAD\na\n=======\nb\n>>>>>>> mine\n", "line 6 of the answer, `<<<<<<< HEAD`, is no marker"),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE```\n", "line 5 of the answer, `>>>>>>> REPLACE````, is no"),
    ],
)
def test_a_malformed_block_is_told(answer: str, words: str):
    assert words in unreadable(answer)


# apply


def test_blocks_apply_to_the_file_as_it_was_in_any_order():
    edits = [
        edit("K = 16\n", "K = 32\n"),
        edit("        return pre\n", "        pre = pre * 2\n        return pre\n"),
        edit("        loss.backward()\n", ""),
    ]
    edited = apply(FILE, edits)
    assert edited == apply(FILE, edits[::-1])
    assert edited == FILE.replace("K = 16", "K = 32").replace(
        "        return pre\n", "        pre = pre * 2\n        return pre\n"
    ).replace("        loss.backward()\n", "")


@pytest.mark.parametrize(
    "mangled",
    [
        lambda text: text.replace("\n        ", "\n").lstrip(),
        lambda text: "  " + text.replace("\n", "\n  "),
        lambda text: text.replace("    ", "\t"),
        lambda text: text.replace("\n", " \n").replace(" @ ", "@"),
        lambda text: "\n" + text + "\n\n",
        lambda text: text.replace("\n        return", "\n\n        return"),
        lambda text: text.replace("    ", "\u00a0   ").removesuffix("\n"),
    ],
)
def test_white_space_does_not_count_and_the_files_indentation_is_carried_over(mangled: Callable[[str], str]):
    search = "        out = z @ self.V\n        return out\n"
    replace = "        if self.V:\n            out = z * self.V\n        return out\n"
    edited = apply(FILE, [edit(mangled(search), mangled(replace))])
    assert edited.replace("\n\n        return", "\n        return").replace(" \n", "\n") == FILE.replace(
        search, replace
    )


def test_a_file_with_tabs_keeps_them():
    tabbed = FILE.replace("    ", "\t")
    edited = apply(tabbed, [edit("    pre = x @ self.W\n", "    if x:\n        pre = x @ self.W\n")])
    assert edited == tabbed.replace("\t\tpre = x @ self.W\n", "\t\tif x:\n\t\t\tpre = x @ self.W\n")


def test_equal_lines_go_before_similar_ones():
    source = "x = 1\ndef f():\n    x = 1\n"
    assert apply(source, [edit("    x = 1\n", "    x = 2\n")]) == "x = 1\ndef f():\n    x = 2\n"


def test_indentation_that_differs_from_line_to_line_is_not_guessed_at():
    assert "is not in experiment.py. The nearest lines are" in said(
        FILE, edit("for step in range(3):\nloss = step\n", "for step in range(4):\nloss = step\n")
    )


def test_elided_lines_stay_where_both_leave_them_out():
    edited = apply(FILE, [edit("class SAE:\n...\n        return out\n", "class TopK:\n...\n        return out + 1\n")])
    assert edited == FILE.replace("class SAE:", "class TopK:").replace("return out", "return out + 1")
    carried = apply(FILE, [edit("for step in range(3):\n  ...\nfinish()\n", "for step in []:\n  ...\nfinish()\n")])
    assert carried == FILE.replace("range(3)", "[]")
    ends = apply(FILE, [edit("# ... imports\nK = 16\n...\n", "# ... imports\nK = 32\n...\n")])
    assert ends == FILE.replace("K = 16", "K = 32")


def test_elided_lines_go_where_only_the_search_leaves_them_out():
    edited = apply(FILE, [edit("    def encode(self, x):\n        # ...\n        return pre\n", "    encode = None\n")])
    assert edited == FILE.replace(
        "    def encode(self, x):\n        pre = x @ self.W\n        return pre\n", "    encode = None\n"
    )


def test_an_ellipsis_in_the_file_is_a_line_like_others():
    source = "def f():\n    ...\n\ndef g():\n    ...\n"
    assert apply(source, [edit("def g():\n    ...\n", "def g():\n    pass\n")]) == source[:-8] + "    pass\n"


def test_line_endings_and_a_missing_last_one_stay():
    crlf = FILE.replace("\n", "\r\n")
    assert apply(crlf, [edit("K = 16\n", "K = 8\nL = 9\n")]) == crlf.replace("K = 16", "K = 8\r\nL = 9")
    assert apply("a\nb", [edit("b\n", "b\nc\n")]) == "a\nb\nc"
    assert apply("a\r\nb", [edit("b\n", "c\nd\n")]) == "a\r\nc\r\nd"
    assert apply("a\nb", [edit("a\nb\n", "")]) == ""
    assert apply("a\r\nb\nc\n", [edit("b\n", "d\n")]) == "a\r\nd\nc\n"
    assert apply("s = '\x0c\u2028é'\nb\n", [edit("b\n", "c\n")]) == "s = '\x0c\u2028é'\nc\n"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([edit("K = 17\n", "K = 32\n")], "its SEARCH is not in experiment.py. The nearest lines are\n"),
        ([edit("K = 17\n", "K = 32\n")], "\n    3 | K = 16\n"),
        ([edit("completely = 'other'\n", "")], "Nothing in it resembles these lines"),
        ([edit("\n", "a\n")], "its SEARCH is empty"),
        ([edit("", "a\n")], "its SEARCH is empty"),
        ([edit("K = 16\n", "K = 16\n")], "its REPLACE is the same as its SEARCH"),
        ([edit("K=16\n", "K = 16\n")], "it leaves line 3 of experiment.py as they are"),
        ([edit("K = 16\n", "", "agent/lab/run.py")], "it names agent/lab/run.py; only experiment.py may change"),
        ([edit("...\n        return out\n", "        return out\n")], "does not say where the lines left out begin"),
        ([edit("...\n", "# ...\n")], "does not say where the lines left out begin"),
        ([edit("K = 16\n", "K = 8\n# ... rest as before\n")], "leaves out lines with `...` that its SEARCH does not"),
        ([edit("K = 16\n...\n...\nfinish()\n", "K = 8\n...\nfinish()\n")], "not as many `...`"),
        ([edit("K = 16\nRATE = 1e-3\n", "K\n"), edit("RATE = 1e-3\n", "")], "blocks 1 and 2 of 2: both take in line 4"),
        ([edit("K = 16\n...\n    finish()\n", "K = 8\n"), edit("RATE = 1e-3\n", "")], "blocks 1 and 2 of 2: both"),
        ([edit("K = 16\n", "K = 8\n"), edit("K = 8\n", "K = 4\n")], "block 2 of 2: its SEARCH is not in"),
    ],
)  # fmt: skip
def test_what_cannot_apply_is_told(edits: list[Edit], words: str):
    assert words in said(FILE, *edits)


def test_blocks_that_undo_each_other_are_told():
    assert "the blocks together leave experiment.py as it is" in said("a\nb\n", edit("a\n", "a\nb\n"), edit("b\n", ""))


@pytest.mark.parametrize("search", ["a = 1\n", "a=1\n", "a = 1\n...\nb\n"])
def test_more_than_one_place_is_told_with_the_lines(search: str):
    message = said("a = 1\nc\na = 1\nb\n", edit(search, "d\n"))
    assert "matches more than one place, among them line" in message
    assert "    1 | a = 1\n" in message
    assert "    3 | a = 1\n" in message


def test_every_block_that_fails_is_told_and_none_is_applied():
    message = said(FILE, edit("K = 17\n", ""), edit("K = 16\n", "K = 8\n"), edit("RATE = 2\n", ""))
    assert "block 1 of 3: " in message
    assert "block 2 of 3: " not in message
    assert "block 3 of 3: " in message
    assert message.endswith("experiment.py is unchanged: no block was applied. Send all blocks again.")
