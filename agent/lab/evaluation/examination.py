"""Alias of `idea_analysis`, for ideas written for an earlier layout."""

from agent.lab.evaluation.idea_analysis import Examination

__all__ = ["Examination"]
