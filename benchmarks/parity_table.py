"""Read two sides' trainings at the same L0, and tell their difference from the noise of seeds."""

import math
from collections.abc import Mapping, Sequence
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


def at_their_l0(
    metric: str, ours: Sequence[Figures], near: Sequence[Figures], theirs: Sequence[Figures]
) -> list[list[float]]:
    """Return a metric of the trainings of `ours`, and of `theirs`, all read at the mean L0 of `theirs`.

    The slope over log L0 is a least-squares line through `ours`, at one knob, and `near`, at others.
    """
    l0 = np.exp(np.mean([np.log(run["l0"]) for run in theirs]))
    slope = np.polyfit([math.log(run["l0"]) for run in [*ours, *near]], [run[metric] for run in [*ours, *near]], 1)[0]
    return [[run[metric] + slope * math.log(l0 / run["l0"]) for run in side] for side in (ours, theirs)]


def compare(metric: str, ours: Sequence[Figures], near: Sequence[Figures], theirs: Sequence[Figures]) -> Difference:
    """Compare the means of a metric. The sides have two seeds each at least, and equally many."""
    assert len(ours) == len(theirs) > 1
    read = at_their_l0(metric, ours, near, theirs)
    noise = math.sqrt(np.mean([np.var(values, ddof=1) for values in read]))
    return Difference(metric, float(np.mean(read[0])), float(np.mean(read[1])), noise, len(ours))


METRIC = "explained_variance_centered"
TITLES = {
    "sae_lens_alike": "SAELens with every difference taken away",
    "sae_lens_as_ours": "SAELens",
    "sae_lens": "SAELens from its own start",
}
BUT = "sae_lens_but_"  # begins a side with one difference left; its one column is the difference of ours


def head(others: Sequence[str]) -> str:
    """Return the head of the table."""
    names = ["model", "baseline", "knob", "L0", "explained variance", "alive"]
    for other in others:
        if other.startswith(BUT):
            names.append(other.removeprefix(BUT))
        else:
            names += [f"{TITLES[other]}: L0", "explained variance", "alive", "difference of ours", "in seed noise"]
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def line(
    ours: Sequence[Figures], near: Sequence[Figures], others: Mapping[str, Sequence[Figures] | None]
) -> tuple[str, Figures]:
    """Return a line of the table, and its figures; `others` are SAELens' trainings by their side, if it has any."""
    first = ours[0]
    figures = {name: first[name] for name in ("model", "kind", "rate", "tokens")} | {"ours": [*ours, *near]}
    cells = [first["model"], first["kind"], f"{first['knob']:g}", *usual(ours)]
    for side, theirs in others.items():
        if theirs is None:
            cells.append("")
        elif side.startswith(BUT):
            read = np.mean(at_their_l0(METRIC, ours, near, theirs), axis=1)
            cells.append(f"{read[0] - read[1]:+.4f}")
            figures[side] = {"trainings": theirs, "difference": read[0] - read[1]}
        else:
            read = compare(METRIC, ours, near, theirs)
            in_noise = f"{read.of_noise:+.1f}{'' if read.within else ' (beyond)'}"
            cells += [*usual(theirs), f"{read.ours - read.theirs:+.4f}", in_noise]
            figures[side] = {"trainings": theirs, **vars(read), "of_noise": read.of_noise, "within": read.within}
    return f"| {' | '.join(cells)} |", figures


def usual(runs: Sequence[Figures]) -> list[str]:
    """Return the means of L0, explained variance and the share of live latents."""
    l0, variance, alive = (
        np.mean([run[name] for run in runs]) for name in ("l0", "explained_variance_centered", "alive_fraction")
    )
    return [f"{l0:.2f}", f"{variance:.4f}", f"{alive:.3f}"]
