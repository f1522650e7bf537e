"""Verdicts in words, without a metric: that an idea holds, works, costs nothing. The outcome of its run decides."""

import re
from collections.abc import Iterator

from agent.audit.clauses import Clause, clauses
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRun
from agent.audit.word_lists import NEGATION, pattern
from agent.hypothesis import Outcome
from agent.lab.metrics import HEADLINE, METRICS
from agent.report.sentences import TITLES

GAIN: tuple[Outcome, ...] = ("better", "unconfirmed", "untested")
LOSS: tuple[Outcome, ...] = ("worse", "not better", "not confirmed", "not upheld")
NO_GAIN: tuple[Outcome, ...] = ("within noise", "negligible", *LOSS)
IN_WORDS = {"within noise": "within noise of the baseline", "negligible": "too small to matter"}
ALIVE = 0.995  # alive fraction from which on all latents count as alive

FREE = pattern(
    r"""costs?~nothing (?:at|for)~no~(?:\w+~)?(?:cost|price) (?:for|is|are|comes?|was|came)~free(?!~(?:to|from|param))
        free~of~charge (?:hurts?|harms?)~nothing no~(?:cost|price|harm|downside|penalty|drawbacks?)
        without~(?:any~)?(?:cost|harm|sacrifices?|drawbacks?) harmless costless pays?~for~itself paid~for~itself
        dead~weight superfluous dispensable untouched unharmed"""
)
WORKS = pattern(
    r"""works?(?=~well|~here|~as~(?:hoped|intended|expected)|[,.;!]|~and\b|$) worked pays?~off paid~off
        (?:clear~|big~|real~)?(?:win|winner|success) succeeds? succeeded (?<!what~)help(?:s|ed)? successful(?:ly)?"""
)
HOLDS = re.compile(
    r"\b(?:idea|suspicion|conjecture|claim|prediction|intuition)\b[^,;]*?"
    r"\b(?:holds?(?! back)|held|confirmed|supported|vindicated|borne out|proven|correct|right|survives?)\b",
    re.IGNORECASE,
)
FAILS = pattern(
    r"""no~(?:gain|benefit|improvement|effect) nothing~(?:gained|changed) refuted falsified failure useless
        dead~end makes?~no~difference changes?~nothing"""
)
CONFIRMED = re.compile(r"fresh seeds (?:have )?confirm|(?:confirmed|upheld) by (?:the )?fresh seeds", re.IGNORECASE)
ALL_ALIVE = re.compile(
    r"\bfully alive\b|\bkeep\w* (?:all|every) latents? alive"
    r"|\b(?:all|every) (?:of the )?latents? (?:stay|remain|are|is|kept)\w* alive"
    r"|\bno (?:dead latents|latents? (?:died|dies|is dead|are dead))",
    re.IGNORECASE,
)
DENIED = pattern("refuted wrong mistaken false disproved unfounded rejected myth")
IN_PART = pattern("half part partly partially first second one only except")
_VERDICTS = (  # the words, the outcomes that contradict them, and those that contradict their denial
    (WORKS, NO_GAIN, GAIN),
    (HOLDS, LOSS, ("better",)),
    (FAILS, GAIN, ()),
    (CONFIRMED, ("unconfirmed", *NO_GAIN), ("better", "untested")),
)
_NO_EXPECTATION = re.compile(r"\bhypothesis|\bcan\b", re.IGNORECASE)  # of what a verdict is said, and what is so


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause whose verdict its run's outcome, or a loss in a metric, does not allow, and the evidence."""
    for clause in clauses(_NO_EXPECTATION.sub("idea", sentence.text), sentence.keys):
        if DENIED.search(clause.text):
            continue
        number = clause.subject if clause.subject is not None else sentence.run
        if number is not None and (run := sentence.known.runs.get(number)):
            for evidence in _contradictions(clause, run):
                yield clause.text, evidence


def _contradictions(clause: Clause, run: KnownRun) -> Iterator[str]:
    alive = run.figures.get("alive_fraction")
    if ALL_ALIVE.search(clause.text) and alive is not None and alive < ALIVE:
        yield f"alive_fraction is {alive:g} in run {run.number}"
    if _said(FREE, clause) and (losses := _losses(run, clause)):
        yield "; ".join(losses)
    if not run.outcome or clause.mentions or IN_PART.search(clause.text):
        return
    for words, contradicting, denied in _VERDICTS:
        said = _said(words, clause)
        if said is not None and run.outcome in (contradicting if said else denied):
            yield f"run {run.number} is {IN_WORDS.get(run.outcome, run.outcome)} on the primary metric"


def _said(words: re.Pattern[str], clause: Clause) -> bool | None:
    """Return True if a clause says so, False if it denies it, None if it says neither."""
    if (match := words.search(clause.text)) is None:
        return None
    return not NEGATION.search(clause.text[: match.start()])


def _losses(run: KnownRun, clause: Clause) -> list[str]:
    """Return the headline metrics, or those that a clause names, that are worse by more than noise and their worth."""
    free = FREE.search(clause.text)
    of = [mention for mention in clause.mentions if free and mention.start > free.end()]
    lost = []
    for title, difference in run.differences.items():
        name = TITLES.get(title, "")
        named = any(mention.quantity.is_figure(name) for mention in of)
        if name not in HEADLINE or name == "l0" or (of and not named):
            continue
        metric, change = METRICS[name], difference.difference
        loss = change if metric.better == "lower" else -change
        if loss > max(difference.half_width, metric.worth):
            lost.append(f"{title} of run {run.number} differs by {change:+.4g} ± {difference.half_width:.4g}")
    return lost
