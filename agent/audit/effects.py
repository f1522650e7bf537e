"""Sizes of effects in words: against the smallest effect that matters, and against the effect of another run."""

import re
from collections.abc import Iterator

from agent.audit.clauses import Clause, clauses
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRun
from agent.audit.quantities import L0
from agent.audit.word_lists import NEGATION

CLOSE = 0.05  # two sizes this near each other, by their share, are not told apart
_LIMIT = (
    r"(?:(?:the|our|this|that|its|any|set|own|agreed) )*(?:smallest (?:effect|difference)|threshold|budget|limit"
    r"|tolerance|allowance|yardstick|margin)\b|(?:what )?(?:we|I) (?:are|were|had|have)? ?(?:\w+ )?"
    r"(?:ready|willing|prepared|set|allow\w*|accept\w*|tolerat\w*|care)\b|(?:what )?the hypothesis allow\w*"
)
_MORE = (
    r"(?:more|larger|greater|bigger|higher) (?:[\w-]+ ){0,4}?than|exceed(?:s|ed|ing)?|above|beyond|br[eo]aks?|broke"
    r"|blows?|blew|overr[ua]ns?|surpass\w*|clears?|cleared"
)
_LESS = r"(?:less|smaller|lower) (?:[\w-]+ ){0,4}?than|below|under|within|(?<!fall )(?<!falls )short of|inside"
_WE_WOULD = re.compile(r"\b(we|I) (?:would|could|can) ", re.IGNORECASE)
_ANOTHER_LIMIT = re.compile(
    r"\b(?:training|tokens?|compute|steps?|learned|activations?|gradients?|latents?|no|none|any|each|every) ",
    re.IGNORECASE,
)
_LOST = r"costs?|los(?:es?|t|ing)|g[ia]ves? up|gave up|sacrific\w+|hurts?|harms?|damages?|pays?|paid"
_GAINED = r"gain(?:s|ed)?|w[io]ns?|won|helps?|helped|improve[sd]?|raise[sd]?|lift(?:s|ed)?"
_SIZE = r"(?P<size>smaller|larger|bigger|greater|less|lower|higher|more)\b"
_COMPARED = (  # the gain is smaller than that of run 1; it costs less explained variance than run 3
    re.compile(
        r"\b(?:(?P<gain>gain|improvement|advantage|benefit)|(?P<loss>loss(?= (?:in|of)\b)|drop|cost"
        r"|price|fall|decline|deficit|damage))\b"
        rf"[^,;]*?\b{_SIZE}[^,;]*? than\b",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?:(?P<gain>{_GAINED})|(?P<loss>{_LOST}))(?: [\w-]+)?? {_SIZE}[^,;]*? than\b", re.IGNORECASE),
)
_KEEPS = re.compile(
    r"\b(?:holds? on to|held on to|keeps?|kept|retain(?:s|ed)?|preserve[sd]?) (?:the |all |most |of )*"
    r"(?:gains?|improvements?|advantages?|benefits?) (?:of|from|in) run (?P<run>\d+)",
    re.IGNORECASE,
)


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause that gives an effect another size than was measured, and the evidence."""
    for clause in clauses(_WE_WOULD.sub(r"\1 ", sentence.text).replace("hypothesis", "idea"), sentence.keys):
        kept = _KEEPS.search(clause.text)
        of_kept = kept is not None and clause.subject == int(kept["run"])
        for number in sentence.subjects(None if of_kept else clause.subject):
            if (run := sentence.known.runs.get(number)) and run.differences:
                for evidence in (*_threshold(clause, run, sentence), *_against_run(clause, run, sentence)):
                    yield clause.text, evidence


def _threshold(clause: Clause, run: KnownRun, sentence: ProseSentence) -> Iterator[str]:
    """Say so where the primary metric's difference is not as large or small as claimed beside the smallest effect."""
    known = sentence.known
    smallest, limit = known.smallest_effect, _LIMIT.replace("hypothesis", "idea")
    said = re.search(
        rf"\b(?:(?P<more>{_MORE})|(?P<less>{_LESS})) (?:{limit}|(?:the )?{smallest:g}(?!\.?\d))",
        clause.text,
        re.IGNORECASE,
    )
    about = clause.mentions or ([clause.last] if clause.last else [])
    if not said or not smallest or known.primary not in run.differences or _ANOTHER_LIMIT.search(clause.text):
        return
    if not all(known.is_primary(mention.quantity) for mention in about):
        return
    size = abs(run.differences[known.primary].difference)
    more = bool(said["more"]) != bool(NEGATION.search(clause.text[: said.start()]))
    if abs(size - smallest) > CLOSE * smallest and (size > smallest) != more:
        yield f"{known.primary} of run {run.number} differs by {size:.4g}, the smallest effect is {smallest:g}"


def _against_run(clause: Clause, run: KnownRun, sentence: ProseSentence) -> Iterator[str]:
    """Say so where the effect of a run beside that of another is not as large or small as claimed."""
    known, text = sentence.known, clause.text
    said = next(filter(None, (compared.search(text) for compared in _COMPARED)), None)
    keeps = _KEEPS.search(text)
    number = int(keeps["run"]) if keeps else clause.against[0] if said and clause.against else None
    other = known.runs.get(number) if number else None
    if other is None or other is run or known.why_l0_apart(run.number, other.number):
        return
    about = [mention for mention in clause.mentions if mention.quantity is not L0]
    if len(about) > 1:
        return
    title = (run.compared_title(about[0].quantity, about[0].text) or "") if about else known.primary
    if title not in run.differences or title not in other.differences:
        return
    mine, theirs = run.gain(title), other.gain(title)
    noise = max(run.differences[title].half_width, other.differences[title].half_width)
    if keeps:
        wrong = theirs - mine > noise and not NEGATION.search(text[: keeps.start()])
    else:
        assert said
        claimed = said["size"].lower() in ("larger", "bigger", "greater", "higher", "more")
        claimed = claimed != bool(NEGATION.search(text[: said.start()]))
        more = mine > theirs if said["gain"] else mine < theirs
        wrong = claimed != more and abs(mine - theirs) > CLOSE * max(abs(mine), abs(theirs))
    if wrong:
        of = [f"{each.differences[title].difference:+.4g} in run {each.number}" for each in (run, other)]
        yield f"{title} differs from the baseline by {' and by '.join(of)}"
