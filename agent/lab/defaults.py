"""What a study and its baseline start from on each model, where the idea and the user say nothing. No torch here."""

from dataclasses import dataclass
from pathlib import Path

WORLD_FILE = "synthetic_model_config.json"  # a directory with it in holds a world that sae_lens saved
WORLD_HOOK = "activations"  # the one place in a world that an SAE can sit


@dataclass(frozen=True)
class Defaults:
    """Fixed settings of a study, and the baseline's own constants."""

    hook_name: str
    tokens: int  # on a world: samples
    d_sae: int
    k: float  # latents active per token
    batch: int
    learning_rate: float
    primary_metric: str
    smallest_effect: float  # of the primary metric


LANGUAGE_MODEL = Defaults("blocks.1.hook_resid_post", 1_500_000, 1024, 16, 1024, 2e-3, "ce_loss_score", 0.005)

# SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687) at its own size, and by the same recipe at an eighth.
WORLDS = {
    "synth2k": Defaults(WORLD_HOOK, 1_000_000, 512, 8, 256, 1e-3, "f1", 0.01),
    "synth-sae-bench-16k": Defaults(WORLD_HOOK, 50_000_000, 4096, 25, 1024, 3e-4, "f1", 0.01),
}


def is_world(model: str) -> bool:
    """Whether a model is a synthetic world: one of WORLDS, or a directory that holds one."""
    return model in WORLDS or Path(model).expanduser().joinpath(WORLD_FILE).is_file()


def of(model: str) -> Defaults:
    """The defaults of a model; a world of the user's own has those of synth2k."""
    return WORLDS.get(model, WORLDS["synth2k"]) if is_world(model) else LANGUAGE_MODEL
