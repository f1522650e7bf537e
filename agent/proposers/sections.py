"""The sections of a language model's answer, under headings in whatever form models write them.

A heading is a line with one of the expected names: after `#`, in bold, underlined, quoted, numbered, in capitals, with
or without a colon, or with the text behind it in the same line. It may say that it is a draft, or final. Thinking that
leaked is cut off first, and fences are looked through. Nothing inside a SEARCH/REPLACE block is a heading.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.proposers.edits import CLOSE, OPEN

_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)"
_THINKING_ENDS = re.compile(rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>", re.I)
_THINKING_BEGINS = re.compile(rf"<{_THOUGHT}>|\[THINK\]|◁think▷", re.I)
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})[\w.:/ -]*")
_RULE = re.compile(r"\s*(?:[-=_*]\s?){3,}")  # also what underlines a heading
_HASHES = re.compile(r"(#{1,6})\s*(\S.*)")
_BOLD = re.compile(r"(?:\*\*|__)(.+?)(?:\*\*|__)\s*(:?)\s*(.*)")
_NUMBERED = re.compile(r"^(?:(?:section|part|step)\s+)?(?:\d+|[ivx]+)\s*[.):]\s*", re.I)
BEFORE = ""  # the section before the first heading
_BOLD_LEVEL, _PLAIN_LEVEL = 7, 8  # of headings without hashes: below all that have them
_CHANNEL = re.compile(r".*<\|(?:message|im_start)\|>(?:assistant\n)?|<\|\w+\|>", re.DOTALL)
_WIDE = str.maketrans({"：": ": ", "【": "[", "】": "]", "（": " (", "）": ")", "，": ", "})
_FINAL = re.compile(r"\b(?:final|corrected|revised|updated|definitive|second)\b", re.I)
_DRAFT = re.compile(r"\b(?:draft|first|old|initial|earlier|tentative)\b", re.I)

Names = Mapping[str, Sequence[str]]  # section -> other names that models give it


@dataclass(frozen=True)
class Heading:
    """A heading: the section it opens (None: another one), its level, and the text behind it in its line."""

    section: str | None
    level: int
    text: str = ""
    rank: int = 0  # -1: a draft, 1: final


class TwoSections(ValueError):
    """Two sections of one name with different texts. The message is the name."""


def without_thinking(answer: str) -> str:
    """Return what a model answered after it thought, with plain line ends and spaces and without what is invisible."""
    text = re.sub(r"\r\n?", "\n", answer).translate(_WIDE)
    text = "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in text if _visible(letter))
    if ends := list(_THINKING_ENDS.finditer(text)):
        text = text[ends[-1].end() :]
    if begins := _THINKING_BEGINS.search(text):  # and no end: all that follows is thinking
        text = text[: begins.start()]
    return _CHANNEL.sub("", text)


def _visible(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter)[0] != "C"


def outside_blocks(text: str) -> list[str]:
    """Return the lines of a text that are in no SEARCH/REPLACE block, without fences, quotation marks and escapes."""
    lines, inside = [], False
    for line in text.split("\n"):
        if OPEN.fullmatch(line) or CLOSE.fullmatch(line):
            inside = bool(OPEN.fullmatch(line))
        elif not inside and not _FENCE.fullmatch(line):
            lines.append(re.sub(r"^\s{0,3}>\s?|\\(?=[\[\]*_#])", "", line).rstrip())
    return lines


def split(text: str, names: Names) -> dict[str, str]:
    """Return the text under each heading of `names` that is there, and under "" what stands before the first.

    Other names count where there is none of that name. Raise TwoSections.
    """
    own = _split(text, dict.fromkeys(names, ()))
    return _split(text, {name: () if name in own else others for name, others in names.items()})


def _split(text: str, names: Names) -> dict[str, str]:
    sections: dict[str, str] = {}
    ranks: dict[str, int] = {}
    current: Heading | None = Heading(BEFORE, 0)
    body: list[str] = []

    def close() -> None:
        if current is None or current.section is None:
            return
        written = "\n".join([current.text, *body]).strip("\n ")
        before, rank = sections.get(current.section, ""), ranks.get(current.section, current.rank)
        if before and written and before != written and rank == current.rank:
            raise TwoSections(current.section)
        if not before or (written and current.rank > rank):
            sections[current.section], ranks[current.section] = written, current.rank

    for line in outside_blocks(text):
        heading = _heading(line, names)
        if heading and heading.section is None and current and current.section and _belongs(heading, current):
            body.append(heading.text)
        elif heading:
            close()
            current, body = heading, []
        elif not _RULE.fullmatch(line):
            body.append(line)
    close()
    return sections


def _belongs(other: Heading, current: Heading) -> bool:
    """Return True if another heading is part of the section: a deeper one, or an item that is written as one."""
    item = re.match(r"(?:[\[(]?\s*from\b|(?:run|item|step)?\s*#?\d+\s*[.):\]–—-])", other.text, re.I)
    return bool(item) or other.level > current.level


def _heading(line: str, names: Names) -> Heading | None:
    """Return the heading in a line, or None if there is none."""
    stripped = line.strip()
    if hashes := _HASHES.fullmatch(stripped):
        text = hashes[2].rstrip("# ")
        return _named(text, names, len(hashes[1])) or Heading(None, len(hashes[1]), text)
    if (bold := _BOLD.fullmatch(stripped)) and not (bold[3] and not (bold[2] or bold[1].rstrip().endswith(":"))):
        return _named(f"{bold[1].rstrip(': ')}: {bold[3]}", names, _BOLD_LEVEL)
    return _named(stripped, names, _PLAIN_LEVEL, whole=True) if len(stripped) == len(line) else None


def _named(text: str, names: Names, level: int, whole: bool = False) -> Heading | None:
    """Return the heading whose section a text names, with what follows a colon.

    `whole`: a line without any mark of a heading, of which the text behind a colon belongs to it only if it is the
    section's own name.
    """
    bare = _NUMBERED.sub("", re.sub(r"^[^\w(]+|[*_#]+", "", text).strip())
    name, colon, behind = bare.partition(":")
    wanted = " ".join(re.sub(r"\([^)]*\)|[^a-z0-9 ]+", " ", name.lower()).split())
    rank = bool(_FINAL.search(name)) - bool(_DRAFT.search(name))
    for section, others in names.items():
        own = section.lower()
        qualified = (
            not whole and len(wanted.split()) <= 3 and re.search(rf"(?:^|\w ){own}$|^{own} (?:for|of)\b", wanted)
        )
        if (wanted == own and not (whole and behind.strip() and not name[:1].isupper())) or qualified:
            return Heading(section, level, behind.strip(), rank)
        if wanted in others and (not whole or not behind.strip()) and (not whole or colon or len(wanted) > 5):
            return Heading(section, level, behind.strip(), rank)
    return None
