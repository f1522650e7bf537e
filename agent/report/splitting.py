"""The sentences of a text."""

import re

ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "cf.", "approx.", "ca.", "al.", "etc.", "fig.", "eq.", "no.", "resp.", "std.")
_END = re.compile(r"[.!?…]+[\"')\]”’*]*(?=\s)")
_LISTED = re.compile(r"\A\s*(?:[-*•]\s+|\(?\d{1,2}[.)]\s+)")  # the mark that opens an item of a list


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without list marks.

    A line ends a sentence only before an empty line, a list item or a heading. A full stop ends one unless it belongs
    to an abbreviation or an initial.
    """
    result = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*•]\s|\(?\d{1,2}[.)]\s|#))|(?<=:)\n", text):
        block, start = _LISTED.sub("", " ".join(block.split())), 0
        for end in _END.finditer(block):
            last = block[start : end.end()].rsplit(" ", 1)[-1].lstrip("(\"'").lower()
            if last not in ABBREVIATIONS and not re.fullmatch(r"[a-z]\.", last):
                result.append(block[start : end.end()])
                start = end.end()
        result.append(block[start:])
    return [sentence.strip() for sentence in result if sentence.strip()]
