"""The first tokens of a training, tried before the whole of it: whether they lead where the baseline's do, and whether
they lead to the same end if they are cut short half-way and go on from the saved state."""

import math
from pathlib import Path

from agent.lab import results
from agent.lab.defaults import SMOKE_TOKENS
from agent.study import digests

ALIKE = 0.01  # of a figure, by which two trainings on a GPU may differ after a few steps
TENSORS = "checkpoint/tensors.safetensors"
CHECKPOINT = "smoke_checkpoint"  # in the environment of final_info.json: the hash of the checkpoint they left


def like_the_baselines(found: str, baselines: str, tokens: int) -> str:
    """Return a warning if the checkpoint that they left has the hash of the baseline's, else ""; `tokens` are those of
    the whole training. An empty hash is not known."""
    if not found or found != baselines:
        return ""
    return f"the first {min(tokens, SMOKE_TOKENS):,} tokens are those of the baseline; a change that acts later is fine"


def goes_on_otherwise(whole: Path, again: Path, exact: bool) -> str:
    """Return how a training that went on from a saved state, `again`, differs from one that was not cut short; "" if it
    does not. Where figures are not `exact`, as on a GPU, they may differ by ALIKE of their size. Raise BadFile."""
    expected, found = results.read_metrics(whole), results.read_metrics(again)
    if [row.step for row in expected] != [row.step for row in found]:
        return f"it ended after {found[-1].step if found else 0} steps, undisturbed after {expected[-1].step}"
    for one, other in zip(expected, found, strict=True):
        for name in ("loss", "l0", "mse", "alive_fraction", "grad_norm"):
            a, b = getattr(one, name), getattr(other, name)
            if a != b and (exact or a is None or b is None or not math.isclose(a, b, rel_tol=ALIKE)):
                return f"{name} up to step {one.step} is {b}, undisturbed {a}"
    if exact and digests.of_file(whole / TENSORS) != digests.of_file(again / TENSORS):
        return "its tensors differ from those of an undisturbed training"
    return ""
