"""What is known of the runs that notes speak of: figures, differences from the baseline, verdicts.

From the notes themselves, or from a study's run directories; then the notes' own figures are claims like any other.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from agent.audit.notes_reader import Notes, flatten
from agent.audit.quantities import L0, STEPS, Quantity
from agent.comparison.matching import MATCH
from agent.lab.errors import UserError
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo

NOT_FIGURES = ("floor", "comparison", "environment", "errors", "settings", "datasets", "analysis")


@dataclass(frozen=True)
class Difference:
    """A metric beside the baseline's at the same L0, and the half width of the difference's 95% interval."""

    value: float
    reference: float
    difference: float
    half_width: float

    @property
    def within_noise(self) -> bool:
        return abs(self.difference) <= self.half_width


@dataclass
class Run:
    """What is known of one run; `counts` is False where its verdict is that it does not."""

    number: int
    figures: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)  # by the title of the metric
    own: dict[str, float] = field(default_factory=dict)  # the idea's own measures, by title or name
    verdict: str = ""
    counts: bool = True
    info: FinalInfo | None = None

    def of(self, quantity: Quantity, said: str = "") -> dict[str, float]:
        """The figures of a quantity, by path."""
        return {path: self.figures[path] for path in quantity.paths(self.figures, said)}

    def compared(self, quantity: Quantity, said: str = "") -> str | None:
        """The title under which a quantity's difference from the baseline is known."""
        titles = [title for title in self.differences if quantity.said.fullmatch(title)]
        exact = [title for title in titles if title.lower() == said.lower()]
        return next(iter(exact or ([] if re.search(r"\d", said) and quantity.name != "L0" else titles)), None)

    @property
    def l0(self) -> float | None:
        return next(iter(self.of(L0).values()), None)

    @property
    def untrained(self) -> str:
        """How it is known that nothing was trained; empty where it is not."""
        steps = self.of(STEPS)
        path = next((path for path, value in steps.items() if value == 0), None)
        return f"{path} is 0" if path else ""


@dataclass
class Facts:
    runs: dict[int, Run]

    def name(self, run: int) -> str:
        return f"run {run}" if run else "the baseline"

    def identical(self, a: int, b: int) -> bool:
        """Whether two runs have the same figures, and at least two of them."""
        one, two = self.runs[a].figures, self.runs[b].figures
        measured = {path for path in one.keys() & two.keys() if not STEPS.paths({path: 0.0})}
        return one == two and len(measured) >= 2

    def l0_apart(self, a: int, b: int) -> str:
        """How far apart the L0 of two runs are, where that is further than runs compare at; else empty."""
        one, two = self.runs[a].l0, self.runs[b].l0
        if (
            one is None
            or two is None
            or min(one, two) <= 0
            or abs(one / two - 1) <= MATCH
            or abs(two / one - 1) <= MATCH
        ):
            return ""
        apart = f"{self.name(a)} has L0 {one:g} and {self.name(b)} {two:g}"
        return f"{apart}, more than {MATCH:.0%} apart: they do not compare"


def from_notes(notes: Notes) -> Facts:
    """The figures that stand in the notes themselves."""
    facts = Facts({})
    for noted in notes.runs:
        facts.runs.setdefault(noted.number, Run(noted.number, noted.figures, noted.settings))
    return facts


def from_directory(directory: Path) -> Facts:
    """The figures of a study's run directories. Raises UserError."""
    runs = {}
    for path in sorted(directory.glob("run_*/final_info.json")):
        if number := re.fullmatch(r"run_(\d+)", path.parent.name):
            runs[int(number[1])] = _read(path, int(number[1]))
    if not runs:
        raise UserError(f"{directory} holds no run_<i>/final_info.json: give the directory of a study's runs")
    return Facts(runs)


def _read(path: Path, number: int) -> Run:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    figures, settings = flatten({key: value for key, value in content.items() if key not in NOT_FIGURES})
    try:
        info = FinalInfo.model_validate(content)
    except ValidationError:
        return Run(number, figures, settings)
    run = Run(number, figures, settings, info=info, verdict=info.verdict.name, counts=info.verdict.ok)
    run.own = {name: value for name, value in info.analysis.items() if value is not None}
    for name, each in (info.comparison.metrics if info.comparison else {}).items():
        title = METRICS[name].title if name in METRICS else name
        run.differences[title] = Difference(each.value, each.reference, each.difference, each.half_width)
    return run
