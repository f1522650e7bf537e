"""Verdicts in words: that an idea holds, works, costs nothing, was confirmed. The outcome of its run decides, and the
differences of the metrics that the verdict names.
"""

import re
from collections.abc import Iterator

from agent.audit.clauses import BASELINE, Clause, clauses
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRun, KnownRuns, is_within
from agent.audit.quantities import L0, Mention
from agent.audit.word_lists import NEGATION, pattern
from agent.hypothesis import Outcome
from agent.lab.metrics import HEADLINE, METRICS
from agent.report.sentences import TITLES

GAIN: tuple[Outcome, ...] = ("better", "unconfirmed", "untested")
LOSS: tuple[Outcome, ...] = ("worse", "not better", "not confirmed", "not upheld")
NO_GAIN: tuple[Outcome, ...] = ("within noise", "negligible", *LOSS)
NOT_CONFIRMED: tuple[Outcome, ...] = ("unconfirmed", *(outcome for outcome in NO_GAIN if outcome != "not upheld"))
IN_WORDS = {"within noise": "within noise of the baseline", "negligible": "too small to matter"}

FREE = pattern(
    r"""costs?~nothing (?:at|for)~no~(?:\w+~)?(?:cost|price) (?:for|is|are|comes?|was|came)~free(?!~(?:to|from|param))
        free~of~charge (?:hurts?|harms?)~nothing no~(?:cost|price|harm|downside|penalty|drawbacks?)
        without~(?:any~)?(?:cost|harm|sacrifices?|drawbacks?) harmless costless pays?~for~itself paid~for~itself
        dead~weight superfluous dispensable untouched unharmed (?:costs?|loses?|lost|sacrifices?)~no(?!~more)
        (?:for|at|with|is)~no~(?:\w+~)?(?:loss|decline|drop|sacrifice)~(?:of|in) (?:costs?|loses?)~(?:any|none)
        without~(?:any~|measurable~|visible~)?(?:loss(?=~(?:of|in))|losing|sacrificing)
        nothing~is~(?:lost|sacrificed) gives~up~no(?:thing)?
        (?:nor|not)~(?:\w+~){0,5}(?:costs?|loses?)~any"""
)
WORKS = pattern(
    r"""works?(?=~well|~here|~as~(?:hoped|intended|expected)|[,.;!]|~and\b|$) worked pa(?:ys?|id)~off pays?(?=[,.;!:]|$)
        (?:clear~|big~|real~|clean~)?(?:win|winner|success) succeeds? succeeded (?<!what~)help(?:s|ed)?
        successful(?:ly)? (?:the|a)~better~(?:SAE|dictionary|model|run|encoder|code)
        most~(?:useful|successful|effective|helpful|beneficial|valuable|fruitful)
        (?:solid|clear|significant|substantial|real|genuine)~(?:gain|improvement) worth(?:while|~it|~the~\w+)"""
)
HOLDS = re.compile(
    r"\b(?:idea|suspicion|conjecture|claim|prediction|intuition|thesis)\b[^,;]*?"
    r"\b(?:holds?(?! back)|held|confirmed|supported|vindicated|borne out|proven|correct|right|survives?|stands)\b",
    re.IGNORECASE,
)
IN_FULL = pattern(r"full(?:y)? both every all entirely complete(?:ly)? throughout")
FAILS = pattern(
    r"""no~(?:gain|benefit|improvement|effect) nothing~(?:gained|changed) refuted falsified failure useless
        dead~end"""
)
NEUTRAL = pattern(
    r"""neutral ma(?:kes?|de)~no~(?:\w+~)?difference change[sd]?~(?:nothing|little) null~result (?:does|did)~not~matter
        not~(?:needed|necessary|required) unnecessary redundant without~(?:any~)?effect
        (?:just|every~bit)~as~(?:well|good)(?=[.,;]?$) equally~(?:well|good)"""
)
SMALL = re.compile(
    r"\b(?:improvement|gain|difference|change|effect|drop|loss|rise|decline|advantage|run \d+)s?\b[^,;]*?"
    r" (?:within (?:the )?noise|indistinguishable|insignificant|negligible|too small to (?:matter|count|care))",
    re.IGNORECASE,
)
REFUTED = pattern("refuted falsified rejected disproved contradicted fails? failed collapses? dead wrong")
DENIED = pattern("refuted wrong mistaken false disproved unfounded rejected myth")
IN_PART = pattern("half part partly partially first second one only except")

_SEEDS = r"(?:fresh|new|other|more|further|additional|repeated) (?:seeds|trainings)|replicat\w+|reseed\w+"
_SHOW = r"(?:confirm\w*|bears? out|bore out|borne out|back\w*|support\w*|uphold|upheld|reproduce\w*|agree\w*|verif\w+)"
_GAINED = r"(?:gain|improvement|advantage|benefit|result|effect)\b"
CONFIRMED = re.compile(
    rf"(?:{_SEEDS})\b(?: \w+){{0,2}}? {_SHOW}"
    rf"|(?:{_SHOW}|surviv\w+|stood|stands|h[eo]lds? up|held|persist\w*|remain\w*)(?: \w+){{0,2}}? "
    rf"(?:the )?(?:{_SEEDS})\b"
    rf"|\b{_GAINED}[^,;]*? (?:was|is|has been|been|got|stands) (?:since )?(?:confirmed|settled|replicated)\b"
    r"|\brun \d+[^,;]*? (?:was|is|been) confirmed\b|\bconfirmed(?: \w+)? (?:gain|improvement|winner|win)\b",
    re.IGNORECASE,
)
_DENIED_WITHIN = pattern("not never hardly barely yet~to remains~to")
_PENDING = pattern("to~be to~get awaits? awaiting pending wants? needs? lacks? without yet still")
UNCONFIRMED = re.compile(
    rf"\b{_GAINED}[^,;]*? (?:to be|not|not yet|never)(?: yet)?(?: been)? confirmed\b|\bunconfirmed\b", re.IGNORECASE
)
_NULL = pattern("noise null nothing no unchanged")
_VERDICTS = (  # the words, the outcomes that contradict them, and those that contradict their denial
    (WORKS, NO_GAIN, GAIN),
    (HOLDS, LOSS, ("better",)),
    (FAILS, GAIN, ()),
    (NEUTRAL, ("worse", *GAIN), ()),
    (SMALL, ("worse", *GAIN), ()),
    (UNCONFIRMED, ("better", "untested"), ()),
    (CONFIRMED, NOT_CONFIRMED, ("better", "untested")),
)  # fmt: skip
_THESIS = re.compile(r"\bhypothesis", re.IGNORECASE)
_CAN = re.compile(r"\bcan\b", re.IGNORECASE)  # no expectation: of what a verdict is said, and what is so
ACROSS = re.compile(
    r"\b(?:across the board|(?:every|all|each|any)(?: of the| the| headline)* (?:metrics?|measures?|scores?|figures?)"
    r"|everything"
    r"|(?:on|in) every (?:count|respect|front))\b",
    re.IGNORECASE,
)
_PRAISED = re.compile(
    r"\b(?:wins?|success|improv\w+|better|gains?|up|lift\w*|raise[sd]?|(?:the )?right (?:way|direction)"
    r"|for the better|pays? off)\b",
    re.IGNORECASE,
)
_CLEAR = re.compile(
    r"\b(?:clear|significant|real|heavy|substantial|noticeable|marked|solid|large|big|genuine|serious) "
    r"(?:(?P<gain>gain|improvement|rise|increase|boost)|(?P<loss>loss|drop|fall|decline|decrease)) (?:of|in) (?:the )?",
    re.IGNORECASE,
)
_IN = re.compile(r"\s*(?:\w+ )?(?:in|for|on|with)? ?(?:the |terms of )*$", re.IGNORECASE)


def contradicted(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield each clause whose verdict its run's outcome, or a loss in a metric, does not allow, and the evidence."""
    known = sentence.known
    yield from _praise_of_all(sentence)
    for clause in clauses(_CAN.sub("", _THESIS.sub("thesis", sentence.text)), sentence.keys):
        if "thesis" in clause.text.lower() and (why := _on_thesis(clause, known)):
            yield clause.text, why
        if DENIED.search(clause.text):
            continue
        for number in sentence.subjects(clause.subject):
            if run := known.runs.get(number):
                for evidence in _contradictions(clause, run, known):
                    yield clause.text, evidence


def outcome_of(run: KnownRun) -> str:
    return f"run {run.number} is {IN_WORDS.get(run.outcome or '', run.outcome)} on the primary metric"


def _praise_of_all(sentence: ProseSentence) -> Iterator[tuple[str, str]]:
    """Yield praise of all metrics if a headline metric is worse."""
    text, run = sentence.text, sentence.known.runs.get(sentence.run or 0)
    across, praised = ACROSS.search(text), _PRAISED.search(text)
    if not run or not across or not praised or IN_PART.search(text):
        return
    if NEGATION.search(text[: across.start()]) or NEGATION.search(text[: praised.start()]):
        return
    worse = [title for title in run.differences if _is_headline(title) and _is_worse(run, title)]
    if worse and any(_PRAISED.search(clause.text) for clause in clauses(text)):
        yield "praise of all", "; ".join(_differs(run, title) for title in worse)


def _on_thesis(clause: Clause, known: KnownRuns) -> str:
    """Return why the outcomes of all runs contradict what a clause says of the hypothesis, or nothing."""
    outcomes = {run.outcome: run for run in known.runs.values() if run.outcome}
    if IN_PART.search(clause.text) or clause.mentions or not outcomes:
        return ""
    if (refuted := _said(REFUTED, clause)) is not None:
        return outcome_of(outcomes["better"]) if refuted and "better" in outcomes else ""
    if not _said(HOLDS, clause) or outcomes.keys() & set(GAIN):
        return ""
    best = next((outcomes[outcome] for outcome in ("negligible", "within noise") if outcome in outcomes), None)
    if best and (best.outcome == "within noise" or IN_FULL.search(clause.text)):
        return outcome_of(best)
    return ""


def _contradictions(clause: Clause, run: KnownRun, known: KnownRuns) -> Iterator[str]:
    if _said(FREE, clause) and (losses := _losses(run, clause)):
        yield "; ".join(losses)
    yield from filter(None, (_works_in(clause, run), _clear(clause, run)))
    others = [each for each in clause.mentions if not known.is_primary(each.quantity) and each.quantity is not L0]
    if not run.outcome or others or IN_PART.search(clause.text):
        return
    for words, contradicting, denied in _VERDICTS:
        if clause.mentions and words in (HOLDS, FAILS, NEUTRAL):
            continue
        if (
            words is SMALL
            and (clause.against or clause.mentions)
            and clause.against[:1] != (BASELINE,)
            and clause.against
        ):
            continue
        said = _said(words, clause)
        if words is CONFIRMED and (_NULL.search(clause.text) and said):
            continue
        if said is not None and run.outcome in (contradicting if said else denied):
            yield outcome_of(run)


def _works_in(clause: Clause, run: KnownRun) -> str:
    """Return the difference of the one metric that a run is said to pay off in, if it is no gain; else nothing."""
    works = WORKS.search(clause.text)
    after = [mention for mention in clause.mentions if works and mention.start >= works.end()]
    if not works or len(after) != 1 or not _said(WORKS, clause):
        return ""
    title = run.compared_title(after[0].quantity, after[0].text)
    if not title or not _IN.fullmatch(clause.text[works.end() : after[0].start]):
        return ""
    return "" if run.gain(title) > run.differences[title].reach else _differs(run, title)


def _clear(clause: Clause, run: KnownRun) -> str:
    """Return the difference of the metric that is said to have a clear gain or loss, if it has not; else nothing."""
    said = _CLEAR.search(clause.text)
    about = [mention for mention in clause.mentions if said and mention.start == said.end()]
    if not said or not about or NEGATION.search(clause.text[: said.start()]) or clause.against:
        return ""
    title = run.compared_title(about[0].quantity, about[0].text)
    return (
        _differs(run, title)
        if title and is_within(run.differences[title].difference, run.differences[title].reach)
        else ""
    )


def _said(words: re.Pattern[str], clause: Clause) -> bool | None:
    """Return True if a clause says so, False if it denies it, None if it says neither."""
    if (match := words.search(clause.text)) is None:
        return None
    within = words in (CONFIRMED, HOLDS) and _DENIED_WITHIN.search(match.group())
    within = within or (words is CONFIRMED and _PENDING.search(clause.text))
    return not (within or NEGATION.search(clause.text[: match.start()]))


def _losses(run: KnownRun, clause: Clause) -> list[str]:
    """Return the headline metrics, or those that a clause names, that are worse by more than noise and their worth."""
    free = FREE.search(clause.text)
    of: list[Mention] = [mention for mention in clause.mentions if free and mention.start >= free.end()]
    lost = []
    for title in run.differences:
        named = any(mention.quantity.is_figure(TITLES.get(title, "")) for mention in of)
        if _is_headline(title) and (named or not of) and _is_worse(run, title):
            lost.append(_differs(run, title))
    return lost


def _is_headline(title: str) -> bool:
    name = TITLES.get(title)
    return name in HEADLINE and name != "l0"


def _is_worse(run: KnownRun, title: str) -> bool:
    """Return True if a metric is worse by more than noise and its worth."""
    return -run.gain(title) > max(run.differences[title].half_width, METRICS[TITLES[title]].worth)


def _differs(run: KnownRun, title: str) -> str:
    difference = run.differences[title]
    return f"{title} of run {run.number} differs by {difference.difference:+.4g} ± {difference.half_width:.4g}"
