"""An alias of `idea_analysis`, for ideas that were written for an earlier layout."""

from agent.lab.evaluation.idea_analysis import Examination

__all__ = ["Examination"]
