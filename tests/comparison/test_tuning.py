"""The learning rate of a baseline: how a try is judged, what is said of it, and where the rate that was found goes."""

import pytest
from builders import STARTED

from agent import ideas
from agent.comparison.tuning import final_error
from agent.display.formatting import rate_line
from agent.ideas import Fixed
from agent.lab.verdicts import MetricsRow
from agent.proposers.template import TemplateProposer, baseline_proposal
from agent.study.events import RateTuned
from agent.study.records import RateTry
from agent.study.state import derive

IDEA = ideas.load("matryoshka_sae")


def tuned(rate: float, *errors: float | None) -> RateTuned:
    """Return what came of the rates 0.001, 0.003 and 0.009, which left these errors."""
    tries = [
        RateTry(rate=each, error=error, why_not="" if error else "nan")
        for each, error in zip((0.001, 0.003, 0.009), errors, strict=True)
    ]
    return RateTuned(rate=rate, tokens=204_800, tries=tries, seconds=3.0)


def row(step: int, mse: float | None) -> MetricsRow:
    return MetricsRow(
        step=step,
        tokens=step,
        loss=1.0,
        l0=16.0,
        mse=mse,
        alive_fraction=1.0,
        learning_rate=1e-3,
        grad_norm=1.0,
        seconds=1,
    )


def test_a_try_is_judged_by_the_last_tenth_of_its_training():
    falling = [row(step, 1 / step) for step in range(1, 21)]
    assert final_error(falling) == pytest.approx((1 / 19 + 1 / 20) / 2)
    assert final_error([row(1, 0.5), row(2, 0.25)]) == 0.25
    assert final_error([*falling[:-1], row(20, None)]) is None
    assert final_error([]) is None
    assert final_error(falling, whole_loss=True) == 1.0


def test_a_line_states_what_each_rate_left():
    assert rate_line(tuned(0.003, 0.41, 0.39, 0.4)) == (
        "The baseline's learning rate is 0.003, the best of 3 that were each tried on 204,800 training tokens: "
        "their mean squared error at the end was 0.41 at 0.001, 0.39 at 0.003, 0.4 at 0.009."
    )


@pytest.mark.parametrize(
    ("rate", "errors", "said"),
    [
        (0.009, (0.41, 0.4, 0.39), "It is the largest of these: a larger one may be better still."),
        (0.001, (0.39, 0.4, None), "nan at 0.009. It is the smallest of these: a smaller one may be better still."),
        (0.003, (None, None, None), "0.003, the model's own: no try came to its end (nan at 0.001, nan at 0.003, nan"),
    ],
)
def test_a_line_says_what_the_tries_leave_open(rate: float, errors: tuple[float | None, ...], said: str):
    assert said in rate_line(tuned(rate, *errors))


def test_the_rate_that_was_found_is_that_of_the_baseline_and_of_every_step():
    fixed = Fixed()
    state, proposer = derive([STARTED, tuned(0.009, 0.41, 0.4, 0.39)]), TemplateProposer(IDEA, fixed)
    step = proposer.propose(state, lambda *_: None, 1)
    assert step
    for proposal in (step, baseline_proposal(fixed, state.learning_rate)):
        assert "\nLEARNING_RATE = 0.009  #" in proposal.source
    untuned = proposer.propose(derive([STARTED]), lambda *_: None, 1)
    assert untuned
    assert untuned.source.replace("LEARNING_RATE = 0.008 ", "LEARNING_RATE = 0.009 ") == step.source
