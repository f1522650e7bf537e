"""A language model's text: figures are placeholders that are rendered from results, and it claims nothing beside them.

    {{run_3.ce_loss_score}}               a figure of a run that counts, or baseline.ce_loss_score
    {{run_3.K}}                           a constant of the experiment, as the run recorded it
    {{run_3 vs baseline ce_loss_score}}   differs by x ± y from the baseline ... / is within noise of the baseline ...

A rendered value or comparison names its metric and run unless the words before it name exactly these, so that no
sentence around it can give it to another.

Text written before a run (plans, reasons) may say more, as there is no result yet that it could claim: comparatives of
what it expects, and the numbers of settings. A number is a setting's if it stands in the experiment.py, or follows the
name of one of its constants (K is raised from 16 to 32). A comparative is a claim there only if it is about the past:
in a sentence that expects nothing (should, may, whether ...) and mentions runs or results, or in the past tense.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agent.comparison import judgement
from agent.comparison.judgement import Judgement
from agent.display.formatting import format_difference, format_value
from agent.lab.errors import did_you_mean
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import headline
from agent.report import claim_words, sentences
from agent.study.runs import Run

REMOVED_BEFORE_RUN = "{{struck}}"  # in place of a claim removed from a text written before a run

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_VALUE = re.compile(r"(?:run_(\d+)|baseline)\.(\w+)")
_COMPARISON = re.compile(r"run_(\d+)\s+vs\s+baseline\s+(\w+)")
_REMOVED = re.compile(r"struck(?: run_(\d+))?")
_TITLES = sorted({name for metric, row in METRICS.items() for name in (metric, row.title)}, key=len, reverse=True)
_NAMES = re.compile("|".join(map(re.escape, _TITLES)) + r"|\btop[- ][15]\b|et al\.,? \(?\d{4}\b|arXiv[: ]*[\d.]+", re.I)
_DENIES = re.compile(r"\b(?:not|no|never|neither|nor|without|hardly|barely|only|slightly|almost)\b|n't\b", re.I)
_EXPECTS = re.compile(
    r"\b(?:should|may|might|could|would|will|can|if|whether|unless|likely|expect\w*|hop(?:e|es|ed|ing)|hypothes\w+"
    r"|predict\w*|aims?|intend\w*|meant|tests?)\b",
    re.I,
)
_OF_RESULTS = re.compile(
    r"\bruns? \d|\b(?:baseline|earlier|previous|so far|results?|show(?:s|ed|n)|found|observed)\b", re.I
)
_CLAIMS = re.compile(  # in the past tense, or with praise that names no change
    r"(?:ed|rose|fell|fallen|grew|grown|shrank|went \w+|won|wins?|winner|beats?|beaten|proof|success\w*|better|best"
    r"|worse|worst|superior\w*|out-?perform\w*|surpass\w*|exceed\w*|significan\w+|state[- ]of[- ]the[- ]art)\b",
    re.I,
)
_SCORES = re.compile(
    "|".join(re.escape(name) for key in HEADLINE if key != "l0" for name in (key, METRICS[key].title)), re.I
)
IN_WORDS = {  # outcomes on the primary metric
    "better": "better, confirmed by fresh seeds",
    "unconfirmed": "not confirmed by fresh seeds yet",
    "untested": "confirmed by fresh seeds, without a score on the test split",
    "not upheld": "not upheld on the test split",
    "not confirmed": "not confirmed",
    "not better": "not better, because its companion metric is worse",
    "worse": "worse",
    "negligible": "too small to matter",
}


class BadPlaceholder(ValueError):
    """A placeholder that stands for nothing measured. The message goes to the model."""


@dataclass(frozen=True)
class Fault:
    """A sentence that claims what only results may say."""

    sentence: str
    why: str


@dataclass(frozen=True)
class Facts:
    """The measured figures and comparisons that placeholders may ask for."""

    runs: Sequence[Run]
    judged: Mapping[int, Judgement]
    primary: str

    @property
    def headline(self) -> list[str]:
        """Return the headline metrics of this study: those that were measured for its baseline."""
        return headline(run.info for run in self.runs[:1] if run.info)

    def value(self, number: int, name: str) -> str:
        """Return a figure with its unit, or a constant of a run. Raise BadPlaceholder if it has neither."""
        run = self._run(number)
        assert run.info
        settings: dict[str, Any] = run.info.training.settings if run.info.training else {}
        if name in METRICS:
            value, unit = run.info.metric(name), METRICS[name].unit
            return f"{format_value(name, value)}{f' {unit}' if unit else ''}" if value is not None else "not measured"
        if name in settings and name.lower() not in METRICS and _plain(settings[name]):
            return str(settings[name])
        raise BadPlaceholder(f"run {number} has no figure {name!r}: {did_you_mean(name, [*self.headline, *settings])}")

    def compare(self, number: int, name: str) -> str:
        """Compare a metric with the baseline in a predicate (differs by ...). Raise BadPlaceholder if it cannot be."""
        if number == 0:
            raise BadPlaceholder("run 0 is the baseline; compare another run with it")
        if name not in (*self.headline, self.primary):
            raise BadPlaceholder(f"{name!r} is not a compared metric: {did_you_mean(name, self.headline)}")
        run = self._run(number)
        comparison = run.info.comparison if run.info else None
        if comparison is None or name not in comparison.metrics:
            why = comparison.not_comparable if comparison and comparison.not_comparable else None
            return f"cannot be compared with the baseline ({why or 'not measured on both sides'})"
        compared = comparison.metrics[name]
        outcome = self.judged[number].outcome if name == self.primary and number in self.judged else None
        from_baseline = sentences.FROM_AS_TRAINED if name == "l0" else sentences.FROM_SAME_L0
        difference = format_difference(name, compared)
        if outcome == "within noise" or (outcome is None and judgement.observed_direction(compared) == "same"):
            return sentences.WITHIN_NOISE_OF.render(
                baseline=from_baseline.removeprefix(" from "), difference=difference
            )
        in_words = f" ({IN_WORDS[outcome]})" if outcome in IN_WORDS else ""
        return sentences.DIFFERS_FROM.render(difference=difference, from_baseline=from_baseline, in_words=in_words)

    def _run(self, number: int) -> Run:
        counted = [run.number for run in self.runs if run.counts]
        if number not in counted:
            known = ", ".join(f"run_{run}" for run in counted)
            raise BadPlaceholder(f"run {number} has no results; runs with results: {known or 'none'}")
        return self.runs[number]


def render(text: str, facts: Facts) -> str:
    """Replace the placeholders of a text by what they stand for; one that stands for nothing stays as it is."""
    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(text):
        before = text[end : match.start()]
        named_in = before if "." not in before else before[before.rindex(".") :]  # a full stop ends what was named
        try:
            parts += [before, _rendered(match[1], named_in, facts)]
        except BadPlaceholder:
            parts += [before, match.group()]
        end = match.end()
    return "".join([*parts, text[end:]])


def _rendered(placeholder: str, before: str, facts: Facts) -> str:
    if value := _VALUE.fullmatch(placeholder):
        run, name = int(value[1] or 0), value[2]
        text = facts.value(run, name)
        if _names(before, name, run):
            return text
        return sentences.VALUE_OF.render(value=text, unit="", figure=_title(name), which=_run_name(run))
    if comparison := _COMPARISON.fullmatch(placeholder):
        run, name = int(comparison[1]), comparison[2]
        text = facts.compare(run, name)
        return text if _names(before, name, run) else f"the {_title(name)} of {_run_name(run)} {text}"
    if removed := _REMOVED.fullmatch(placeholder):
        if removed[1] is None:
            return "[Removed: a claim about a result before there was one.]"
        run = int(removed[1])
        measured = f"The {_title(facts.primary)} of {_run_name(run)} {facts.compare(run, facts.primary)}"
        return f"[Removed: a claim in words; measured instead:] {measured}."
    known = f"{{{{run_3.{facts.primary}}}}} or {{{{run_3 vs baseline {facts.primary}}}}}"
    raise BadPlaceholder(f"{{{{{placeholder}}}}} stands for nothing; placeholders look like {known}")


def _plain(setting: object) -> bool:
    """Return True if a constant is numbers or one word; a longer text could claim anything."""
    if isinstance(setting, list | tuple):
        return all(map(_plain, setting))
    return not isinstance(setting, str) or re.fullmatch(r"[\w.]{1,30}", setting) is not None


def _title(name: str) -> str:
    return METRICS[name].title if name in METRICS else name


def _run_name(run: int) -> str:
    return f"run {run}" if run else "the baseline"


def _names(before: str, name: str, run: int) -> bool:
    """Return True if the words name this metric or constant and no other, and no other run."""
    named = {_title(match.group().lower()) for match in _NAMES.finditer(before)}
    own = name in METRICS and {title.lower() for title in named} <= {name, _title(name).lower()} and bool(named)
    setting = name not in METRICS and not named and re.search(rf"\b{re.escape(name)}\b", before)
    runs = {int(number) for number in re.findall(r"\bruns? (\d+)", before)}
    other = bool(runs - {run}) or (run > 0 and "baseline" in before.lower())
    return bool(own or setting) and not other


def find_faults(text: str, facts: Facts, experiment: str | None = None) -> list[Fault]:
    """Return the sentences that claim what only results may say.

    `experiment`: for a text written before a run, the source of its experiment.py and of the one it starts from.
    """
    faults = []
    settings = None if experiment is None else _Settings(experiment)
    for paragraph in _paragraphs(text):
        masked, placeholders = _mask(paragraph)
        for sentence in claim_words.split_sentences(masked):
            own = [placeholders[ord(letter) - 0xE000] for letter in sentence if 0xE000 <= ord(letter) <= 0xF8FF]
            if why := _why_faulty(sentence, own, facts, settings):
                faults.append(Fault(_unmask(sentence, placeholders), why))
    return faults


def remove_sentences(text: str, faults: Sequence[Fault], replacement: str) -> str:
    """Return the text without its faulty sentences; `replacement` stands in for the first of them."""
    faulty, paragraphs = {fault.sentence for fault in faults}, []
    for paragraph in _paragraphs(text):
        masked, placeholders = _mask(paragraph)
        kept = []
        for masked_sentence in claim_words.split_sentences(masked):
            if (sentence := _unmask(masked_sentence, placeholders)) not in faulty:
                kept.append(sentence)
            elif replacement:
                kept.append(replacement)
                replacement = ""
        paragraphs.append(" ".join(kept))
    return "\n\n".join(filter(None, paragraphs))


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _mask(text: str) -> tuple[str, list[str]]:
    """Return the text with a private-use character for each placeholder, and the placeholders."""
    text = re.sub("[\ue000-\uf8ff]", "", text)
    placeholders = [match.group() for match in _PLACEHOLDER.finditer(text)]
    letters = iter(range(len(placeholders)))
    return _PLACEHOLDER.sub(lambda _: chr(0xE000 + next(letters)), text), placeholders


def _unmask(sentence: str, placeholders: list[str]) -> str:
    return re.sub("[\ue000-\uf8ff]", lambda letter: placeholders[ord(letter.group()) - 0xE000], sentence)


def _why_faulty(sentence: str, placeholders: list[str], facts: Facts, settings: "_Settings | None") -> str:
    """Say what is wrong with a sentence, for the model; empty if nothing is."""
    reasons = []
    for placeholder in placeholders:
        inside = _PLACEHOLDER.fullmatch(placeholder)
        assert inside
        try:
            _rendered("?" if _REMOVED.fullmatch(inside[1]) else inside[1], "", facts)
        except BadPlaceholder as error:
            reasons.append(str(error))
    if any(" vs " in placeholder for placeholder in placeholders) and (denied := _DENIES.search(sentence)):
        reasons.append(f"{denied.group()!r} next to a comparison, which already says whether there is a difference")
    bare = _NAMES.sub("", sentence)
    scored = _SCORES.search(sentence)  # then only a number after the name of a constant is taken for a setting
    numbers = claim_words.numbers(bare) if settings is None else settings.unknown(bare, bool(scored))
    if numbers:
        reasons.append(f"a number outside a placeholder: {', '.join(numbers)}")
    claims = claim_words.result_words(bare)
    if settings is not None:
        of_results = placeholders or _OF_RESULTS.search(sentence)
        expected = _EXPECTS.search(sentence)
        claims = [] if expected else [claim for claim in claims if of_results or _CLAIMS.search(claim)]
    if claims:
        reasons.append(f"a claim in words: {', '.join(claims)}")
    if "{{" in sentence or "}}" in sentence:
        reasons.append("braces that do not close")
    return "; ".join(reasons)


class _Settings:
    """The constants of an experiment.py, which tell whether a number is a setting."""

    def __init__(self, source: str) -> None:
        code = re.sub("#.*", "", source)  # a comment could hold any number
        written = re.findall(r"(?<![\w.])\d[\d_]*(?:\.\d+)?(?:e-?\d+)?(?!\w)", code)
        self.values = {float(number) for number in written}
        names = re.findall(r"(?m)^([A-Z][A-Z0-9_]*)\b.*=", source)
        number, between = r"[-+]?\d[\d_.,]*(?:e-?\d+)?", r"(?:[\s=:,()\[\]`/]|\b(?:from|to|of|at|by|and|or|becomes)\b)*"
        self.assigned = re.compile(
            rf"\b(?:{'|'.join(names) or '(?!)'})\b(?:\W+[a-z]+){{0,3}}?[\s=:(\[`]*{number}(?:{between}{number})*"
        )

    def unknown(self, sentence: str, named_only: bool) -> list[str]:
        """Return the numbers in digits of a sentence that are no setting.

        `named_only`: a number is a setting only if it follows the name of a constant.
        """
        numbers = [
            number for number in claim_words.numbers(self.assigned.sub("", sentence)) if any(map(str.isdigit, number))
        ]
        return numbers if named_only else [number for number in numbers if not self._known(number)]

    def _known(self, number: str) -> bool:
        digits = number.strip("+-−±~≈ %x×").replace(",", "")
        try:
            value = float(Fraction(digits)) / (100 if "%" in number else 1)
        except ValueError:
            return False
        return any(abs(value - known) <= 1e-9 * abs(known) for known in self.values)
