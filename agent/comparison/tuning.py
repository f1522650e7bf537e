"""The baseline's learning rate, tuned before a study's first run where the model's own is a guess.

A baseline with a poor rate makes any change that happens to train better look like a better SAE. The rates are judged
by what their trainings reconstruct of their own training text: no score, and no held-out text, is looked at. With an L1
coefficient a rate that leaves a higher L0 reconstructs more, so there the whole loss is what counts.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.comparison.baselines import RATES
from agent.comparison.referee import Referee
from agent.comparison.significance import mean
from agent.display.formatting import rate_line
from agent.ideas import render_baseline
from agent.lab import results
from agent.lab.verdicts import MetricsRow, Verdict
from agent.running.job_queue import Ended, fault_of_machine
from agent.running.jobs import Job, Outcome, Training
from agent.study import events, job_names
from agent.study.records import RateTry

# Of the model's own rate, which is off by an unknown factor. The error is flat near the best rate: on tiny-lm a rate of
# half of it costs 2%, and one of a quarter or of twice it 9% (lab/defaults.py). Steps of 3 span an order of magnitude,
# and leave a best rate in between at most a factor of 1.7 away.
FACTORS = (1 / 3, 1.0, 3.0)
SHARE = 10  # a try trains on 1 over this of the study's tokens, so that tuning costs less than one baseline,
LEAST_STEPS = 200  # and at least for so many steps: 4 warm up, 60 decay, and the error of two rates has come apart
LAST = 10  # the error is the mean over the last 1 over this of the training, where the rate has nearly fallen to zero
DIVERGED = {"nan", "loss_ceiling"}  # verdicts on the rate itself, which another study would come to as well


class Found(BaseModel):
    """The tries of an earlier study, in the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    tries: list[RateTry]


class Tuning:
    """Tries learning rates for a study's baseline, and records the one whose training reconstructs best."""

    def __init__(self, referee: Referee) -> None:
        self.ledger, self.queue, self.display = referee.ledger, referee.queue, referee.display
        self.baselines, self.started = referee.baselines, referee.started

    @property
    def is_due(self) -> bool:
        """True if the study has not tuned its rate and is to do so before its first run."""
        return self.started.tune and self.ledger.state.rate is None and not self.ledger.state.runs

    @property
    def rates(self) -> list[float]:
        """The learning rates to try, in rising order."""
        own = self.started.fixed.learning_rate
        return [float(f"{own * factor:.2g}") for factor in FACTORS]

    @property
    def judged_by(self) -> Literal["mean squared error", "loss"]:
        return "mean squared error" if self.started.fixed.architecture.knob == "K" else "loss"

    @property
    def tokens(self) -> int:
        """The tokens that each try is trained on."""
        fixed = self.started.fixed
        least = LEAST_STEPS * fixed.batch
        return min(fixed.tokens, max(fixed.tokens // SHARE, least))

    def start_next(self) -> bool:
        """Start the next try, or find all of them in the cache; return False if none is left to start.

        Raise HoursSpent if the hours do not allow the first. The others follow it: a rate alone says nothing.
        """
        if found := self._found():
            self._record(found.tries, seconds=0.0)
            return True
        missing = [rate for rate in self.rates if job_names.rate(rate) not in self.ledger.state.jobs]
        if len(missing) == len(self.rates):
            self.ledger.budget.require_hours()
        return bool(missing) and self._start(missing[0])

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record the best rate once all tries have ended; return False before, or if the job is another's."""
        names = [job_names.rate(rate) for rate in self.rates]
        if name not in names:
            return False
        if failure := ended if isinstance(ended, Verdict) else fault_of_machine(ended):
            self.queue.lose(name, failure)
            return True
        outcomes = [outcome for each in names if isinstance(outcome := self.queue.ended(each), Outcome)]
        if len(outcomes) < len(names):
            return False
        tries = [self._read(rate, outcome) for rate, outcome in zip(self.rates, outcomes, strict=True)]
        if all(each.error is not None or each.why_not in DIVERGED for each in tries):
            content = Found(tokens=self.tokens, tries=tries).model_dump_json()
            self.baselines.save_file(RATES, content.encode())
        self._record(tries, sum(outcome.training_seconds for outcome in outcomes))
        for each in names:
            self.queue.forget(each)
        return True

    def _found(self) -> Found | None:
        """Return what an earlier study found of the same rates, or None."""
        content = self.baselines.cached_file(RATES)
        try:
            found = Found.model_validate_json(content or b"")
        except ValidationError:
            return None
        same = found.tokens == self.tokens and [each.rate for each in found.tries] == self.rates
        return found if same else None

    def _start(self, rate: float) -> bool:
        fixed, timeout = self.started.fixed, self.ledger.budget.training_timeout
        shortened = fixed.model_copy(update={"tokens": self.tokens})
        training = Training(
            source=render_baseline(shortened, rate=rate),
            directory=job_names.rate(rate),
            seed=fixed.seed,
            timeout=timeout,
            tokens=self.tokens,
        )
        job = Job(label=f"learning rate {rate:g}", training=training, request=None, timeout=timeout)
        return self.queue.submit(job_names.rate(rate), job)

    def _record(self, tries: list[RateTry], seconds: float) -> None:
        """Record the rate with the least error, or the model's own if no try has one."""
        measured = [(each.error, each.rate) for each in tries if each.error is not None]
        rate = min(measured)[1] if measured else self.started.fixed.learning_rate
        figures = {"rate": rate, "tokens": self.tokens, "tries": tries, "seconds": seconds}
        tuned = events.RateTuned(**figures, judged_by=self.judged_by)
        self.ledger.append(tuned)
        self.baselines.custody.artefacts.record(self.baselines.sealed_files())  # those of this rate
        self.display.say(rate_line(tuned))

    def _read(self, rate: float, outcome: Outcome) -> RateTry:
        """Return the error that a training left, or why there is none."""
        if failure := outcome.failure:
            return RateTry(rate=rate, error=None, why_not=failure.name)
        error = final_error(results.read_metrics(outcome.run_dir), whole_loss=self.judged_by == "loss")
        return RateTry(rate=rate, error=error, why_not="" if error is not None else "nan")


def final_error(rows: list[MetricsRow], *, whole_loss: bool = False) -> float | None:
    """Return the mean squared error, or the loss, over the last rows of a training; None if one of them has none."""
    last = [row.loss if whole_loss else row.mse for row in rows[-max(1, len(rows) // LAST) :]]
    finite = [error for error in last if error is not None]
    return mean(finite) if finite and len(finite) == len(last) else None
