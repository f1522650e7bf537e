"""The front over K: a confirmed winner and the baseline, trained once more at other K. Nothing is decided by it.

It is scored on the development split: the test split is for what it decides, and each use makes it a little less fresh.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from agent import constants
from agent.comparison import judgement, matching
from agent.comparison.confirmation import Confirmation
from agent.comparison.curves import has_k
from agent.comparison.judgement import Judgement, judgements
from agent.comparison.referee import Referee
from agent.ideas import Fixed
from agent.lab import results
from agent.lab.defaults import LEAST_WIDTH
from agent.lab.errors import UserError
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.running.job_queue import Ended, fault_of_machine
from agent.running.jobs import Outcome
from agent.study import digests, events, job_names
from agent.study.agreement import departure
from agent.study.runs import Run


def parse_ks(text: str, fixed: Fixed) -> tuple[float, ...]:
    """Return the K of `--ks`. Raise UserError unless they are numbers that rise, from 1 to an eighth of d_sae, and the
    baseline's kind has such K."""
    kind, d_sae = fixed.architecture, fixed.d_sae
    if not has_k(fixed):
        every = "the baseline is trained with five coefficients in every study"
        raise UserError(f"--ks {text}: {kind.title} has no K, but an {kind.knob_in_words}; {every}")
    try:
        ks = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--ks {text}: give numbers with commas between, such as 40,80,160") from None
    for k in ks:
        if not math.isfinite(k) or not 1 <= k <= d_sae / LEAST_WIDTH:
            most = f"{d_sae // LEAST_WIDTH}, an eighth of d_sae {d_sae}"
            raise UserError(f"--ks {text}: {k:g} is not between 1 and {most}")
        if kind.whole and k != int(k):
            raise UserError(f"--ks {text}: {kind.title} keeps a whole number of latents per token, not {k:g}")
    for low, high in pairwise(ks):
        if low >= high:
            raise UserError(f"--ks {text}: {high:g} follows {low:g}: give each K once, in rising order")
    return ks


def with_k(source: str, k: float) -> str | None:
    """Return an experiment with another K, or None if it has no constant K to change."""
    own = constants.assigned(source).get("K")
    if own is None or constants.literal(own) is constants.UNKNOWN:
        return None
    return constants.replaced(source, {"K": int(k) if k == int(k) else k})


def winner(runs: Sequence[Run], judged: Mapping[int, Judgement], primary: str) -> Run | None:
    """Return the confirmed winner with the greatest improvement, or None if no run is better."""
    return next(iter(judgement.ranked(runs, judged, "better", primary)), None)


class Front:
    """Trains the winner of a study, and the baseline, at the K that it was asked for."""

    def __init__(self, referee: Referee, confirmation: Confirmation) -> None:
        self.referee, self.confirmation = referee, confirmation
        self.study, self.ledger, self.queue = referee.study, referee.ledger, referee.queue

    def start_next(self) -> bool:
        """Start the next training; return False if none is left that can start, or the hours do not allow it."""
        started = self.referee.started
        if not started.ks or not self.confirmation.is_through or not self.ledger.budget.allows_hours:
            return False
        runs = self.referee.runs
        best = winner(runs, judgements(runs, self.ledger.state), started.primary_metric)
        if best is None:
            return False
        return any(self._start_run(best, k) or self._start_baseline(k) for k in started.ks)

    def take_in(self, name: str, ended: Ended) -> bool:
        """Record how the training of a winner ended; return False if it is another's job."""
        found = job_names.at_k_of(name)
        if found is None:
            return False
        if self.queue.ask_again(name, fault_of_machine(ended)):
            return True
        if isinstance(ended, Verdict):
            self._record(*found, FinalInfo(verdict=ended), 0.0)
        else:
            self._record(*found, self._results(name, ended), ended.seconds)
        self.queue.forget(name)
        return True

    def _start_baseline(self, k: float) -> bool:
        state, seed = self.ledger.state, self.referee.started.fixed.seed
        if (k, seed) in state.baselines_tried or job_names.baseline(k, seed) in state.jobs:
            return False
        return self.referee.start_baseline(k, seed)

    def _start_run(self, run: Run, k: float) -> bool:
        state, name = self.ledger.state, job_names.at_k(run.number, k)
        source = with_k(run.state.proposal.source, k)
        if source is None or (run.number, k) in state.front or name in state.jobs:
            return False
        if source == run.state.proposal.source:
            assert run.info
            self._record(run.number, k, run.info, 0.0)
            return True
        label, seed = f"run {run.number} with K {k:g}", self.referee.started.fixed.seed
        run_dir = self.study.directory / name
        job = self.referee.baselines.training(source, seed, run_dir, label, self.ledger.budget)
        return self.queue.submit(name, job)

    def _results(self, name: str, ended: Outcome) -> FinalInfo:
        """Take in a training, and return its results; those of one that departed from what was agreed do not count."""
        run_dir, fixed = self.study.directory / name, self.referee.started.fixed
        info = self.referee.baselines.results_of(ended, run_dir, ended.work)
        if not info.verdict.ok:
            return info
        difference = departure(fixed, info, results.rows_stepped(run_dir), self.referee.baseline_work)
        return FinalInfo(verdict=Verdict(name="not_comparable", evidence=difference)) if difference else info

    def _record(self, run: int, k: float, info: FinalInfo, seconds: float) -> None:
        verdict = info.verdict
        self.referee.custody.commit(f"run {run} with K {k:g}: {verdict.name}")
        self.ledger.append(
            events.FrontScored(
                run=run,
                k=k,
                figures=matching.all_metrics(info) if verdict.ok else {},
                why_not="" if verdict.ok else f"{verdict.name}: {verdict.evidence}",
                seconds=seconds,
                digests=digests.of_run(self.study.directory / job_names.at_k(run, k)),
            )
        )
        self.referee.display.say(f"run {run} with K {k:g}: {verdict.name} ({seconds:.0f} s)")
