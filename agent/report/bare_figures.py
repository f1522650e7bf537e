"""Digits beside a score's name in a language model's text: they become the placeholder of a figure that was measured.

A figure that no result has is taken out, so that a reader meets no score but measured ones. What is expected before it
is known (should, may, would) keeps its numbers, and so do settings.
"""

import re
from collections.abc import Iterator

from agent.lab.metrics import HEADLINE, METRICS
from agent.report.prose import SYNONYMS, Facts, beside_placeholders
from agent.report.splitting import split_sentences

NOT_MEASURED = "[not a measured figure]"

_SCORES: dict[str, list[str]] = {}  # title -> metrics that are called so
for _name in HEADLINE:
    if _name != "l0":
        for _title in (_name, METRICS[_name].title, *SYNONYMS.get(_name, ())):
            _SCORES.setdefault(_title.lower(), []).append(_name)
_SCORE = re.compile("|".join(rf"\b{re.escape(title)}\b" for title in sorted(_SCORES, key=len, reverse=True)), re.I)
_NUMBER = r"\d*\.\d+"
_PERCENT = r"(?:%|per ?cent\b)"
_INTERVAL = rf"(?:\s*(?:±|\+/-)\s*{_NUMBER})?"
_FIGURE = re.compile(
    rf"(?<![\w.])(?P<sign>[+\-−]?)(?P<digits>{_NUMBER})(?:\s?(?P<percent>{_PERCENT}))?{_INTERVAL}(?!\w)"
    rf"|(?<![\w.])(?P<whole>\d+)\s?{_PERCENT}"
)
_NEAR = 60  # characters between a score's name and its figure
_ENDS = re.compile(
    r"[;!?]|\.\s|,\s+(?:while|but|whereas|with)\b|\bat L0\b"
)  # between them, and they do not belong together
_OF_A_SETTING = re.compile(
    r"(?:\b(?P<setting>rates?|coefficients?|weights?|thresholds?|steps?|L0|widths?|scales?|decay|momentum|p|[A-Z][A-Z0-9_]+)\b"
    r"|±)[\s=:(`]*(?:(?:of|to|from|at|is|was|by)\s+)?$"
)
_AFTER = re.compile(r"\s*(?:in|of|for|on|points? (?:in|of))?\s*(?:the\s+)?")
_EXPECTS = re.compile(
    r"\b(?:should|may|might|could|would|will|can|if|whether|unless|likely|expect\w*|hop(?:e|es|ed|ing)|hypothes\w+"
    r"|predict\w*|aims?|intend\w*|targets?)\b",
    re.I,
)
_OF_RUN = re.compile(r"\bruns? #?(\d+)|\b(baseline)", re.I)


def measured(text: str, facts: Facts, run: int | None = None) -> str:
    """Return a text with a placeholder, or NOT_MEASURED, for each bare figure of a score.

    A figure is one of the runs that its sentence names, or of the `run` that the text is about, or of any if none is.
    """

    def change(bare: str) -> str:  # where no digit of a placeholder is taken for a figure
        for sentence in split_sentences(bare):
            if not _EXPECTS.search(sentence):
                bare = bare.replace(sentence, _replaced(sentence, facts, run))
        return bare

    return beside_placeholders(text, change)


def _replaced(sentence: str, facts: Facts, run: int | None) -> str:
    parts, end = [], 0
    for figure in _FIGURE.finditer(sentence):
        if names := _scores_of(sentence, figure):
            name = next((name for name in names if name in facts.headline), None)
            placeholder = _placeholder(sentence, figure, name, facts, run) if name else NOT_MEASURED
            parts += [sentence[end : figure.start()], placeholder]
            end = figure.end()
    return "".join([*parts, sentence[end:]])


def _scores_of(sentence: str, figure: re.Match[str]) -> list[str]:
    """Return the scores that a figure may be of: the last one named before it in its clause, or the next word."""
    before, after = sentence[: figure.start()], sentence[figure.end() :]
    setting = _OF_A_SETTING.search(before)
    if setting and (setting["setting"] or "").lower() not in _SCORES:  # AUC and MCC look like constants
        return []
    named = [match for match in _SCORE.finditer(before) if figure.start() - match.end() <= _NEAR]
    if named and not _ENDS.search(before[named[-1].end() :]):
        return _SCORES[named[-1].group().lower()]
    behind = _AFTER.match(after)
    follows = _SCORE.match(after, behind.end() if behind else 0)
    return _SCORES[follows.group().lower()] if follows else []


def _placeholder(sentence: str, figure: re.Match[str], name: str, facts: Facts, run: int | None) -> str:
    """Return the placeholder of the measured figure that stands here, of the runs that the sentence names if any."""
    digits = figure["whole"] or figure["digits"]
    value = float(digits) * (-1 if figure["sign"] in ("-", "−") else 1)
    if figure["whole"] or figure["percent"]:
        value /= 100
    half = 0.5 * 10.0 ** -(len(digits.partition(".")[2]) + 2 * bool(figure["whole"] or figure["percent"])) * 1.0001
    if abs(abs(value) - facts.smallest_effect) <= half:
        return figure.group()
    named = {int(match[1] or 0) for match in _OF_RUN.finditer(sentence)}
    if named == {0} and run is None:
        named = set()  # against the baseline, of a run that the sentence does not name
    elif named and run is not None:
        named.add(run)
    for placeholder, known in _known(name, named, facts):
        if abs(value - known) <= half or (" - " in placeholder and abs(abs(value) - abs(known)) <= half):
            return placeholder
    return NOT_MEASURED


def _known(name: str, named: set[int], facts: Facts) -> Iterator[tuple[str, float]]:
    """Yield the placeholders of a metric's figures and differences with their values, those of named runs alone."""
    runs = [run for run in facts.runs if run.counts and run.info]
    for run in runs:
        value = run.info.metric(name) if run.info else None
        if value is not None and (not named or run.number in named):
            yield f"{{{{{'run_' + str(run.number) if run.number else 'baseline'}.{name}}}}}", value
    for run in runs:
        for other in runs:
            if run.number in (0, other.number) or (named - {0} and run.number not in named):
                continue
            compared = facts.difference(run.number, name, other.number)
            if not isinstance(compared, str):
                against = f"run_{other.number}" if other.number else "baseline"
                yield f"{{{{run_{run.number} - {against} {name}}}}}", compared.difference
