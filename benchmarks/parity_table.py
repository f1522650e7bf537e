"""Read two sides' trainings at the same L0, and tell their difference from the noise of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.05  # of Student's t, for each figure alone

Figures = dict[str, Any]  # of a training


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two sides at the same L0."""

    metric: str
    ours: float  # mean over seeds, at the other side's mean L0
    theirs: float
    noise: float  # standard deviation of one training's seed, pooled over both sides
    seeds: int  # of each side

    @property
    def of_noise(self) -> float:
        """The difference in standard deviations of a seed; infinite where seeds do not differ."""
        difference = self.ours - self.theirs
        return difference / self.noise if self.noise else math.copysign(math.inf, difference) if difference else 0.0

    @property
    def within(self) -> bool:
        """True if Student's t does not tell the two means apart."""
        critical = stats.t.ppf(1 - LEVEL / 2, 2 * (self.seeds - 1))
        return bool(abs(self.of_noise) <= critical * math.sqrt(2 / self.seeds))


def compare(metric: str, ours: Sequence[Figures], near: Sequence[Figures], theirs: Sequence[Figures]) -> Difference:
    """Compare the means of a metric, all trainings read at the mean L0 of `theirs`.

    The slope over log L0 is a least-squares line through `ours`, at one knob, and `near`, at others. The sides have two
    seeds each at least, and equally many.
    """
    assert len(ours) == len(theirs) > 1
    l0 = np.exp(np.mean([np.log(run["l0"]) for run in theirs]))
    slope = np.polyfit([math.log(run["l0"]) for run in [*ours, *near]], [run[metric] for run in [*ours, *near]], 1)[0]
    read = [[run[metric] + slope * math.log(l0 / run["l0"]) for run in side] for side in (ours, theirs)]
    noise = math.sqrt(np.mean([np.var(values, ddof=1) for values in read]))
    return Difference(metric, float(np.mean(read[0])), float(np.mean(read[1])), noise, len(ours))


HEAD = """\
| model | baseline | knob | L0: ours, SAELens, its own start | explained variance, ours | SAELens | difference \
| in seed noise | to its own start | in seed noise | alive: ours, SAELens, its own start |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(ours: Sequence[Figures], near: Sequence[Figures], others: Sequence[Sequence[Figures]]) -> tuple[str, Figures]:
    """Return a line of the table, and its figures; `others` are SAELens' trainings from our start and from its own."""
    first, sides = ours[0], (ours, *others)
    l0, alive = ([float(np.mean([run[name] for run in side])) for side in sides] for name in ("l0", "alive_fraction"))
    variance = [compare("explained_variance_centered", ours, near, other) for other in others]
    cells = [first["model"], first["kind"], f"{first['knob']:g}", ", ".join(f"{value:.2f}" for value in l0)]
    cells += [f"{variance[0].ours:.4f}", f"{variance[0].theirs:.4f}"]
    for difference in variance:
        cells += [f"{difference.ours - difference.theirs:+.4f}"]
        cells += [f"{difference.of_noise:+.1f}{'' if difference.within else ' (beyond)'}"]
    cells += [", ".join(f"{value:.3f}" for value in alive)]
    figures = {name: first[name] for name in ("model", "kind", "knob", "rate", "tokens")}
    figures |= {"l0": l0, "alive_fraction": alive, "trainings": [*near, *(run for side in sides for run in side)]}
    differences = [vars(each) | {"of_noise": each.of_noise, "within": each.within} for each in variance]
    return f"| {' | '.join(cells)} |", figures | {"explained_variance_centered": differences}
