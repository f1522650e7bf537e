"""Alias of `sae_adapter`, for ideas written for an earlier layout."""

from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE, PartSAE

__all__ = ["BenchSAE", "CheckpointSAE", "PartSAE"]
