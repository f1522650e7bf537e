"""What is known of the runs that a text speaks of: figures, differences from the baseline, verdicts, outcomes.

From the notes themselves, from a study's run directories (the notes' own figures are then claims too), or from its runs
as the driver has them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from agent.audit.notes_reader import Notes, flatten
from agent.audit.quantities import L0, STEPS, Quantity, unknown_keys
from agent.comparison.judgement import Judgement, judgements
from agent.comparison.matching import MATCH
from agent.comparison.references import beside_baseline
from agent.hypothesis import Outcome
from agent.lab.errors import UserError
from agent.lab.files import read_plain_text
from agent.lab.metrics import HEADLINE, METRICS
from agent.lab.results import Comparison, FinalInfo
from agent.report.sentences import DOES_NOT_COUNT, TITLES
from agent.report.splitting import split_sentences
from agent.study.runs import Run
from agent.study.state import State
from agent.study.workspace import find_study

APART = "they do not compare"
NOT_FIGURES = ("floor", "comparison", "environment", "errors", "settings", "datasets", "analysis")


def is_within(difference: float, half_width: float) -> bool:
    """Return True if a difference is at most its half width, but for rounding."""
    return abs(difference) <= half_width * (1 + 1e-9)


@dataclass(frozen=True)
class Difference:
    """A metric, the baseline's at the same L0, and the difference with the half width of its 95% interval."""

    value: float
    reference: float
    difference: float
    half_width: float
    judged_noise: bool = field(
        default=False, kw_only=True
    )  # once corrected for the number of runs, as the primary metric is

    @property
    def reach(self) -> float:
        """What a difference must exceed to be one."""
        return max(self.half_width, abs(self.difference)) if self.judged_noise else self.half_width

    @property
    def within_noise(self) -> bool:
        return is_within(self.difference, self.half_width)

    @property
    def direction(self) -> Literal["up", "down", "same"]:
        return "same" if self.within_noise else "up" if self.difference > 0 else "down"


@dataclass
class KnownRun:
    """A run's figures by the path of their keys. `counts` is False if its verdict excludes it from comparison."""

    number: int
    figures: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)  # by the title of the metric
    stated: dict[str, float] = field(default_factory=dict)  # that only the run's text holds, by Quantity.stated_as
    own_measures: dict[str, float] = field(default_factory=dict)  # the idea's own, by title or name
    verdict: str = ""
    counts: bool = True
    outcome: Outcome | None = None  # on the primary metric
    info: FinalInfo | None = None
    title: str = ""

    def figures_of(self, quantity: Quantity, wording: str = "") -> dict[str, float]:
        """Return the measured figures of a quantity, by path. `wording`: how a sentence names it."""
        figures = {path: self.figures[path] for path in quantity.paths(self.figures, wording)}
        path = quantity.complement
        return figures or ({f"1 - {path}": 1 - self.figures[path]} if path in self.figures else {})

    def related_figures_of(self, quantity: Quantity, wording: str = "") -> dict[str, float]:
        """Return the figures that relations to other runs are checked with: if none was measured, the one stated."""
        name = quantity.stated_as(wording)
        return self.figures_of(quantity, wording) or ({name: self.stated[name]} if name in self.stated else {})

    def compared_title(self, quantity: Quantity, wording: str = "") -> str | None:
        """Return the title under which a quantity's difference from the baseline is known, or None if it is not."""
        titles = [title for title in self.differences if quantity.is_titled(title)]
        exact = [title for title in titles if title.lower() == wording.lower()]
        another = re.search(r"\d", wording) and quantity.name != "L0"  # top 1 when top 5 is known
        return next(iter(exact or ([] if another else titles)), None)

    def judge(self, judgement: Judgement, primary: str) -> None:
        """Take over the outcome of the primary metric, and whether its difference is noise."""
        self.outcome = judgement.outcome
        title = _title(primary)
        if self.outcome == "within noise" and title in self.differences:
            self.differences[title] = replace(self.differences[title], judged_noise=True)

    def gain(self, title: str) -> float:
        """Return a metric's difference from the baseline, positive if it is for the better."""
        name = TITLES.get(title)
        sign = -1 if name and METRICS[name].better == "lower" else 1
        return sign * self.differences[title].difference

    @property
    def l0(self) -> float | None:
        return next(iter(self.related_figures_of(L0).values()), None)

    @property
    def why_untrained(self) -> str:
        """Say which figure shows that nothing was trained; empty if none does."""
        path = next((path for path, value in self.figures_of(STEPS).items() if value == 0), None)
        return f"{path} is 0" if path else ""


@dataclass(frozen=True)
class KnownReference:
    """The figures of an SAE that was trained elsewhere, and their differences from the baseline's, by title."""

    figures: Mapping[str, float]
    differences: Mapping[str, float] = field(default_factory=dict)


@dataclass
class KnownRuns:
    """The runs that something is known of, by number, and what their study decides by."""

    runs: dict[int, KnownRun]
    primary: str = ""  # the title of the metric
    smallest_effect: float = 0.0  # of the primary metric; 0: not known
    references: dict[str, KnownReference] = field(default_factory=dict)  # by name
    recorded: bool = False  # the references are the ledger's, and not what notes say of them

    def is_primary(self, quantity: Quantity) -> bool:
        return bool(self.primary) and quantity.is_titled(self.primary)

    def run(self, number: int | None) -> KnownRun | None:
        """Return what is known of a run; None if that is nothing, or if there is no number."""
        return None if number is None else self.runs.get(number)

    def of(self, runs: dict[int, KnownRun]) -> "KnownRuns":
        """Return the same study with these runs."""
        return replace(self, runs=runs)

    @cached_property
    def keys(self) -> list[str]:
        """The names of figures that are no known quantity's."""
        return unknown_keys(path for run in self.runs.values() for path in run.figures)

    def name(self, run: int) -> str:
        return f"run {run}" if run else "the baseline"

    def identical(self, a: int, b: int) -> bool:
        """Return True if two runs have the same figures, at least two of them measured."""
        one, two = self.runs[a].figures, self.runs[b].figures
        measured = {path for path in one.keys() & two.keys() if not STEPS.paths({path: 0.0})}
        return one == two and len(measured) >= 2

    def why_l0_apart(self, a: int, b: int) -> str:
        """Say how far apart the L0 of two runs is if that is too far to compare them; empty if it is not."""
        one, two = self.runs[a].l0, self.runs[b].l0
        if one is None or two is None or min(one, two) <= 0:
            return ""
        if min(abs(one / two - 1), abs(two / one - 1)) <= MATCH:
            return ""
        apart = f"{self.name(a)} has L0 {one:g} and {self.name(b)} {two:g}"
        return f"{apart}, more than {MATCH:.0%} apart: {APART}"


def from_notes(notes: Notes) -> KnownRuns:
    """Take the figures from the notes themselves; of a run that is described twice, from the first description."""
    known, texts = KnownRuns({}), notes.texts_by_run()
    for run in notes.runs:
        counts = not any(map(DOES_NOT_COUNT.opens, split_sentences(texts.get(run.number, ""))))
        new = KnownRun(run.number, run.figures, run.settings, counts=counts, title=run.title)
        known.runs.setdefault(run.number, new)
    return known


def from_directory(directory: Path) -> KnownRuns:
    """Take the figures from a study's run directories. Raise UserError if there are none."""
    study, runs = find_study(directory), {}
    compared = {run.number: run.comparison for run in study[1].runs} if study else {}
    for path in sorted(directory.glob("run_*/final_info.json")):
        if number := re.fullmatch(r"run_(\d+)", path.parent.name):
            runs[int(number[1])] = _read(path, int(number[1]), compared.get(int(number[1])))
    if not runs:
        raise UserError(f"{directory} has no run_<i>/final_info.json: give the directory of a study's runs")
    if study:
        state = study[1]
        done = [Run(run, directory, known.info) for run in state.runs if (known := runs.get(run.number))]
        for run in done:
            runs[run.number].title = run.state.proposal.title
        for number, judgement in judgements(done, state).items():
            runs[number].judge(judgement, state.started.primary_metric)
        goal = _title(state.started.primary_metric), state.started.smallest_effect
        return KnownRuns(runs, *goal, _references(state), recorded=True)
    return KnownRuns(runs)


def _references(state: State) -> dict[str, KnownReference]:
    """Take the figures of references from the ledger."""
    return {
        name: KnownReference(_by_title(scored.figures), _by_title(beside_baseline(scored.figures, state).differences))
        for name, scored in state.references_scored.items()
    }


def _by_title(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {METRICS[name].title: value for name, value in figures.items() if value is not None and name in METRICS}


def from_runs(
    runs: Sequence[Run], judged: Mapping[int, Judgement], primary: str = "", smallest_effect: float = 0.0
) -> KnownRuns:
    """Take the figures of a study's runs that are done, and the outcomes they are judged to have on the primary metric.

    Without the metric's name its own interval says whether a difference is noise, not corrected for the number of runs.
    """
    known = {}
    for run in runs:
        if run.info:
            known[run.number] = replace(_of_results(run.number, run.info), title=run.state.proposal.title)
    for number in judged.keys() & known.keys():
        known[number].judge(judged[number], primary)
    return by_metric(KnownRuns(known, _title(primary), smallest_effect))


def by_metric(known: KnownRuns) -> KnownRuns:
    """Leave of each measured run the figures of METRICS, the headline metrics first, and the idea's own measures."""
    runs = dict(known.runs)
    for number, run in known.runs.items():
        if run.info:
            figures = {name: run.info.metric(name) for name in dict.fromkeys((*HEADLINE, *METRICS))}
            measured = {name: value for name, value in figures.items() if value is not None}
            runs[number] = replace(run, figures={**run.own_measures, **measured} if run.counts else {})
    return known.of(runs)


def _title(metric: str) -> str:
    return METRICS[metric].title if metric else ""


def _read(path: Path, number: int, compared: Comparison | None) -> KnownRun:
    """Read a run's results. Its comparison is the ledger's, or in studies of before in the file."""
    try:
        content = json.loads(read_plain_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    figures, settings = flatten({key: value for key, value in content.items() if key not in NOT_FIGURES})
    try:
        info = FinalInfo.model_validate(content)
    except ValidationError:
        return KnownRun(number, figures, settings)
    run = _of_results(number, info.model_copy(update={"comparison": compared or info.comparison}))
    return replace(run, figures=figures, settings=settings)


def _of_results(number: int, info: FinalInfo) -> KnownRun:
    """Return what a run's results say beside its figures."""
    run = KnownRun(number, info=info, verdict=info.verdict.name, counts=info.verdict.ok)
    run.own_measures = {name: value for name, value in info.analysis.items() if value is not None}
    compared = info.comparison.metrics if info.comparison else {}
    for name in sorted(compared, key=lambda name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE)):
        metric, title = compared[name], METRICS[name].title if name in METRICS else name
        run.differences[title] = Difference(metric.value, metric.reference, metric.difference, metric.half_width)
    return run
