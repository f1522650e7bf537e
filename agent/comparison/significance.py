"""The statistics behind a comparison: spread of seeds, t intervals, Holm's correction."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from agent.lab.results import MetricComparison

ALPHA = 0.05

Key = TypeVar("Key", bound=Hashable)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of the population that at least two values were drawn from."""
    center = mean(values)
    return math.sqrt(sum((value - center) ** 2 for value in values) / (len(values) - 1))


def compare_to_reference(value: float, reference: float, noise: float, error: float, df: int) -> MetricComparison:
    """Test a value against a reference by Student's t with `df` degrees of freedom.

    `noise` is the standard deviation of one training, `error` the standard error of the difference.
    """
    from scipy.special import stdtr, stdtrit  # here because the driver starts sooner without it

    p = 2 * float(stdtr(df, -abs(value - reference) / error))
    half_width = float(stdtrit(df, 1 - ALPHA / 2)) * error
    return MetricComparison(
        value=value, reference=reference, noise=noise, standard_error=error, half_width=half_width, p=p, df=df
    )


def half_width_per_error(df: int) -> float:
    """Return the half width of an interval, in standard errors with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - ALPHA / 2))


def smallest_detectable(comparison: MetricComparison, runs: int) -> float:
    """Return the difference that would have been detected whatever the results of the study's other runs."""
    from scipy.special import stdtrit

    return float(stdtrit(comparison.df, 1 - ALPHA / 2 / runs)) * comparison.standard_error


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p-values so that the chance of any false finding among them is what it would be for one.

    Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm({"run 1": 0.01, "run 2": 0.04, "run 3": 0.03})
    {'run 1': 0.03, 'run 3': 0.06, 'run 2': 0.06}
    """
    corrected: dict[Key, float] = {}
    largest = 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[key] = largest
    return corrected
