"""SEARCH/REPLACE blocks in a language model's answer: read, and applied to a file all or none.

    <<<<<<< SEARCH
    lines as they stand in the file
    =======
    what they become
    >>>>>>> REPLACE

Every block is matched against the file as it was, so the order of the blocks changes nothing.
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import PurePosixPath

OPEN = re.compile(r"\s*<{5,9} ?SEARCH>?\s*")
DIVIDE = re.compile(r"\s*={5,9}\s*")
CLOSE = re.compile(r"\s*>{5,9} ?REPLACE\s*")
MALFORMED = re.compile(r"\s*(<{5}|>{5}|[<>]{3,}\s*(SEARCH|REPLACE)\b)")
FORM = "a block is a line `<<<<<<< SEARCH`, lines of the file, a line `=======`, new lines, a line `>>>>>>> REPLACE`"

FENCE = re.compile(r"\s*(`{3,}|~{3,})")
FILE = re.compile(
    r"[^\w./]*(?:\w+[^\w./]+){0,2}([\w./][\w./-]*\.(?:py|j2|ya?ml|toml|jsonl?|txt|md|sh|cfg|ini))\W*", re.I
)

ELIDED = re.compile(r"\s*(\.\.\.|…)\s*(#.*)?|\s*#\s*(\.\.\.|…).*")  # `...`, `# ... the rest as before`
TAB = 4  # columns

RESEMBLES = 0.4  # share of the words searched for, below which lines are no help
CONTEXT = 2  # lines shown around the nearest ones
MOST_SHOWN = 40


class EditError(ValueError):
    """An answer whose blocks cannot be read or applied. The message is for the model: what is wrong, and what to do."""


@dataclass(frozen=True)
class Edit:
    """One block: lines of the file and what they become, each line ended by a newline."""

    search: str
    replace: str
    file: str | None


@dataclass(frozen=True)
class _Place:
    """Lines `start` to `stop` (not included), and how many columns deeper the file has them; None: they are equal."""

    start: int
    stop: int
    shift: int | None


@dataclass(frozen=True)
class _Change:
    """What lines `start` to `stop` become."""

    start: int
    stop: int
    text: str


def parse(answer: str) -> list[Edit]:
    """The blocks of an answer in their order; none where it has none. Raises EditError where one is malformed."""
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
            search, replace = _halves(lines[opened:at], block)
            edits.append(Edit(_text(search, "\n"), _text(replace, "\n"), _file(lines[:opened])))
            opened = None
        elif MALFORMED.match(line):
            raise EditError(f"{block}: line {at + 1}, `{line.strip()}`, is no marker: {FORM}")
    if opened is not None:
        raise EditError(f"{block} has no `>>>>>>> REPLACE` before the answer's end: {FORM}")
    return edits


def apply(source: str, edits: Sequence[Edit], file: str = "experiment.py") -> str:
    """The source with every edit made. Line endings, and a missing last one, stay as they are.

    Raises EditError, and nothing is applied, where a block names another file, matches no lines of the source or those
    of several places, changes nothing, or overlaps another block.
    """
    if not edits:
        raise EditError(f"the answer holds no edit: {FORM}")
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
            both = f"both take in line {other.start + 1}: make one block of them, or let them share no line"
            problems.append(f"blocks {one} and {two} of {len(edits)}: {both}")
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


def _raw(text: str) -> list[str]:
    """Lines with their endings; nothing but the three ends of a line that Python knows ends one."""
    return list(io.StringIO(text, newline=""))


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r\n") for line in _raw(text)]


def _ending(text: str) -> str:
    """The ending of the last line; empty where it has none."""
    return "\r\n" if text.endswith("\r\n") else text[-1:] if text.endswith(("\n", "\r")) else ""


def _halves(lines: list[str], block: str) -> tuple[list[str], list[str]]:
    """What stands between the markers. Of several dividers, the one that looks like the opening marker is meant."""
    dividers = [at for at, line in enumerate(lines) if DIVIDE.fullmatch(line)]
    if len(dividers) > 1:
        like = lines[0].partition("SEARCH")[0].rstrip().replace("<", "=")
        dividers = [at for at in dividers if lines[at].rstrip() == like] or dividers
    if not dividers:
        raise EditError(f"{block} has no `=======` between SEARCH and REPLACE: {FORM}")
    if len(dividers) > 1:
        raise EditError(f"{block} has several lines that may be its `=======`: make its markers longer or shorter")
    return lines[1 : dividers[0]], lines[dividers[0] + 1 :]


def _text(lines: list[str], ending: str) -> str:
    return "".join(line + ending for line in lines)


def _file(above: list[str]) -> str | None:
    """The file named in the line above a block, or above or in the line that opens its fence."""
    above = [line for line in above[-4:] if line.strip()]
    for line in above[:-3:-1]:
        if name := FILE.fullmatch(line):
            return name[1]
        if not FENCE.match(line):
            return None
    return None


def _change(raw: list[str], edit: Edit, file: str) -> _Change:
    """Where an edit goes and what it puts there. Raises EditError."""
    _check(edit, file)
    lines, search, replace = _lines("".join(raw)), _lines(edit.search), _lines(edit.replace)
    searched, replaced, keep = [search], [replace], False
    places = _find(lines, searched)
    if not places and any(map(_is_elided, search)):
        searched, replaced, keep = _pieces(search, replace)
        places = _find(lines, searched)
    if not places:
        missing = next((piece for piece in searched if not any(_similar(lines, piece))), search)
        raise EditError(f"its SEARCH is not in {file}. {_nearest(lines, missing)}")
    start, stop = places[0].start, places[-1].stop
    ending = _ending(raw[start])
    tabs = sum(line.startswith("\t") for line in lines) > sum(line.startswith(" ") for line in lines)
    text, at = "", start
    for place, old, new in zip(places, searched, replaced, strict=True):
        left_out = raw[at : place.start] if keep else []
        text += "".join(left_out) + _text(_carried(new, old, place.shift, tabs), ending)
        at = place.stop
    if text == "".join(raw[start:stop]):
        raise EditError(f"it leaves {_span(start, stop)} of {file} unchanged: change something, or leave the block out")
    return _Change(start, stop, text)


def _check(edit: Edit, file: str) -> None:
    """What is wrong with an edit whatever the file holds. Raises EditError."""
    search, replace = _lines(edit.search), _lines(edit.replace)
    if edit.file is not None and PurePosixPath(edit.file) != PurePosixPath(file):
        raise EditError(f"it names {edit.file}; only {file} may change")
    if not _holds(search):
        raise EditError("its SEARCH is empty, so it has no place: quote the line beside the new ones, and repeat it")
    if search == replace:
        raise EditError("its REPLACE is the same as its SEARCH: change something, or leave the block out")
    if sum(map(_is_elided, replace)) > sum(map(_is_elided, search)):
        raise EditError("its REPLACE leaves out lines with `...` that its SEARCH does not leave out: write them all")


def _is_elided(line: str) -> bool:
    return ELIDED.fullmatch(line) is not None


def _pieces(search: list[str], replace: list[str]) -> tuple[list[list[str]], list[list[str]], bool]:
    """SEARCH and REPLACE, split at the lines left out, and whether the lines left out stay. Raises EditError."""
    old, new = _split(search), _split(replace)
    keep = len(new) == len(old)
    if not keep and len(new) > 1:
        raise EditError("its REPLACE has not as many `...` as its SEARCH: keep all the lines left out, or none of them")
    if keep:
        for end in (0, -1):
            if not _holds(old[end]) and not _holds(new[end]):
                del old[end], new[end]
    else:
        new += [[]] * (len(old) - 1)
    if not old or not all(map(_holds, old)):
        raise EditError(
            "its SEARCH does not say where the lines left out begin or end: quote lines on both sides of `...`"
        )
    return old, new, keep


def _holds(lines: list[str]) -> bool:
    """Whether any of the lines is more than blank."""
    return any(map(str.strip, lines))


def _split(lines: list[str]) -> list[list[str]]:
    pieces = [[]]
    for line in lines:
        if _is_elided(line):
            pieces.append([])
        else:
            pieces[-1].append(line)
    return pieces


def _find(lines: list[str], pieces: list[list[str]]) -> list[_Place]:
    """Where the pieces stand, in order: as they are, else with other white space. Raises EditError on several ways."""
    for places in (_equal, _similar):
        ways = sorted(_ways([list(places(lines, piece)) for piece in pieces]), key=lambda way: way[0].start)
        if len(ways) > 1:
            spans = [_span(way[0].start, way[-1].stop) for way in ways]
            shown = "\n".join(_numbered(lines, way[0].start, way[-1].stop) for way in ways)
            raise EditError(
                f"its SEARCH matches more than one place, among them {' and '.join(spans)}:\n{shown}\n"
                "Quote more of the lines around the place that is meant."
            )
        if ways:
            return ways[0]
    return []


def _equal(lines: list[str], piece: list[str]) -> Iterator[_Place]:
    for start in range(len(lines) - len(piece) + 1):
        if lines[start : start + len(piece)] == piece:
            yield _Place(start, start + len(piece), None)


def _similar(lines: list[str], piece: list[str]) -> Iterator[_Place]:
    """Blank lines and white space inside lines do not count; indentation may differ by the same for all lines."""
    full = [number for number, line in enumerate(lines) if line.strip()]
    wanted = [line for line in piece if line.strip()]
    bare, wanted_bare = [_bare(lines[number]) for number in full], list(map(_bare, wanted))
    for first in range(len(full) - len(wanted) + 1):
        found = full[first : first + len(wanted)]
        if bare[first : first + len(wanted)] == wanted_bare:
            shifts = {_columns(lines[number]) - _columns(line) for number, line in zip(found, wanted, strict=True)}
            if len(shifts) == 1:
                yield _Place(found[0], found[-1] + 1, shifts.pop())


def _bare(line: str) -> str:
    return "".join(line.split())


def _columns(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip())].expandtabs(TAB))


def _ways(places: list[list[_Place]]) -> list[list[_Place]]:
    """The first and the last way to choose a place for each piece in order, equally shifted: one where they are one."""
    ways = []
    for shift in {place.shift for place in places[0]}:
        shifted = [[place for place in some if place.shift == shift] for some in places]
        first, last, after, before = [], [], -1, float("inf")
        for some in shifted:
            first += [place for place in some if place.start >= after][:1]
            after = first[-1].stop if first else after
        for some in reversed(shifted):
            last += [place for place in some if place.stop <= before][-1:]
            before = last[-1].start if last else before
        if len(first) == len(places):
            ways += [first] if first == last[::-1] else [first, last[::-1]]
    return ways


def _carried(new: list[str], old: list[str], shift: int | None, tabs: bool) -> list[str]:
    """REPLACE, indented as the file is, without the blank lines around it that stand around SEARCH as well."""
    if shift is None:
        return new
    before = min(_blank(old), _blank(new))
    after = min(_blank(old[::-1]), _blank(new[::-1]))
    carried = []
    for line in new[before : len(new) - after]:
        columns = max(_columns(line) + shift, 0)
        indent = "\t" * (columns // TAB) + " " * (columns % TAB) if tabs else " " * columns
        carried.append(indent + line.lstrip() if line.strip() else line)
    return carried


def _blank(lines: list[str]) -> int:
    """The number of blank lines at the start."""
    return len(list(itertools.takewhile(lambda line: not line.strip(), lines)))


def _nearest(lines: list[str], search: list[str]) -> str:
    """The lines that hold most of the words searched for, and what to do."""
    matcher, wanted = SequenceMatcher(autojunk=False), _words(search[: MOST_SHOWN - 2 * CONTEXT])
    matcher.set_seq2(wanted)
    best, start, height = (0.0, 0.0), 0, min(len(search), MOST_SHOWN - 2 * CONTEXT)
    for at in range(max(len(lines) - height, 0) + 1):
        words = _words(lines[at : at + height])
        matcher.set_seq1(words)
        half = (len(words) + len(wanted)) / 2  # times the ratio: the number of words in common
        if matcher.quick_ratio() * half >= best[0] and (found := (matcher.ratio() * half, matcher.ratio())) > best:
            best, start = found, at
    if best[0] < RESEMBLES * len(wanted):
        return "Nothing in it resembles these lines: copy lines from the file as it is shown."
    shown = _numbered(lines, max(start - CONTEXT, 0), min(start + height + CONTEXT, len(lines)))
    return f"The nearest lines are\n{shown}\nCopy whole lines as they are, with their indentation, without the numbers."


def _words(lines: list[str]) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", "\n".join(lines))


def _numbered(lines: list[str], start: int, stop: int) -> str:
    shown = [f"{number + 1:5d} | {lines[number]}" for number in range(start, min(stop, start + MOST_SHOWN))]
    return "\n".join([*shown, f"      and {stop - start - MOST_SHOWN} more"] if stop > start + MOST_SHOWN else shown)


def _span(start: int, stop: int) -> str:
    return f"line {start + 1}" if stop == start + 1 else f"lines {start + 1} to {stop}"
