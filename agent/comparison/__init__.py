"""The statistics: a run against the baseline at the same L0, and what may be said of the difference."""
