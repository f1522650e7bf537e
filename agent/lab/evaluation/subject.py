"""An alias of `sae_adapter`, for ideas that were written for an earlier layout."""

from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE, PartSAE

__all__ = ["BenchSAE", "CheckpointSAE", "PartSAE"]
