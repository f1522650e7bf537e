"""Alias of `world_evaluator`, for ideas written for an earlier layout."""

from agent.lab.evaluation.world_evaluator import HeldOutSamples as Drawn
from agent.lab.evaluation.world_evaluator import WorldEvaluator

__all__ = ["Drawn", "WorldEvaluator"]
