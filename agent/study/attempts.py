"""How often, and after which verdicts, a run is tried again."""

ATTEMPTS = 4  # tries at a run before it counts as one that failed
