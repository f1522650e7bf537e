"""How many latents live, in words: all, half, a quarter of them, two in a hundred."""

import re
from collections.abc import Iterator

from agent.audit.clauses import BASELINE, Clause, clauses
from agent.audit.judge import ProseSentence
from agent.audit.word_lists import NEGATION

ALIVE = 0.995  # alive fraction from which on all latents count as alive
NEAR = 0.25  # a share in words may differ from the measured one by this share of it
_LATENTS = r"(?:latents?|features?|dictionary|dictionaries|units?|neurons?)"
_SHARES = {
    "half": 1 / 2, "a third": 1 / 3, "two thirds": 2 / 3, "a quarter": 1 / 4, "three quarters": 3 / 4, "a fifth": 1 / 5,
    "a tenth": 1 / 10,
}  # fmt: skip
_COUNTS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_ALL_ALIVE = re.compile(
    rf"\bfully alive\b|\b(?:all|every)(?: single)?(?: one)?(?: of)?(?: the| its)? {_LATENTS}(?: \w+){{0,2}} "
    r"(?:alive|active|in use|survives?|survived)\b"
    rf"|\bkeep\w* (?:all|every)\b[^,;]* alive|\b(?:no|not a single|never a|not one) (?:dead )?{_LATENTS}"
    r"(?: (?:has|have|was|is|were|are|ever|has ever))* (?:die[sd]?|dead|lost)\b|\bno dead latents?\b"
    r"|\bdead latents?\b[^,;]*\b(?:never|not|no|nowhere)\b[^,;]*\b(?:issue|problem|concern|worry|appear\w*|show\w*)\b"
    r"|\bin no run (?:did|do|does) (?:any )?latents? die\b"
    r"|\b(?:nothing|none)(?: of (?:them|the latents))? (?:die[sd]?|(?:is|was|are|were) dead)\b",
    re.IGNORECASE,
)
_SHARE_DEAD = re.compile(
    rf"\b(?P<share>{'|'.join(_SHARES)}|(?P<count>{'|'.join(_COUNTS)}|\d+) (?:latents? )?(?:in|out of) a hundred)\b"
    rf"[^,;]*?\b(?P<state>dead|die[sd]?|alive|survive[sd]?)\b",
    re.IGNORECASE,
)
_KILLED = re.compile(
    r"\b(?P<state>kills?|killed|loses?|lost) (?:(?:about|roughly|nearly) )?"
    rf"(?P<share>{'|'.join(_SHARES)}(?P<count>))\b",
    re.IGNORECASE,
)
_OF_THE_STUDY = re.compile(r"\b(?:never|in (?:this|the|our) study|in (?:any|all|every|no)\b|throughout)", re.IGNORECASE)
_WITHOUT_A_TERM = re.compile(
    r"\bwithout (?:a|an|any|the) (?:\w+ )?(?:term|loss|penalty|objective) that\b", re.IGNORECASE
)


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause whose share of living latents is not the measured one, and the evidence."""
    for clause in clauses(_WITHOUT_A_TERM.sub("without", sentence.text), sentence.keys):
        numbers = sentence.subjects(clause.subject)
        if _ALL_ALIVE.search(clause.text) and _OF_THE_STUDY.search(clause.text) and clause.subject is None:
            numbers = [number for number in sentence.known.runs if number != BASELINE]
        for number in numbers:
            run = sentence.known.runs.get(number)
            alive = run.figures.get("alive_fraction") if run else None
            if run and alive is not None and not _agrees(clause, alive):
                yield clause.text, f"alive_fraction is {alive:g} in {sentence.known.name(number)}"


def _agrees(clause: Clause, alive: float) -> bool:
    if _ALL_ALIVE.search(clause.text):
        return alive >= ALIVE
    said = _SHARE_DEAD.search(clause.text) or _KILLED.search(clause.text)
    if not said or not re.search(_LATENTS, clause.text, re.IGNORECASE) or NEGATION.search(clause.text[: said.start()]):
        return True
    if count := said["count"]:
        share = (int(count) if count.isdigit() else _COUNTS.index(count.lower()) + 1) / 100
    else:
        share = _SHARES[said["share"].lower()]
    measured = alive if said["state"].lower().startswith(("alive", "surviv")) else 1 - alive
    return abs(measured - share) <= max(NEAR * measured, 0.005)
