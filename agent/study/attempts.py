"""How often, and after which verdicts, a run is tried again.

A killed attempt is repeated as it was: nothing is wrong with its code. Any other failure that an edit can mend is
followed by another proposal for the same run.
"""

from agent.lab.verdicts import NOT_RETRYABLE, Verdict

ATTEMPTS = 4  # tries at a run before it counts as failed
NOT_APPROVED = "not approved by the researcher"  # how the evidence begins where a person refused a change


def repeats_after_kill(attempt: int) -> bool:
    """Return True if a run whose attempt was cut short (the driver ended, Ctrl-C) is trained again."""
    return attempt < ATTEMPTS


def allows_another_proposal(verdict: Verdict, attempt: int) -> bool:
    """Return True if an edit can mend this verdict and the run has attempts left."""
    return verdict.name not in NOT_RETRYABLE and attempt < ATTEMPTS


def refusal(reason: str) -> Verdict:
    """Return the verdict on a change that a person refused, for a reason that may be empty."""
    return Verdict(name="preflight", evidence=f"{NOT_APPROVED}: {reason}" if reason else NOT_APPROVED)


def refused_by_person(verdict: Verdict) -> bool:
    """Return True if a person refused the change that a verdict is on."""
    return verdict.name == "preflight" and verdict.evidence.startswith(NOT_APPROVED)
