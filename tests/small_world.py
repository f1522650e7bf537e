"""A small synthetic world, and examinations of SAEs whose latents are projections onto their decoder rows."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from small_lab import CONTEXT
from small_sae import header

from agent.lab import checkpoint, worlds
from agent.lab.evaluation.evaluator import HeldOut
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.sae_adapter import CheckpointSAE, bench_config
from agent.lab.evaluation.world_evaluator import WorldEvaluator

FEATURES = 64


def make_evaluator(directory: Path) -> WorldEvaluator:
    """Build the world in a directory and return its evaluator."""
    worlds.build(worlds.world_config(FEATURES, 24, 4)).save(directory)
    return WorldEvaluator(str(directory), "activations")


def examined(
    folder: Path, evaluator: Any, held_out: HeldOut, W_dec: torch.Tensor, groups: Any, scale: float = 1.0
) -> Examination:
    """Return the examination of an SAE whose latents are the positive projections onto its decoder rows."""
    d_sae, d_in = W_dec.shape
    training = header().training.model_copy(update={"d_in": d_in, "d_sae": d_sae})
    described = header(d_in=d_in, d_sae=d_sae, scale=scale, groups=groups, training=training)
    checkpoint.save(folder / "checkpoint", lambda x: (x @ W_dec.T).relu(), W_dec, torch.zeros(d_in), described)
    cfg = bench_config("small", described.hook_name, d_in, d_sae, CONTEXT)
    sae = CheckpointSAE(cfg, checkpoint.load(folder / "checkpoint"), held_out.activations[:16])
    return Examination(evaluator, sae, held_out, folder)


def on_world(folder: Path, evaluator: WorldEvaluator, features: list[int], groups: Any) -> Examination:
    """Return the examination of an SAE whose decoder rows are these features, in this order."""
    directions = F.normalize(evaluator.world.feature_dict.feature_vectors, dim=1)
    return examined(folder, evaluator, evaluator.held_out("dev", 16), directions[features], groups)
