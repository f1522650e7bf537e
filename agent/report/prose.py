"""A language model's prose: every figure a placeholder that is rendered from results, and nothing claimed beside them.

    {{run_3.ce_loss_score}}               a figure of a run that counts, or baseline.ce_loss_score
    {{run_3.K}}                           a constant of the experiment, as the run recorded it
    {{run_3 vs baseline ce_loss_score}}   differs by x ± y from the baseline ... / is within noise of the baseline ...

The words of a comparison come from agent.comparison. A value or a comparison carries the name of its metric and its run
wherever the words before it do not name exactly these, so that no sentence around it gives it to another.

Text written before a run (plans, reasons) may say more, as there is nothing yet that it could claim: what it expects in
comparatives, and the numbers of settings. A number is a setting's where it stands in the experiment.py, or follows the
name of one of its constants (K is raised from 16 to 32). Comparatives are a claim there only of what has been: in a
sentence that expects nothing (should, may, whether ...) and speaks of runs or results, or in the past tense.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agent.comparison import judgement
from agent.comparison.judgement import Judgement
from agent.display.formatting import format_difference, format_value
from agent.lab.errors import nearest
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import headline
from agent.report import claim_words
from agent.study.runs import Run

AHEAD = "{{struck}}"  # stands for what was struck from a text written before a run

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_VALUE = re.compile(r"(?:run_(\d+)|baseline)\.(\w+)")
_BESIDE = re.compile(r"run_(\d+)\s+vs\s+baseline\s+(\w+)")
_STRUCK = re.compile(r"struck(?: run_(\d+))?")
_TITLES = sorted({name for metric, row in METRICS.items() for name in (metric, row.title)}, key=len, reverse=True)
_NAMES = re.compile("|".join(map(re.escape, _TITLES)) + r"|\btop[- ][15]\b|et al\.,? \(?\d{4}\b|arXiv[: ]*[\d.]+", re.I)
_DENIES = re.compile(r"\b(?:not|no|never|neither|nor|without|hardly|barely|only|slightly|almost)\b|n't\b", re.I)
_HOPES = re.compile(
    r"\b(?:should|may|might|could|would|will|can|if|whether|unless|likely|expect\w*|hop(?:e|es|ed|ing)|hypothes\w+"
    r"|predict\w*|aims?|intend\w*|meant|tests?)\b",
    re.I,
)
_SEEN = re.compile(r"\bruns? \d|\b(?:baseline|earlier|previous|so far|results?|show(?:s|ed|n)|found|observed)\b", re.I)
_CLAIMED = re.compile(  # in the past tense, or with praise that names no change
    r"(?:ed|rose|fell|fallen|grew|grown|shrank|went \w+|won|wins?|winner|beats?|beaten|proof|success\w*|better|best"
    r"|worse|worst|superior\w*|out-?perform\w*|surpass\w*|exceed\w*|significan\w+|state[- ]of[- ]the[- ]art)\b",
    re.I,
)
_SCORES = re.compile(
    "|".join(re.escape(name) for key in HEADLINE if key != "l0" for name in (key, METRICS[key].title)), re.I
)
SAID = {  # of the primary metric
    "better": "better, confirmed by fresh seeds",
    "unconfirmed": "not confirmed by fresh seeds yet",
    "not confirmed": "not confirmed by fresh seeds",
    "not better": "not better, as the metric beside it is worse",
    "worse": "worse",
    "negligible": "too small to matter",
}


class BadPlaceholder(ValueError):
    """A placeholder that stands for nothing measured; the message goes to the model."""


@dataclass(frozen=True)
class Fault:
    """A sentence that says what only results may say."""

    sentence: str
    why: str


@dataclass(frozen=True)
class Facts:
    """What has been measured, as placeholders ask for it."""

    runs: Sequence[Run]
    judged: Mapping[int, Judgement]
    primary: str

    @property
    def headline(self) -> list[str]:
        """The headline metrics of this study: those that were measured of its baseline."""
        return headline(run.info for run in self.runs[:1] if run.info)

    def value(self, number: int, name: str) -> str:
        """A figure or a constant of a run. Raises BadPlaceholder."""
        run = self._counted(number)
        assert run.info
        settings: dict[str, Any] = run.info.training.settings if run.info.training else {}
        if name in METRICS:
            value, unit = run.info.metric(name), METRICS[name].unit
            return f"{format_value(name, value)}{f' {unit}' if unit else ''}" if value is not None else "not measured"
        if name in settings and name.lower() not in METRICS and _plain(settings[name]):
            return str(settings[name])
        raise BadPlaceholder(f"run {number} has no figure {name!r}: {nearest(name, [*self.headline, *settings])}")

    def beside(self, number: int, name: str) -> str:
        """How a run's metric compares with the baseline's, as what follows a subject. Raises BadPlaceholder."""
        if number == 0:
            raise BadPlaceholder("run 0 is the baseline: compare another run with it")
        if name not in (*self.headline, self.primary):
            raise BadPlaceholder(f"{name!r} is not compared: {nearest(name, self.headline)}")
        run = self._counted(number)
        found = run.info.comparison if run.info else None
        if found is None or name not in found.metrics:
            why = found.not_comparable if found and found.not_comparable else "not measured on both sides"
            return f"cannot be compared with the baseline ({why})"
        compared = found.metrics[name]
        there = "the baseline as it was trained" if name == "l0" else "the baseline at the same L0"
        outcome = self.judged[number].outcome if name == self.primary and number in self.judged else None
        difference = format_difference(name, compared)
        if outcome == "within noise" or (outcome is None and judgement.observed_direction(compared) == "same"):
            return f"is within noise of {there} (difference {difference})"
        return f"differs by {difference} from {there}" + (f" ({SAID[outcome]})" if outcome in SAID else "")

    def _counted(self, number: int) -> Run:
        counted = [run.number for run in self.runs if run.counts]
        if number not in counted:
            there = ", ".join(f"run_{each}" for each in counted)
            raise BadPlaceholder(f"run {number} has no result; those that have one: {there or 'none'}")
        return self.runs[number]


def render(text: str, facts: Facts) -> str:
    """The text with what its placeholders stand for; one that stands for nothing stays as it is."""
    parts, end, told = [], 0, ""
    for match in _PLACEHOLDER.finditer(text):
        before = text[end : match.start()]
        told = before if "." not in before else before[before.rindex(".") :]  # a full stop ends what was named
        try:
            parts += [before, _rendered(match[1], told, facts)]
        except BadPlaceholder:
            parts += [before, match.group()]
        end = match.end()
    return "".join([*parts, text[end:]])


def _rendered(placeholder: str, before: str, facts: Facts) -> str:
    if value := _VALUE.fullmatch(placeholder):
        run, name = int(value[1] or 0), value[2]
        said = facts.value(run, name)
        return said if _names(before, name, run) else f"{said} ({_title(name)} of {_called(run)})"
    if beside := _BESIDE.fullmatch(placeholder):
        run, name = int(beside[1]), beside[2]
        said = facts.beside(run, name)
        return said if _names(before, name, run) else f"the {_title(name)} of {_called(run)} {said}"
    if struck := _STRUCK.fullmatch(placeholder):
        if struck[1] is None:
            return "[Struck: it told of a result before there was one.]"
        run, title = int(struck[1]), _title(facts.primary)
        measured = f"The {title} of {_called(run)} {facts.beside(run, facts.primary)}"
        return f"[Struck, as only figures can say it; in its place:] {measured}."
    known = f"{{{{run_3.{facts.primary}}}}} and {{{{run_3 vs baseline {facts.primary}}}}} are what there is"
    raise BadPlaceholder(f"{{{{{placeholder}}}}} stands for nothing: {known}")


def _plain(setting: object) -> bool:
    """Whether a constant is numbers or a word: a text could say anything."""
    if isinstance(setting, list | tuple):
        return all(map(_plain, setting))
    return not isinstance(setting, str) or re.fullmatch(r"[\w.]{1,30}", setting) is not None


def _title(name: str) -> str:
    return METRICS[name].title if name in METRICS else name


def _called(run: int) -> str:
    return f"run {run}" if run else "the baseline"


def _names(before: str, name: str, run: int) -> bool:
    """Whether words name this metric or constant and no other, and no other run."""
    named = {_title(match.group().lower()) for match in _NAMES.finditer(before)}
    own = name in METRICS and {each.lower() for each in named} <= {name, _title(name).lower()} and bool(named)
    setting = name not in METRICS and not named and re.search(rf"\b{re.escape(name)}\b", before)
    runs = {int(number) for number in re.findall(r"\bruns? (\d+)", before)}
    other = bool(runs - {run}) or (run > 0 and "baseline" in before.lower())
    return bool(own or setting) and not other


def faults(text: str, facts: Facts, ahead: str | None = None) -> list[Fault]:
    """The sentences that claim what only results may say. `ahead`: for a text written before a run, its experiment.py,
    with the one it starts from, as far as they are known."""
    found = []
    settings = None if ahead is None else _Settings(ahead)
    for paragraph in _paragraphs(text):
        masked, placeholders = _mask(paragraph)
        for sentence in claim_words.sentences(masked):
            mine = [placeholders[ord(letter) - 0xE000] for letter in sentence if 0xE000 <= ord(letter) <= 0xF8FF]
            if why := _why(sentence, mine, facts, settings):
                found.append(Fault(_unmask(sentence, placeholders), why))
    return found


def strike(text: str, found: Sequence[Fault], instead: str) -> str:
    """The text without faulty sentences, `instead` in the place of the first of them."""
    faulty, paragraphs = {fault.sentence for fault in found}, []
    for paragraph in _paragraphs(text):
        masked, placeholders = _mask(paragraph)
        kept = []
        for sentence in claim_words.sentences(masked):
            if (said := _unmask(sentence, placeholders)) not in faulty:
                kept.append(said)
            elif instead:
                kept.append(instead)
                instead = ""
        paragraphs.append(" ".join(kept))
    return "\n\n".join(filter(None, paragraphs))


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _mask(text: str) -> tuple[str, list[str]]:
    """The text with one letter of a private alphabet for each placeholder, and the placeholders."""
    text = re.sub("[\ue000-\uf8ff]", "", text)
    placeholders = [match.group() for match in _PLACEHOLDER.finditer(text)]
    letters = iter(range(len(placeholders)))
    return _PLACEHOLDER.sub(lambda _: chr(0xE000 + next(letters)), text), placeholders


def _unmask(sentence: str, placeholders: list[str]) -> str:
    return re.sub("[\ue000-\uf8ff]", lambda letter: placeholders[ord(letter.group()) - 0xE000], sentence)


def _why(sentence: str, placeholders: list[str], facts: Facts, settings: "_Settings | None") -> str:
    """What is wrong with a sentence, for the model; empty where nothing is."""
    wrong = []
    for placeholder in placeholders:
        inside = _PLACEHOLDER.fullmatch(placeholder)
        assert inside
        try:
            _rendered("?" if _STRUCK.fullmatch(inside[1]) else inside[1], "", facts)
        except BadPlaceholder as error:
            wrong.append(str(error))
    if any(" vs " in placeholder for placeholder in placeholders) and (denied := _DENIES.search(sentence)):
        wrong.append(f"{denied.group()!r} beside a comparison: it says by itself whether there is a difference")
    bare = _NAMES.sub("", sentence)
    scored = settings is None or _SCORES.search(sentence)  # beside a score, no number is taken for a setting
    numbers = claim_words.numbers(bare) if settings is None else settings.unknown(bare, bool(scored))
    if numbers:
        wrong.append(f"a number outside a placeholder: {', '.join(numbers)}")
    boasts = claim_words.boasts(bare)
    if settings is not None:
        has_been = placeholders or _SEEN.search(sentence)
        expected = _HOPES.search(sentence)
        boasts = [] if expected else [boast for boast in boasts if has_been or _CLAIMED.search(boast)]
    if boasts:
        wrong.append(f"a claim in words: {', '.join(boasts)}")
    if "{{" in sentence or "}}" in sentence:
        wrong.append("braces that do not close")
    return "; ".join(wrong)


class _Settings:
    """The constants of an experiment.py, by which a number is told to be a setting."""

    def __init__(self, source: str) -> None:
        code = re.sub("#.*", "", source)  # a comment could hold any number
        written = re.findall(r"(?<![\w.])\d[\d_]*(?:\.\d+)?(?:e-?\d+)?(?!\w)", code)
        self.values = {float(number) for number in written}
        names = re.findall(r"(?m)^([A-Z][A-Z0-9_]*)\b.*=", source)
        number, between = r"[-+]?\d[\d_.,]*(?:e-?\d+)?", r"(?:[\s=:,()\[\]`/]|\b(?:from|to|of|at|by|and|or|becomes)\b)*"
        self.assigned = re.compile(
            rf"\b(?:{'|'.join(names) or '(?!)'})\b(?:\W+[a-z]+){{0,3}}?[\s=:(\[`]*{number}(?:{between}{number})*"
        )

    def unknown(self, sentence: str, named: bool) -> list[str]:
        """The digits in a sentence that are no setting's; words for quantities (twice, half) are none. `named`: only
        what follows the name of a constant is a setting's."""
        numbers = [
            number for number in claim_words.numbers(self.assigned.sub("", sentence)) if any(map(str.isdigit, number))
        ]
        return numbers if named else [number for number in numbers if not self._known(number)]

    def _known(self, number: str) -> bool:
        digits = number.strip("+-−±~≈ %x×").replace(",", "")
        try:
            value = float(Fraction(digits)) / (100 if "%" in number else 1)
        except ValueError:
            return False
        return any(abs(value - known) <= 1e-9 * abs(known) for known in self.values)
