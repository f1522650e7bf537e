"""The work of a run beside its baseline's: what is compared, and what is too short or too unlike to be."""

import pytest

from agent.ideas import Fixed
from agent.lab.results import FinalInfo, Training, Work
from agent.study.agreement import departure, work_ratio

BASELINE = Work(rows=1_000_000, cpu_seconds=100.0, machine="2 threads of X")


@pytest.mark.parametrize(
    ("work", "baseline", "ratio"),
    [
        (Work(rows=500_000, cpu_seconds=100.0, machine="2 threads of X"), BASELINE, 2.0),
        (Work(rows=1_000_000, cpu_seconds=100.0, machine="4 threads of Y"), BASELINE, None),
        (Work(rows=0, cpu_seconds=100.0, machine="2 threads of X"), BASELINE, None),
        (BASELINE, None, None),
        (None, BASELINE, None),
        # Two runs of one stand-in experiment: the start of Python alone took between 0.06 and 0.09 s.
        (BASELINE.model_copy(update={"cpu_seconds": 0.09}), BASELINE.model_copy(update={"cpu_seconds": 0.06}), None),
    ],
)
def test_the_work_of_a_row_is_a_multiple_of_the_baselines(
    work: Work | None, baseline: Work | None, ratio: float | None
):
    assert work_ratio(work, baseline) == ratio


@pytest.mark.parametrize(("cpu_seconds", "said"), [(790.0, ""), (810.0, "each row took 8.1 times the baseline's work")])
def test_above_eight_times_the_work_is_a_departure(cpu_seconds: float, said: str):
    fixed = Fixed(tokens=1_000_000)
    settings = {"model": fixed.model, "hook_name": fixed.hook_name, "d_sae": fixed.d_sae, "tokens": fixed.tokens}
    training = Training.model_construct(**settings)
    info = FinalInfo.model_construct(training=training, work=BASELINE.model_copy(update={"cpu_seconds": cpu_seconds}))
    found = departure(fixed, info, 1_000_000, BASELINE)
    assert found.startswith(said)
    assert bool(found) == bool(said)
