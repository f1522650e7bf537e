"""A language model's text: its figures are placeholders, rendered from results; its words are its own.

    {{run_3.ce_loss_score}}               a figure of a run that counts, also an own measure; or baseline.ce_loss_score
    {{run_3.K}}                           a constant of the experiment, as the run recorded it
    {{run_3 vs baseline ce_loss_score}}   differs by x ± y from the baseline ... / is within noise of the baseline ...
    {{run_3 vs run_1 ce_loss_score}}      likewise, from another run
    {{run_3 - run_1 ce_loss_score}}       the bare difference, x ± y
    {{smallest_effect}}                   the smallest difference that matters

A rendered figure or comparison names its metric and run unless the words before it name exactly these, so that no
sentence around it can give it to another. What the words say is not checked here (see agent.audit.words).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from agent.comparison import judgement
from agent.comparison.judgement import Judgement
from agent.comparison.matching import MATCH
from agent.comparison.significance import compare_to_reference
from agent.display.formatting import format_difference, format_value
from agent.lab.errors import did_you_mean
from agent.lab.metrics import METRICS
from agent.lab.results import Measure, MetricComparison, headline
from agent.report import sentences
from agent.study.events import StudyStarted
from agent.study.runs import Run

NOTHING_MEASURED = "[no such figure]"  # in place of a placeholder that stands for nothing

PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_RUN = r"(?:run_?(?P<{0}>\d+)|(?P<{1}>baseline))"
_VALUE = re.compile(_RUN.format("run", "baseline") + r"\.(?P<name>\w+)")
_COMPARISON = re.compile(
    _RUN.format("run", "baseline") + r"\s+(?P<how>vs\.?|-)\s+" + _RUN.format("other", "other_baseline")
    + r"\s+(?P<name>\w+)"
)  # fmt: skip
_REMOVED = re.compile(r"struck(?: run_(\d+))?")  # in texts of version 0.1.0, whose claims in words were removed
_ABOUT = r"run_?\d+|baseline"
_HAS_SUBJECT = re.compile(r"(?<!\band)(?<!\bbut)(?<!\bthat)(?<!\bas)(?<!\bwhile)(?<=\w)\s*\Z")
_DENIED = re.compile(r"(\b(?:not|never|hardly|barely|scarcely)|n't)\s+(?:\w+\s+)?\{\{[^}]*\bvs\b", re.I)
SYNONYMS = {
    "probing_auc_5": ("probing AUC", "AUC"),
    "ce_loss_score": ("CE score", "CE loss score"),
    "explained_variance_centered": ("centred explained variance", "centered explained variance"),
    "absorption_true": ("absorption",),
}
_TITLES = {title.lower(): name for name, row in METRICS.items() for title in (name, row.title, *SYNONYMS.get(name, ()))}
_NAMES = re.compile("|".join(rf"\b{re.escape(title)}\b" for title in sorted(_TITLES, key=len, reverse=True)), re.I)
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
class Facts:
    """The measured figures and comparisons that placeholders may ask for."""

    runs: Sequence[Run]
    judged: Mapping[int, Judgement]
    primary: str
    smallest_effect: float = 0.0
    measures: Mapping[str, Measure] = field(default_factory=dict)  # the idea's own

    @classmethod
    def of(cls, runs: Sequence[Run], judged: Mapping[int, Judgement], started: StudyStarted) -> Self:
        """Return the facts of a study."""
        return cls(runs, judged, started.primary_metric, started.smallest_effect, started.measures)

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
        own = run.info.analysis
        if name in own or name in self.measures:
            measure = self.measures.get(name, Measure(title=name, definition=""))
            unit = f" {measure.unit}" if measure.unit else ""
            return "not measured" if own.get(name) is None else f"{own[name]:.{measure.digits}f}{unit}"
        known = did_you_mean(name, [*self.headline, *own, *settings])
        raise BadPlaceholder(f"run {number} has no figure {name!r}: {known}")

    def compare(self, number: int, name: str, other: int = 0) -> str:
        """Compare a metric with the baseline's, or another run's, in a predicate (differs by ...).

        Raise BadPlaceholder if it cannot be.
        """
        compared = self.difference(number, name, other)
        if isinstance(compared, str):
            return compared
        difference = format_difference(name, compared)
        outcome = self.judged[number].outcome if not other and name == self.primary and number in self.judged else None
        noise = outcome == "within noise" or (outcome is None and judgement.observed_direction(compared) == "same")
        if other:
            sentence = sentences.WITHIN_NOISE_OF_RUN if noise else sentences.DIFFERS_FROM_RUN
            return sentence.render(difference=difference, other=other)
        from_baseline = sentences.FROM_AS_TRAINED if name == "l0" else sentences.FROM_SAME_L0
        if noise:
            baseline = from_baseline.removeprefix(" from ")
            return sentences.WITHIN_NOISE_OF.render(baseline=baseline, difference=difference)
        in_words = f" ({IN_WORDS[outcome]})" if outcome in IN_WORDS else ""
        return sentences.DIFFERS_FROM.render(difference=difference, from_baseline=from_baseline, in_words=in_words)

    def difference(self, number: int, name: str, other: int = 0) -> MetricComparison | str:
        """Return the difference of a metric from the baseline's at the same L0, or from another run's: then each is
        taken relative to the baseline at its own L0. A text tells why there is none. Raise BadPlaceholder."""
        if number == 0 or number == other:
            raise BadPlaceholder(f"run {number} cannot be compared with itself or as the baseline; name another run")
        if name not in (*self.headline, self.primary):
            raise BadPlaceholder(f"{name!r} is not a compared metric: {did_you_mean(name, self.headline)}")
        sides = [self._run(each) for each in (number, other) if each or each == number]
        for run in sides:
            comparison = run.info.comparison if run.info else None
            if comparison is None or name not in comparison.metrics:
                why = comparison.not_comparable if comparison and comparison.not_comparable else None
                return f"cannot be compared with the baseline ({why or 'not measured on both sides'})"
        compared = [run.info.comparison.metrics[name] for run in sides if run.info and run.info.comparison]
        if len(compared) == 1:
            return compared[0]
        l0, other_l0 = (run.info.metric("l0") if run.info else None for run in sides)
        if name != "l0" and l0 and other_l0 and max(l0, other_l0) > (1 + MATCH) * min(l0, other_l0):
            return f"cannot be compared with that of run {other} (L0 {l0:.2f} and {other_l0:.2f})"
        mine, theirs = compared
        noise = max(mine.noise, theirs.noise)
        return compare_to_reference(
            mine.difference, theirs.difference, noise, noise * math.sqrt(2), min(mine.df, theirs.df)
        )

    def _run(self, number: int) -> Run:
        counted = [run.number for run in self.runs if run.counts]
        if number not in counted:
            known = ", ".join(f"run_{run}" for run in counted)
            raise BadPlaceholder(f"run {number} has no results; runs with results: {known or 'none'}")
        return self.runs[number]


def render(text: str, facts: Facts) -> str:
    """Replace the placeholders of a text by what they stand for, those of figures that nobody measured by words."""
    parts, end = [], 0
    for match in PLACEHOLDER.finditer(text):
        before = text[end : match.start()]
        try:
            parts += [before, _rendered(match[1], _named_in(text[: match.start()], match[1]), facts)]
        except BadPlaceholder:
            figure = _VALUE.fullmatch(match[1]) or _COMPARISON.fullmatch(match[1])
            parts += [before, NOTHING_MEASURED if figure else match.group()]
        end = match.end()
    return "".join([*parts, text[end:]])


def _named_in(before: str, placeholder: str) -> str:
    """Return the words before a placeholder that may name what it is, from the last full stop or placeholder on.

    Where they name no metric, but this run, or the last placeholder of the sentence is of the same run, the metric is
    the one that the sentence names.
    """
    sentence = re.split(r"(?<=[.!?])\s", before)[-1]
    earlier = list(PLACEHOLDER.finditer(sentence))
    nearest = sentence[earlier[-1].end() :] if earlier else sentence
    if earlier and not _NAMES.search(nearest) and re.match(_ABOUT, earlier[-1][1]) and re.match(_ABOUT, placeholder):
        own, last = re.match(_ABOUT, placeholder)[0], re.match(_ABOUT, earlier[-1][1])[0]  # type: ignore[index]
        if own == last or re.search(rf"\b{own.replace('_', ' ')}\b", nearest):
            return f"{', '.join(_NAMES.findall(sentence))} {nearest}"
    return nearest


def faults(text: str, facts: Facts, pending: int | None = None) -> list[str]:
    """Tell the model what is wrong with its placeholders; empty if nothing is.

    `pending`: the run that the text is about, if it has no result yet; its figures are there when they are rendered.
    """
    reasons = []
    for match in PLACEHOLDER.finditer(text):
        try:
            if pending is not None and re.search(rf"run_?{pending}\b", match[1]):
                continue
            _rendered("?" if _REMOVED.fullmatch(match[1]) else match[1], "", facts)
        except BadPlaceholder as error:
            reasons.append(f"{match.group()}: {error}")
    if denied := _DENIED.search(text):
        reasons.append(f"{denied[1]!r} before a comparison, which says itself whether there is a difference")
    rest = PLACEHOLDER.sub("", text)
    if "{{" in rest or "}}" in rest:
        reasons.append("braces that do not close")
    return reasons


def without_faults(text: str, facts: Facts, pending: int | None = None) -> str:
    """Replace each placeholder that stands for nothing by words that say so."""
    mended = PLACEHOLDER.sub(
        lambda match: NOTHING_MEASURED if faults(match.group(), facts, pending) else match.group(), text
    )
    return beside_placeholders(mended, lambda bare: bare.replace("{{", "{").replace("}}", "}"))


def beside_placeholders(text: str, change: Callable[[str], str]) -> str:
    """Change a text without its placeholders, each of which is one private-use character meanwhile."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match.group())
        return chr(0xE000 + len(kept) - 1)

    changed = change(PLACEHOLDER.sub(keep, re.sub("[\ue000-\uf8ff]", "", text)))
    return re.sub("[\ue000-\uf8ff]", lambda letter: kept[ord(letter.group()) - 0xE000], changed)


def _rendered(placeholder: str, before: str, facts: Facts) -> str:
    if placeholder == "smallest_effect":
        return f"{facts.smallest_effect:g}"
    if value := _VALUE.fullmatch(placeholder):
        run, name = int(value["run"] or 0), value["name"]
        text = facts.value(run, name)
        if _names(before, name, run) or _is_constant(name, run, facts):
            return text
        return sentences.VALUE_OF.render(value=text, unit="", figure=_title(name, facts), which=_run_name(run))
    if comparison := _COMPARISON.fullmatch(placeholder):
        run, other, name = int(comparison["run"] or 0), int(comparison["other"] or 0), comparison["name"]
        if comparison["how"] == "-":
            compared = facts.difference(run, name, other)
            return compared if isinstance(compared, str) else format_difference(name, compared)
        text, what = facts.compare(run, name, other), f"{_title(name, facts)} of {_run_name(run)}"
        if _names(before, name, run):
            return text
        return f"{text} ({what})" if _HAS_SUBJECT.search(before) else f"the {what} {text}"
    if removed := _REMOVED.fullmatch(placeholder):
        if removed[1] is None:
            return "[Removed: a claim about a result before there was one.]"
        run = int(removed[1])
        measured = f"The {_title(facts.primary, facts)} of {_run_name(run)} {facts.compare(run, facts.primary)}"
        return f"[Removed: a claim in words; measured instead:] {measured}."
    known = f"{{{{run_3.{facts.primary}}}}} or {{{{run_3 vs baseline {facts.primary}}}}}"
    raise BadPlaceholder(f"{{{{{placeholder}}}}} stands for nothing; placeholders look like {known}")


def _is_constant(name: str, run: int, facts: Facts) -> bool:
    """Return True for a constant of a run's experiment, which needs no name behind it."""
    info = facts.runs[run].info
    return name not in METRICS and bool(info and info.training and name in info.training.settings)


def _plain(setting: object) -> bool:
    """Return True if a constant is numbers or one word; a longer text could claim anything."""
    if isinstance(setting, list | tuple):
        return all(map(_plain, setting))
    return not isinstance(setting, str) or re.fullmatch(r"[\w.]{1,30}", setting) is not None


def _title(name: str, facts: Facts) -> str:
    return METRICS[name].title if name in METRICS else facts.measures[name].title if name in facts.measures else name


def _run_name(run: int) -> str:
    return f"run {run}" if run else "the baseline"


def _names(before: str, name: str, run: int) -> bool:
    """Return True if the words name this metric and no other, and no other run."""
    named = {_TITLES[match.group().lower()] for match in _NAMES.finditer(before)}
    runs = {int(number) for number in re.findall(r"\bruns? (\d+)", before)}
    other = bool(runs - {run}) or (run > 0 and "baseline" in before.lower())
    return named == {name} and not other
