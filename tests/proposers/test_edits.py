"""SEARCH/REPLACE blocks: parsed in every usual form, applied all or none, refused with a message that helps."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.proposers.edits import Edit, EditError, apply, parse

BASELINE = (Path(__file__).parents[2] / "experiment.py").read_text()
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


def refusal(source: str, *edits: Edit) -> str:
    """Return the message with which the edits are refused."""
    with pytest.raises(EditError) as error:
        apply(source, edits)
    return str(error.value)


def parse_error(answer: str) -> str:
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
def test_one_block_is_parsed_in_every_usual_form(answer: str, file: str | None):
    assert parse(answer) == [edit("K = 16\n", "K = 32\n", file)]


def test_several_blocks_are_parsed_in_their_order():
    answer = f"First\n```\n{ONE}```\nthen\n\n" + block("a\n\tb\n", "") + block("é\n", "\n")
    assert parse(answer) == [edit("K = 16\n", "K = 32\n"), edit("a\n\tb\n", ""), edit("é\n", "\n")]


@pytest.mark.parametrize("answer", ["", "ALL_COMPLETED", f"```python\n{BASELINE}```", "A title\n=======\n"])
def test_an_answer_without_a_block_contains_no_edit(answer: str):
    assert parse(answer) == []
    assert "contains no edit" in refusal(FILE)


def test_a_line_of_the_file_that_looks_like_the_divider_is_not_taken_for_it():
    heading = "Title\n=====\n"
    assert parse(block(heading, "Title\n")) == [edit(heading, "Title\n")]
    assert parse(block("Title\n======\n", "=====\n", (9, 9, 5))) == [edit("Title\n======\n", "=====\n")]
    assert parse(block("a\n    =======\n", "b\n")) == [edit("a\n    =======\n", "b\n")]
    assert "several lines that may be its `=======`" in parse_error(block("Title\n=======\n", "Title\n"))
    assert "several lines that may be its `=======`" in parse_error(block(heading, "Title\n", (7, 6, 7)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<<<<<<< SEARCH\na\n=======\nb\n", "block 1 of the answer has no `>>>>>>> REPLACE` before the answer's end"),
        (f"<<<<<<< SEARCH\na\n=======\nb\n{ONE}", "block 1 of the answer has no `>>>>>>> REPLACE` before the next"),
        (f"{ONE}<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "block 2 of the answer has no `=======`"),
        ("text\na\n=======\nb\n>>>>>>> REPLACE\n", "block 1 of the answer ends in line 5 without `<<<<<<< SEARCH`"),
        ("<<<< SEARCH\na\n====\nb\n>>>> REPLACE\n", "line 1, `<<<< SEARCH`, is not a valid marker"),
        (f"{ONE}<<<<<<< HEAD\na\n=======\nb\n>>>>>>> mine\n", "line 6, `<<<<<<< HEAD`, is not a valid marker"),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE```\n", "line 5, `>>>>>>> REPLACE````, is not a valid marker"),
    ],
)
def test_a_malformed_block_is_refused_with_its_place(answer: str, message: str):
    assert message in parse_error(answer)


# apply


def test_blocks_apply_to_the_original_file_in_any_order():
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
def test_white_space_does_not_matter_and_new_lines_are_indented_as_the_file_is(mangled: Callable[[str], str]):
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


def test_identical_lines_are_preferred_to_similar_ones():
    source = "x = 1\ndef f():\n    x = 1\n"
    assert apply(source, [edit("    x = 1\n", "    x = 2\n")]) == "x = 1\ndef f():\n    x = 2\n"


def test_indentation_that_differs_from_line_to_line_is_refused():
    assert "is not in experiment.py. The nearest lines are" in refusal(
        FILE, edit("for step in range(3):\nloss = step\n", "for step in range(4):\nloss = step\n")
    )


@pytest.mark.parametrize("dots", ["...", "…", "...  # as before", "# ...", "    # ... the rest as before"])
def test_lines_left_out_with_dots_are_refused_with_their_place(dots: str):
    remedy = "leaves lines out (`...`): write all lines, or a smaller block for each place"
    for replace in (f"class TopK:\n{dots}\n        return out\n", ""):
        message = refusal(FILE, edit(f"class SAE:\n{dots}\n        return out\n", replace))
        assert f"line 2 of its SEARCH {remedy}" in message
    message = refusal(FILE, edit("K = 16\nRATE = 1e-3\n", f"K = 8\nRATE = 1e-3\n{dots}\n"))
    assert f"line 3 of its REPLACE {remedy}" in message


def test_an_ellipsis_in_the_file_is_a_line_like_others():
    source = "def f():\n    ...\n\ndef g():\n    ...\n"
    assert apply(source, [edit("def g():\n    ...\n", "def g():\n    pass\n")]) == source[:-8] + "    pass\n"
    assert apply(source, [edit("def g():\n    ...\n", "def h():\n    ...\n")]) == source.replace("g()", "h()")
    assert apply("a\n...\n", [edit("...\n", "b\n")]) == "a\nb\n"
    assert "matches more than one place" in refusal(source, edit("    ...\n", "    pass\n"))
    assert "line 2 of its SEARCH leaves lines out" in refusal(source + "    f()\n", edit("g():\n...\nf()\n", ""))


def test_line_endings_and_a_missing_last_one_are_kept():
    crlf = FILE.replace("\n", "\r\n")
    assert apply(crlf, [edit("K = 16\n", "K = 8\nL = 9\n")]) == crlf.replace("K = 16", "K = 8\r\nL = 9")
    assert apply("a\nb", [edit("b\n", "b\nc\n")]) == "a\nb\nc"
    assert apply("a\r\nb", [edit("b\n", "c\nd\n")]) == "a\r\nc\r\nd"
    assert apply("a\nb", [edit("a\nb\n", "")]) == ""
    assert apply("a\r\nb\nc\n", [edit("b\n", "d\n")]) == "a\r\nd\nc\n"
    assert apply("s = '\x0c\u2028é'\nb\n", [edit("b\n", "c\n")]) == "s = '\x0c\u2028é'\nc\n"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([edit("K = 17\n", "K = 32\n")], "its SEARCH is not in experiment.py. The nearest lines are\n"),
        ([edit("K = 17\n", "K = 32\n")], "\n    3 | K = 16\n"),
        ([edit("return out\n\nloss.step()\n", "")], "\n   20 |         loss.backward()\n"),
        ([edit("completely = 'other'\n", "")], "Nothing in it resembles these lines"),
        ([edit("\n", "a\n")], "its SEARCH is empty"),
        ([edit("", "a\n")], "its SEARCH is empty"),
        ([edit("K = 16\n", "K = 16\n")], "its REPLACE is the same as its SEARCH"),
        ([edit("K=16\n", "K = 16\n")], "it leaves line 3 of experiment.py unchanged"),
        ([edit("K = 16\n", "", "agent/lab/run.py")], "it names agent/lab/run.py; only experiment.py may change"),
        ([edit("K = 16\nRATE = 1e-3\n", "K\n"), edit("RATE = 1e-3\n", "")], "blocks 1 and 2 of 2: both contain line 4"),
        ([edit("K = 16\n", "K = 8\n"), edit("K = 8\n", "K = 4\n")], "block 2 of 2: its SEARCH is not in"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_apply_is_refused_with_the_reason(edits: list[Edit], message: str):
    assert message in refusal(FILE, *edits)


def test_blocks_that_undo_each_other_are_refused():
    assert "the blocks together leave experiment.py as it is" in refusal(
        "a\nb\n", edit("a\n", "a\nb\n"), edit("b\n", "")
    )


@pytest.mark.parametrize("search", ["a = 1\n", "a=1\n"])
def test_more_than_one_matching_place_is_refused_with_the_lines(search: str):
    message = refusal("a = 1\nc\na = 1\nb\n", edit(search, "d\n"))
    assert "matches more than one place, among them line" in message
    assert "    1 | a = 1\n" in message
    assert "    3 | a = 1\n" in message


def test_a_line_quoted_without_its_comment_is_shown_in_full():
    assert "\n   29 | K = 16  # latents active per token, on average over a batch\n" in refusal(
        BASELINE, edit("K = 16", "")
    )


def test_the_same_lines_at_two_depths_are_two_places():
    assert "more than one place, among them line 1 and line 3" in refusal(
        "    a = 1\n\n  a = 1\n", edit("a=1\n", "b\n")
    )


def test_every_block_that_fails_is_named_and_none_is_applied():
    message = refusal(FILE, edit("K = 17\n", ""), edit("K = 16\n", "K = 8\n"), edit("RATE = 2\n", ""))
    assert "block 1 of 3: " in message
    assert "block 2 of 3: " not in message
    assert "block 3 of 3: " in message
    assert message.endswith("experiment.py is unchanged: no block was applied. Send all blocks again.")


# For any file and any edits

PROPERTY = settings(max_examples=150, deadline=None)
MARKER = re.compile(r"\s*[<>]{3}|\s*=+\s*|\s*(#\s*)?(\.\.\.|…).*")
CODE = st.integers(0, 3).flatmap(lambda depth: st.sampled_from("abc").map(lambda name: "    " * depth + f"{name} = 1"))
ANY = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
LINE = st.one_of(CODE, st.just(""), ANY).filter(lambda line: not MARKER.match(line))
LINES = st.lists(LINE, max_size=4)
FILES = st.lists(LINE, min_size=1, max_size=20)  # some lines stand more than once
ENDING = st.sampled_from(["\n", "\r\n"])


def text(lines: Sequence[str], ending: str = "\n") -> str:
    return "".join(line + ending for line in lines)


@st.composite
def changes(draw: st.DrawFn, lines: list[str]) -> list[tuple[int, int, list[str]]]:
    """Spans of lines that do not overlap, and what they become."""
    cuts = sorted(draw(st.sets(st.integers(0, len(lines)), min_size=2, max_size=7)))
    spans = draw(st.lists(st.sampled_from(list(pairwise(cuts))), min_size=1, max_size=4, unique=True))
    return [(start, stop, draw(LINES)) for start, stop in sorted(spans)]


def meant(lines: list[str], changes: list[tuple[int, int, list[str]]]) -> list[str]:
    for start, stop, new in reversed(changes):
        lines = [*lines[:start], *new, *lines[stop:]]
    return lines


def places(lines: list[str], wanted: list[str]) -> int:
    return sum(lines[at : at + len(wanted)] == wanted for at in range(len(lines)))


@PROPERTY
@given(st.data(), FILES, ENDING)
def test_the_file_becomes_exactly_what_was_meant_or_nothing_is_applied(
    data: st.DataObject, lines: list[str], ending: str
):
    spans = data.draw(changes(lines))
    edits = [edit(text(lines[start:stop]), text(new)) for start, stop, new in spans]
    shuffled = data.draw(st.permutations(edits))
    source, wanted = text(lines, ending), text(meant(lines, spans), ending)
    can_apply = wanted != source and all(
        any(map(str.strip, lines[start:stop])) and places(lines, lines[start:stop]) == 1 and lines[start:stop] != new
        for start, stop, new in spans
    )
    if can_apply:
        assert apply(source, shuffled) == wanted
        if len(lines) > 1 and lines[-1]:
            assert apply(source.removesuffix(ending), shuffled) == wanted.removesuffix(ending)
    else:
        refusal(source, *shuffled)


@PROPERTY
@given(st.data(), FILES, ENDING)
def test_blocks_survive_being_written_in_an_answer(data: st.DataObject, lines: list[str], ending: str):
    edits = [edit(text(lines[start:stop]), text(new)) for start, stop, new in data.draw(changes(lines))]
    lengths = st.tuples(*[st.integers(5, 9)] * 3)
    blocks = [block(one.search, one.replace, data.draw(lengths)) for one in edits]
    fenced = data.draw(st.booleans())
    prose = data.draw(st.lists(st.sampled_from(["", "I change this:", "A title\n=======", "x < y", "```\nnot\n```"])))
    answer = "\n".join(prose + [f"```python\n{one}```" if fenced else one for one in blocks])
    assert parse(answer.replace("\n", ending)) == edits


@st.composite
def programs(draw: st.DrawFn) -> list[str]:
    """Lines of code, no two alike, indented as Python is, with blank lines between."""
    depths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=15))
    lines = [["    " * depth + f"v{number} = {number} + f(x)"] for number, depth in enumerate(depths)]
    return [line for one in lines for line in one + [""] * draw(st.integers(0, 2))]


def filled(lines: list[str]) -> list[int]:
    return [at for at, line in enumerate(lines) if line]


@st.composite
def manglings(draw: st.DrawFn, indents: list[int]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """How an answer's indentation differs from the file's, and what else differs in its SEARCH."""
    shift = draw(st.integers(-min(indents), 6))
    tabs, spaced, trailing = (
        draw(st.booleans()),
        draw(st.sampled_from(["", " ", "  "])),
        draw(st.sampled_from(["", " "])),
    )

    def indented(line: str) -> str:
        columns = len(line) - len(line.lstrip()) + shift
        indent = "\t" * (columns // 4) + " " * (columns % 4) if tabs else " " * columns
        return indent + line.lstrip() if line.strip() else line

    return indented, lambda line: indented(line).replace(" + ", f"{spaced}+{spaced}") + trailing


@PROPERTY
@given(st.data(), programs(), ENDING)
def test_white_space_in_search_does_not_change_the_result(data: st.DataObject, lines: list[str], ending: str):
    start, last = sorted(data.draw(st.tuples(*[st.sampled_from(filled(lines))] * 2)))
    stop = last + 1
    new = data.draw(st.lists(CODE, max_size=4))
    indents = [len(line) - len(line.lstrip()) for line in [*lines[start:stop], *new] if line]
    indented, mangled = data.draw(manglings(indents))
    search = [mangled(line) for line in lines[start:stop] if line or data.draw(st.booleans())]
    assume(search != lines[start:stop])
    around = data.draw(st.integers(0, 1)) * [""]
    replaced = [*around, *map(indented, new), *around] if new else []
    wanted = text(meant(lines, [(start, stop, new)]), ending)
    assert apply(text(lines, ending), [edit(text([*around, *search, *around]), text(replaced))]) == wanted


@PROPERTY
@given(st.data(), programs())
def test_lines_left_out_are_never_guessed(data: st.DataObject, lines: list[str]):
    lines = ["first = 1", *lines]
    first, last = sorted(data.draw(st.sets(st.sampled_from(filled(lines)), min_size=2, max_size=2)))
    dots = data.draw(st.sampled_from(["...", "    # ... as before ...", "…"]))
    search, message = text([lines[first], dots, lines[last]]), "line 2 of its SEARCH leaves lines out"
    assert message in refusal(text(lines), edit(search, text(["x", dots, "y", "z"])))
    assert message in refusal(text(lines), edit(search, "x\n"))
    quoted = [lines[first], dots, *lines[first + 1 : last + 1]]
    present = [*lines[: first + 1], dots, *lines[first + 1 :]]
    assert apply(text(present), [edit(text(quoted), text(["x", dots]))]) == text(
        meant(present, [(first, last + 2, ["x", dots])])
    )


SOME = st.lists(st.sampled_from(["a", "  a", "b", "\tb", "", "...", "# ... rest"]), max_size=5)


@PROPERTY
@given(SOME.map(text), st.lists(st.tuples(SOME.map(text), SOME.map(text)), max_size=3))
def test_no_edit_is_silently_ignored(source: str, pairs: list[tuple[str, str]]):
    edits = [edit(*pair) for pair in pairs]
    try:
        edited = apply(source, edits)
    except EditError:
        return
    assert edited != source
    for one in edits:
        alone = apply(source, [one])
        assert alone != source
    nowhere = edit("zzz\n", "a\n")
    refusal(source, *edits, nowhere)


PIECES = ["<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "<<<< SEARCH", "```", "experiment.py", "a", "...", ""]


@PROPERTY
@given(st.lists(st.sampled_from(PIECES), max_size=10))
def test_every_block_of_an_answer_is_parsed_or_the_answer_is_refused(pieces: list[str]):
    try:
        edits = parse(text(pieces))
    except EditError:
        return
    assert len(edits) == pieces.count("<<<<<<< SEARCH") == pieces.count(">>>>>>> REPLACE")
    assert "<<<< SEARCH" not in pieces
