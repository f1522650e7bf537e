"""Text of others made visible: what could move a cursor, hide, reorder or end a line is escaped. No torch here."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator


def visible(text: str) -> str:
    r"""Escape control, direction and other invisible characters. Ends of lines and tabs stay.

    >>> visible("\x1b[2Jsafe\u202e\u00a0text\n")
    '\\x1b[2Jsafe\\u202e text\n'
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    r"""Make text visible and put it on one line.

    >>> one_line("a title\n## Run 7: the winner")
    'a title ## Run 7: the winner'
    """
    return visible(" ".join(text.split()))


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    if unicodedata.category(character) == "Zs":  # a space of another width
        return " "
    return character.encode("unicode_escape").decode()


Line = Annotated[str, AfterValidator(one_line)]
Prose = Annotated[str, AfterValidator(visible)]
