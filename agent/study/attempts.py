"""How often, and after which verdicts, a run is tried again.

A killed attempt is repeated as it was: nothing is wrong with its code. Any other failure that an edit can mend is
followed by another proposal for the same run.
"""

from agent.lab.verdicts import NOT_RETRYABLE, Verdict

ATTEMPTS = 4  # tries at a run before it counts as failed


def repeats_after_kill(attempt: int) -> bool:
    """Return True if a run whose attempt was cut short (the driver ended, Ctrl-C) is trained again."""
    return attempt < ATTEMPTS


def allows_another_proposal(verdict: Verdict, attempt: int) -> bool:
    """Return True if an edit can mend this verdict and the run has attempts left."""
    return verdict.name not in NOT_RETRYABLE and attempt < ATTEMPTS
