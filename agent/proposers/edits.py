"""Parse SEARCH/REPLACE blocks in a language model's answer, and apply all of them to a file or none.

    <<<<<<< SEARCH
    lines as they stand in the file
    =======
    the lines that replace them
    >>>>>>> REPLACE

Every block is matched against the original file, so the order of the blocks does not matter.
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import PurePosixPath

OPEN = re.compile(r"\s*<{5,9} ?SEARCH[>:]?\s*", re.I)
DIVIDE = re.compile(r"\s*={5,9}\s*")
CLOSE = re.compile(r"\s*>{5,9} ?REPLACE:?\s*", re.I)
MALFORMED = re.compile(r"\s*(<{5}|>{5}|[<>]{3,}\s*(SEARCH|REPLACE)\b)", re.I)
FORM = "a block is a line `<<<<<<< SEARCH`, lines of the file, a line `=======`, new lines, a line `>>>>>>> REPLACE`"

HUNK = re.compile(r"@@.*@@")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
FILE = re.compile(
    r"[^\w./]*(?:\w+[^\w./]+){0,2}([\w./][\w./-]*\.(?:py|j2|ya?ml|toml|jsonl?|txt|md|sh|cfg|ini))\W*", re.I
)

ELISION = re.compile(r"\s*(\.\.\.|…)\s*(#.*)?|\s*#\s*(\.\.\.|…).*")  # `...`, `# ... the rest as before`
TAB = 4  # columns

MIN_OVERLAP = 0.4  # share of the words in SEARCH, below which the nearest lines are no help
CONTEXT = 2  # lines shown around the nearest ones
MAX_SHOWN = 40  # lines


class EditError(ValueError):
    """An answer whose blocks cannot be parsed or applied. The message is for the model: what is wrong, what to do."""


@dataclass(frozen=True)
class Edit:
    """One block: the lines to replace and the lines to put there, each ended by a newline."""

    search: str
    replace: str
    file: str | None


@dataclass(frozen=True)
class _Match:
    """Lines `start` to `stop` (exclusive), and how many columns deeper the file indents them; None if identical."""

    start: int
    stop: int
    shift: int | None


@dataclass(frozen=True)
class _Change:
    """New text for lines `start` to `stop` (exclusive)."""

    start: int
    stop: int
    text: str


def parse(answer: str) -> list[Edit]:
    """Return the blocks of an answer in their order. Raise EditError if one is malformed."""
    lines, opened, edits = _lines(answer), None, []
    for at, line in enumerate(lines):
        block = f"block {len(edits) + 1} of the answer"
        if OPEN.fullmatch(line):
            if opened is not None:
                raise EditError(f"{block} has no `>>>>>>> REPLACE` before the next SEARCH, in line {at + 1}: {FORM}")
            opened = at
        elif CLOSE.fullmatch(line):
            if opened is None:
                raise EditError(f"{block} ends in line {at + 1} without `<<<<<<< SEARCH` before: {FORM}")
            search, replace = _without_signs(*_halves(lines[opened:at], block))
            edits.append(Edit(_text(search, "\n"), _text(replace, "\n"), _file_name(lines[:opened])))
            opened = None
        elif MALFORMED.match(line):
            raise EditError(f"{block}: line {at + 1}, `{line.strip()}`, is not a valid marker: {FORM}")
    if opened is not None:
        raise EditError(f"{block} has no `>>>>>>> REPLACE` before the answer's end: {FORM}")
    return edits or list(_hunks(lines))


def _hunks(lines: list[str]) -> Iterator[Edit]:
    """Yield the hunks of a unified diff as edits; the numbers of its lines are not used."""
    starts = [at for at, line in enumerate(lines) if HUNK.match(line)]
    for start in starts:
        body = list(itertools.takewhile(lambda line: line[:1] in ("", " ", "+", "-"), lines[start + 1 :]))
        while body and not body[-1]:
            body.pop()
        search, replace = ([line[1:] for line in body if line[:1] != sign] for sign in "+-")
        if search and search != replace:
            yield Edit(_text(search, "\n"), _text(replace, "\n"), None)


def apply(source: str, edits: Sequence[Edit], file: str = "experiment.py") -> str:
    """Return the source with every edit made. Line endings, and a missing last one, stay as they are.

    Raise EditError, and apply nothing, if a block names another file, leaves lines out, matches no lines of the source
    or more than one place, changes nothing, or overlaps another block.
    """
    if not edits:
        raise EditError(f"the answer contains no edit: {FORM}")
    raw, changes, problems = _raw(source), [], []
    if unended := bool(source) and not _ending(source):
        raw[-1] += _ending(raw[0]) or "\n"
    for number, edit in enumerate(edits, 1):
        try:
            changes.append((_change(raw, edit, file), number))
        except EditError as error:
            problems.append(f"block {number} of {len(edits)}: {error}")
    changes.sort(key=lambda item: item[0].start)
    for (change, number), (other, other_number) in itertools.pairwise(changes):
        if other.start < change.stop:
            one, two = sorted((number, other_number))
            remedy = "merge them into one block, or let them share no line"
            problems.append(f"blocks {one} and {two} of {len(edits)}: both contain line {other.start + 1}: {remedy}")
    if problems:
        raise EditError("\n\n".join([*problems, f"{file} is unchanged: no block was applied. Send all blocks again."]))
    parts, at = [], 0
    for change, _ in changes:
        parts += [*raw[at : change.start], change.text]
        at = change.stop
    edited = "".join([*parts, *raw[at:]])
    if unended:
        edited = edited.removesuffix(_ending(edited))
    if edited == source:
        raise EditError(f"the blocks together leave {file} as it is: change something")
    return edited


def _without_signs(search: list[str], replace: list[str]) -> tuple[list[str], list[str]]:
    """Take off the - and + of a diff, if each line of a block has one or a space and both halves have some."""
    for lines, sign in ((search, "-"), (replace, "+")):
        if not any(line.startswith(sign) for line in lines) or any(line[:1] not in ("", " ", sign) for line in lines):
            return search, replace
    return [line[1:] for line in search], [line[1:] for line in replace]


def _raw(text: str) -> list[str]:
    r"""Split into lines with their endings: only \n, \r\n and \r end a line, unlike in `str.splitlines`."""
    return list(io.StringIO(text, newline=""))


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r\n") for line in _raw(text)]


def _ending(text: str) -> str:
    """Return the ending of the last line, empty if it has none."""
    return "\r\n" if text.endswith("\r\n") else text[-1:] if text.endswith(("\n", "\r")) else ""


def _halves(lines: list[str], block: str) -> tuple[list[str], list[str]]:
    """Split a block at its divider; of several candidates, take the one as long as the opening marker."""
    dividers = [at for at, line in enumerate(lines) if DIVIDE.fullmatch(line)]
    if len(dividers) > 1:
        like_opening = lines[0].partition("SEARCH")[0].rstrip().replace("<", "=")
        dividers = [at for at in dividers if lines[at].rstrip() == like_opening] or dividers
    if not dividers:
        raise EditError(f"{block} has no `=======` between SEARCH and REPLACE: {FORM}")
    if len(dividers) > 1:
        raise EditError(f"{block} has several lines that may be its `=======`: make its markers longer or shorter")
    return lines[1 : dividers[0]], lines[dividers[0] + 1 :]


def _text(lines: list[str], ending: str) -> str:
    return "".join(line + ending for line in lines)


def _file_name(above: list[str]) -> str | None:
    """Return the file named in the line above a block, or in or above the line that opens its fence."""
    above = [line for line in above[-4:] if line.strip()]
    for line in above[:-3:-1]:
        if name := FILE.fullmatch(line):
            return name[1]
        if not FENCE.match(line):
            return None
    return None


def _change(raw: list[str], edit: Edit, file: str) -> _Change:
    """Find where an edit goes and the text it puts there. Raise EditError if it cannot apply."""
    _check(edit, file)
    lines, search, replace = _lines("".join(raw)), _lines(edit.search), _lines(edit.replace)
    match = _find(lines, search)
    if match is None:
        if elisions := _elisions(search):
            raise EditError(_no_elision("SEARCH", elisions[0]))
        raise EditError(f"its SEARCH is not in {file}. {_nearest(lines, search)}")
    use_tabs = sum(line.startswith("\t") for line in lines) > sum(line.startswith(" ") for line in lines)
    text = _text(_reindented(replace, search, match.shift, use_tabs), _ending(raw[match.start]))
    if text == "".join(raw[match.start : match.stop]):
        span = _span(match.start, match.stop)
        raise EditError(f"it leaves {span} of {file} unchanged: change something, or leave the block out")
    return _Change(match.start, match.stop, text)


def _check(edit: Edit, file: str) -> None:
    """Raise EditError if an edit is wrong whatever the file contains."""
    search, replace = _lines(edit.search), _lines(edit.replace)
    if edit.file is not None and PurePosixPath(edit.file) != PurePosixPath(file):
        raise EditError(f"it names {edit.file}; only {file} may change")
    if not any(map(str.strip, search)):
        raise EditError("its SEARCH is empty: to insert lines, quote the line next to them and repeat it in REPLACE")
    if search == replace:
        raise EditError("its REPLACE is the same as its SEARCH: change something, or leave the block out")
    if added := _elisions(replace)[len(_elisions(search)) :]:
        raise EditError(_no_elision("REPLACE", added[0]))


def _elisions(lines: list[str]) -> list[int]:
    """Return the indices of lines that look like a stand-in for others; a file may have such a line of its own."""
    return [at for at, line in enumerate(lines) if ELISION.fullmatch(line)]


def _no_elision(half: str, at: int) -> str:
    return f"line {at + 1} of its {half} leaves lines out (`...`): write all lines, or a smaller block for each place"


def _find(lines: list[str], search: list[str]) -> _Match | None:
    """Find `search` as it is, else with other white space. Raise EditError if it matches several places."""
    for find_matches in (_exact_matches, _similar_matches):
        matches = list(find_matches(lines, search))
        if len(matches) > 1:
            first, last = matches[0], matches[-1]
            spans = f"{_span(first.start, first.stop)} and {_span(last.start, last.stop)}"
            shown = "\n".join(_numbered(lines, match.start, match.stop) for match in (first, last))
            raise EditError(
                f"its SEARCH matches more than one place, among them {spans}:\n{shown}\n"
                "Quote more of the lines around the place that is meant."
            )
        if matches:
            return matches[0]
    return None


def _exact_matches(lines: list[str], search: list[str]) -> Iterator[_Match]:
    for start in range(len(lines) - len(search) + 1):
        if lines[start : start + len(search)] == search:
            yield _Match(start, start + len(search), None)


def _similar_matches(lines: list[str], search: list[str]) -> Iterator[_Match]:
    """Find matches up to blank lines, white space inside lines, and the same shift of indentation in all lines."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    wanted = [line for line in search if line.strip()]
    bare, wanted_bare = [_bare(lines[number]) for number in filled], list(map(_bare, wanted))
    for first in range(len(filled) - len(wanted) + 1):
        numbers = filled[first : first + len(wanted)]
        if bare[first : first + len(wanted)] == wanted_bare:
            shifts = {_columns(lines[number]) - _columns(line) for number, line in zip(numbers, wanted, strict=True)}
            if len(shifts) == 1:
                yield _Match(numbers[0], numbers[-1] + 1, shifts.pop())


def _bare(line: str) -> str:
    return "".join(line.split())


def _columns(line: str) -> int:
    """Return the width of a line's indentation."""
    return len(line[: len(line) - len(line.lstrip())].expandtabs(TAB))


def _reindented(new: list[str], old: list[str], shift: int | None, use_tabs: bool) -> list[str]:
    """Return REPLACE indented as the file is, without the blank lines that surround both it and SEARCH."""
    if shift is None:
        return new
    before = min(_leading_blanks(old), _leading_blanks(new))
    after = min(_leading_blanks(old[::-1]), _leading_blanks(new[::-1]))
    result = []
    for line in new[before : len(new) - after]:
        columns = max(_columns(line) + shift, 0)
        indent = "\t" * (columns // TAB) + " " * (columns % TAB) if use_tabs else " " * columns
        result.append(indent + line.lstrip() if line.strip() else line)
    return result


def _leading_blanks(lines: list[str]) -> int:
    return len(list(itertools.takewhile(lambda line: not line.strip(), lines)))


def _nearest(lines: list[str], search: list[str]) -> str:
    """Quote the lines that share most words with `search`, and say what to do."""
    matcher, wanted = SequenceMatcher(autojunk=False), _words(search[: MAX_SHOWN - 2 * CONTEXT])
    matcher.set_seq2(wanted)
    best, start, height = (0.0, 0.0), 0, min(len(search), MAX_SHOWN - 2 * CONTEXT)
    for at in range(max(len(lines) - height, 0) + 1):
        words = _words(lines[at : at + height])
        matcher.set_seq1(words)
        half = (len(words) + len(wanted)) / 2  # times the ratio: the number of words in common
        if matcher.quick_ratio() * half >= best[0] and (score := (matcher.ratio() * half, matcher.ratio())) > best:
            best, start = score, at
    if best[0] < MIN_OVERLAP * len(wanted):
        return "Nothing in it resembles these lines: copy lines from the file as it is shown."
    shown = _numbered(lines, max(start - CONTEXT, 0), min(start + height + CONTEXT, len(lines)))
    return f"The nearest lines are\n{shown}\nCopy whole lines as they are, with their indentation, without the numbers."


def _words(lines: list[str]) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", "\n".join(lines))


def _numbered(lines: list[str], start: int, stop: int) -> str:
    shown = [f"{number + 1:5d} | {lines[number]}" for number in range(start, min(stop, start + MAX_SHOWN))]
    return "\n".join([*shown, f"      and {stop - start - MAX_SHOWN} more"] if stop > start + MAX_SHOWN else shown)


def _span(start: int, stop: int) -> str:
    return f"line {start + 1}" if stop == start + 1 else f"lines {start + 1} to {stop}"
