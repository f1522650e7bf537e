"""The sentences of a text, the numbers in them, and the words that claim a result.

Rules over English words that do not know what is true. prose.py forbids a language model what they find; agent.audit
takes its sentences from here. They know words and not meanings, so:

- numbers() finds digits with their sign, separators, exponent and per cent sign, digits of other scripts, fractions
  as one character, spelled numbers from two on, zero, and words that multiply or divide (half, doubled, three-fold, a
  third of, percent). It does not find digits within a name (L0, h_1, run_3, blocks.1), the number of a run (run 3,
  runs 1 to 3), spelled counts of a design's parts (three disjoint tiers), `one`, ordinals, Roman numerals.
- result_words() finds comparatives and superlatives (better, the highest, faster than), words of success (achieved,
  successfully, significantly, outperforms, confirms) and of trend (improved, reduced, rose, steadily), whether they are
  about a result, a plan, or a thing that is merely large: `a lower tier` counts. It does not find praise by plain
  adjectives (a clean separation), by figures of speech, or by what is left unsaid.
"""

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


_CARDINAL = (
    r"(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?|thousands?|millions?|billions?|dozens?)"
)
_PARTS = (
    r"(?:tiers?|parts|terms|loss(?:es)?|layers?|stages?|phases?|levels|groups?|heads|components|branches|matrices|maps"
    r"|kinds|sorts|ways|decoders|encoders|dictionaries|penalties|coefficients|sizes)"
)
_DIGITS = r"\d(?:[\d,.]*\d)?"
_NUMBER = re.compile(
    r"\d+-fold\b"
    rf"|(?:(?<![\w)\]}}])[+\-−±~≈])?(?<![\w.])(?<!\w-){_DIGITS}(?:[eE][+\-−]?\d+\b)?(?:\s?[%‰]|[x×]\b|×)?"
    r"|(?<=\w-)\d+(?:\.\d+)?%?(?!\w)"  # top-5
    r"|(?<!\w)\.\d+|[¼½¾⅐-⅞]"
    r"|(?<=[a-zA-Z])\d+\.\d+(?![.\w])"  # v0.97
    r"|(?<![\w‖|)\]}⁰-₉¹²³])[⁰-₉¹²³①-⓿]+"  # not the exponent of what stands before it
    r"|\b(?:a|one|two|three) (?:thirds?|quarters?|fifths?|tenths?)\b"
    rf"|\b{_CARDINAL}(?:[- ](?:fold|times|{_CARDINAL}))*\b(?!-?\s*(?:\w+\s+){{0,2}}{_PARTS}\b)"
    r"|\b\w+-?fold\b(?<!manifold)(?<!scaffold)(?<!unfold)|\b(?:percent|per cent)\b"
    r"|\b(?:half|twice|thrice|(?:doubl|halv|tripl|quadrupl)(?:e|es|ed|ing))\b",
    re.IGNORECASE,
)
_RUN_NAMES = re.compile(
    r"\bruns \d+(?:,? (?:to|and|or|vs\.?) (?:run )?\d+|[,–-] ?\d+)+(?![.,]?\d)|\bruns?[ #]?\d+(?![.,]?\d)",
    re.IGNORECASE,
)


def numbers(sentence: str) -> list[str]:
    """Return the numbers of a sentence, in order. The number of a run is part of its name, so it is left out."""
    run_names = [match.span() for match in _RUN_NAMES.finditer(sentence)]
    return [
        match.group()
        for match in _NUMBER.finditer(sentence)
        if not any(start <= match.start() < end for start, end in run_names)
    ]


# A pattern for each word; \s for a space.
COMPARATIVE = r"""
    better best worse worst higher highest lower(?!ed\b) lowest larger largest smaller smallest greater greatest
    bigger biggest fewer fewest (?<!once\s)(?<!no\s)more most(?!\sof\b) less least faster fastest slower slowest
    stronger strongest weaker weakest cleaner sharper sparser denser closer superior\w* inferior\w*
    (?:un)?favou?rabl[ey] \w+er\sthan ahead\sof on\spar as\s(?:good|well|high|low)\sas unmatched unrivall?ed
    (?:above|below|beyond)\s(?:that\sof\s)?the\sbaseline (?:match|equal|t[iy])\w*\s(?:with\s)?the\sbaseline
    second\sto\snone state[-\s]of[-\s]the[-\s]art
"""
SUCCESS = r"""
    achiev\w+ succe(?:ed|eds|eded|eding|ss\w*) effective\w* efficacy significan\w+ substantial\w* considerabl[ey]
    dramatic\w* remarkabl[ey] notabl[ey] markedly noticeabl[ey] impressive\w* outstanding excellent\w* exceptional\w*
    promising robust\w* optimal\w* ideal perfect\w* flawless\w* out-?perform\w* surpass\w* exceed\w* beats? beaten
    wins? won winner dominat\w+ excels? excelled prove[ns]? proved proof proving demonstrat\w+ confirm\w* validat\w+
    verif\w+ corroborat\w+ gains? gained benefi\w+ advantage\w* breakthrough\w* superb\w* pays?\soff paid\soff
    works?\s(?:very\s|quite\s)?well worked helps? helped solve[sd]? as\s(?:expected|hoped|predicted|intended) desired
    good great works(?=[.,;!]|\Z) hypothesis\s(?:holds|held) support(?:s|ed) refut\w+ falsif\w+ reject(?:s|ed)
    encouraging\w* strong(?:ly)? powerful\w* competitive\w* valuable novel clear(?:ly)?\s(?:shows?|wins?)
"""
TREND = r"""
    improv\w+ increas\w+ decreas\w+ reduc\w+ rises? rose risen rising falls? fell fallen falling drop(?:s|ped|ping)?
    declin\w+ grows? grew grown shr[iau]nks? shrunk\w* climb\w* soar\w* plummet\w* lowered raised degrad\w+
    deteriorat\w+ worsen\w* boost\w* enhanc\w+ strengthen\w* weaken\w* minimi[sz]\w+ maximi[sz]\w+ converg\w+
    stabili[sz]\w+ plateau\w* saturat\w+ trend\w* steadily steady consistent\w* monotonic\w* progressive\w* gradual\w*
    (?:go(?:es)?|went|gone|came|comes|coming|going)\s(?:up|down) vanish\w*
    further continu\w+\sto scales?\swith correlat\w+ speeds?\sup sped\sup accelerat\w+ cuts? outgr[eo]w\w*
"""
_RESULT_WORD = re.compile(rf"\b(?:{'|'.join((COMPARATIVE + SUCCESS + TREND).split())})\b", re.IGNORECASE)


def result_words(sentence: str) -> list[str]:
    """Return the comparatives, claims of success and claims of trend in a sentence, in order."""
    return [match.group() for match in _RESULT_WORD.finditer(sentence)]
