"""What the knob of a baseline decides: which trainings of it a study needs, and what curve they make.

A kind of SAE with a K is read between levels of K (brackets.py), one with an L1 coefficient from a front that is fitted
to all its trainings (fitted_front.py).
"""

import math
from collections.abc import Container, Mapping, Sequence

from agent.comparison import brackets
from agent.comparison.brackets import Brackets, required_ks
from agent.comparison.fitted_front import LADDER, TERMS, FittedFront, Quadratic, coefficient
from agent.comparison.matching import Curve, Reading, reseeded_level
from agent.comparison.significance import half_width_per_error
from agent.ideas import Fixed
from agent.lab.defaults import LEAST_WIDTH
from agent.study.records import Baseline
from agent.study.state import State


def has_k(fixed: Fixed) -> bool:
    """Return True if a K moves the L0 of a study's baseline, and not an L1 coefficient."""
    return fixed.architecture.knob == "K"


def required_baselines(fixed: Fixed) -> list[tuple[float, int]]:
    """Return knob and seed of the baselines every study needs: first those for judgements, then the rest of the curve.

    With one seed no run is judged, so there are none but those of the curve.
    """
    own = fixed.knob
    if has_k(fixed):
        largest = fixed.d_sae // LEAST_WIDTH
        near, far = required_ks(own, fixed.baseline_seeds, largest, fixed.architecture.whole)
    else:
        others = [coefficient(own, factor) for factor in sorted(LADDER, key=lambda each: abs(math.log(each)))[1:]]
        near, far = (others, []) if fixed.baseline_seeds > 1 else ([], others)
    seeds = [(own, fixed.seed + number) for number in range(fixed.baseline_seeds)]
    neighbours, curve = ([(other, fixed.seed) for other in others] for others in (near, far))
    return [*seeds[:2], *neighbours, *seeds[2:], *curve]


def curve_of(fixed: Fixed, baselines: Sequence[Baseline]) -> Curve:
    """Return the curve that trainings of a study's baseline make."""
    return Brackets(baselines, fixed.architecture.whole) if has_k(fixed) else FittedFront(baselines)


def own_curve(state: State) -> Curve | None:
    """Return the curve of all baselines that a study has measured, or None if there are none yet."""
    return curve_of(state.started.fixed, state.baselines) if state.baselines else None


def read_own(curve: Curve, name: str) -> Reading | None:
    """Read a metric at the L0 of the baseline's own knob; None if nothing can be compared there."""
    l0 = reseeded_level(curve.baselines).l0
    return None if curve.why_not(l0) else curve.read(name, l0)


def beside(
    l0: float,
    fixed: Fixed,
    baselines: Sequence[Baseline],
    tried: Container[float],
    more: Mapping[float, Baseline],
) -> tuple[list[Baseline], float | None]:
    """Return the baselines that a run with this L0 is compared with, and the knob of one that is missing, or None.

    They are the `baselines` that every study has, and those of `more` (by knob) that this L0 needs: what was trained
    for another run is left out, so that a comparison does not depend on which run came first. `tried` are all knobs so
    far.
    """
    used = list(baselines)
    while used and (knob := curve_of(fixed, used).missing(l0)) is not None:
        if knob not in tried:
            return used, knob
        if knob not in more:  # its training failed
            break
        used.append(more[knob])
    return sorted(used, key=lambda each: (each.k, each.seed)), None


def half_width_per_noise(fixed: Fixed) -> float:
    """Return the half width of the interval of a training at the baseline's own L0, in standard deviations of one.

    A front's is that of coefficients with which log L0 falls evenly.
    """
    seeds = fixed.baseline_seeds
    if has_k(fixed):
        return brackets.half_width_per_noise(seeds)
    front = Quadratic([*map(math.log, LADDER), *[0.0] * (seeds - 1)])
    return half_width_per_error(len(front.points) - TERMS) * math.sqrt(1 + front.leverage(0.0))
