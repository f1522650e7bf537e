"""Default settings of a study and its baseline by model, where the idea and the user give none. No torch here."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from agent.lab.architectures import BaselineName

DTYPES = ("float32", "bfloat16")  # of a language model
SAE_BENCH = "sae-bench"  # the wish to be evaluated on SAE-Bench's own data; see evaluation/published.py
THREADS = "SAE_AGENT_THREADS"  # the variable with the number of threads of each process of a study
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")  # of threads
SETUP_FILE = "setup.json"  # in the directory of a study: what its runs have in common
EVALUATION_DATA = "SAE_AGENT_EVALUATION_DATA"  # the variable that holds that wish, pinned
WORLD_FILE = "synthetic_model_config.json"  # a directory with this file holds a world that sae_lens saved
WORLD_HOOK = "activations"  # the only hook of a world
SMOKE_TOKENS = 20_000  # that a smoke test trains on
CONTEXT = 128  # tokens in a window of text, SAE-Bench core's default; longer ones cost attention time
LEAST_CONTEXT = 16  # tokens; fewer leave hardly one after the special ones
CONTEXT_VARIABLE = "SAE_AGENT_CONTEXT"  # the variable with another number of them
BEGIN_VARIABLE = "SAE_AGENT_BEGIN"  # "0": a window of text does not begin with the beginning token
STATE_FILE = "state_{}.safetensors"  # in the directory of a run: a training's saved state, after so many rows
SAVE_EVERY = "SAE_AGENT_SAVE_EVERY"  # the variable with the tokens between two saved states, in place of minutes
LEAST_WIDTH = 8  # times K: the latents of an SAE at least, so that a baseline at twice K is not degenerate
MAX_HARVEST = 20_000_000  # rows that are stored; a longer training on text has them made as it reads them
STREAMED_VARIABLE = "SAE_AGENT_STREAMED"  # in the environment of a run by hand: its study streams its rows
SOCKET_VARIABLE = "SAE_AGENT_STREAM"  # in the environment of a training: the descriptor of its socket to serve.py


@dataclass(frozen=True)
class Defaults:
    """The fixed settings of a study, and the baseline's own constants."""

    hook_name: str
    tokens: int  # on a world: samples
    d_sae: int
    k: float  # latents active per token
    batch: int
    l1_coefficient: float  # of a baseline with an L1 loss, on activations scaled to mean norm sqrt(d_in)
    learning_rate: float
    decay: float  # share of the steps over which the learning rate falls to zero
    aux_divisor: int  # 1 over the weight of the dead latents' loss
    dead_windows: int  # a latent is dead after 1 over this of the training without firing
    primary_metric: str
    smallest_effect: float  # of the primary metric


# Of the size of tiny-lm; what studies of other models had before their settings followed from the width.
LANGUAGE_MODEL = Defaults(
    hook_name="blocks.1.hook_resid_post",
    tokens=1_500_000,
    d_sae=1024,
    k=16,
    batch=1024,
    l1_coefficient=1,
    learning_rate=2e-3,
    decay=0.3,
    aux_divisor=32,
    dead_windows=20,
    primary_metric="ce_loss_score",
    smallest_effect=0.005,
)

# Error on the last tenth of the training text, one seed: 0.0634 at 2e-3, 0.0593 at 4e-3, 0.0582 at 8e-3, 0.0637 at
# 16e-3, where latents begin to die.
TINY_LM = replace(LANGUAGE_MODEL, learning_rate=8e-3)
OWN = {"tiny-lm": TINY_LM}  # language models whose settings do not follow from their width, see suited_to

# SynthSAEBench (arXiv 2602.14687) at its own size, and an eighth of it. With a batch of 1,024 synth2k trains too few
# steps and its latents die. A learning rate that falls explains more variance at the cost of F1 (synth2k at 4e-3, one
# seed: 0.712 without a fall, 0.692 over the last 0.3 of the steps, 0.678 over 0.6), and F1 is what a world is for.
# The full weight of the dead latents' loss, and a short wait for it, gave 0.717 (explained variance 0.809 for 0.803).
# The constants of the large world are untried: nothing was trained on it, for want of a GPU.
WORLDS = {
    "synth2k": Defaults(
        hook_name=WORLD_HOOK,
        tokens=1_000_000,
        d_sae=512,
        k=8,
        batch=256,
        l1_coefficient=1,
        learning_rate=4e-3,
        decay=0.001,
        aux_divisor=1,
        dead_windows=100,
        primary_metric="f1",
        smallest_effect=0.01,
    ),
    "synth-sae-bench-16k": Defaults(
        hook_name=WORLD_HOOK,
        tokens=10_000_000,  # 15 GB as they are stored
        d_sae=4096,
        k=25,
        batch=1024,
        l1_coefficient=1,
        learning_rate=1e-3,
        decay=0.001,
        aux_divisor=1,
        dead_windows=100,
        primary_metric="f1",
        smallest_effect=0.01,
    ),
}

# Of other kinds of baseline than BatchTopK, where they have their own. At 8e-3 a ninth of relu's latents die, and more
# than a quarter of gated's (tiny-lm, 300,000 tokens, one seed); at 4e-3 1 in 100 of relu's.
RATES: dict[tuple[str, BaselineName], float] = {("tiny-lm", "relu"): 4e-3, ("tiny-lm", "gated"): 4e-3}
# With which L0 is near the model's K. At its full length tiny-lm has L0 12.8 with relu at 1.4, and 11.4 with gated at
# 2.2; synth2k after 200,000 samples 7.5 and 8.8 with these. One seed each.
L1_COEFFICIENTS: dict[tuple[str, BaselineName], float] = {
    ("tiny-lm", "relu"): 1.2,
    ("tiny-lm", "gated"): 1.8,
    ("synth2k", "relu"): 2.3,
    ("synth2k", "gated"): 3.2,
}

# What follows from the width of another language model. Published widths of gemma-2-2b, with d_in 2,304, are 4,096,
# 16,384 and 65,536 (SAE-Bench, arXiv 2503.09532) and 16,384 up to a million (Gemma Scope, arXiv 2408.05147).
EXPANSION = 8  # times d_in
TOKENS_PER_LATENT = 1500  # as tiny-lm has
MOST_TOKENS = 20_000_000  # by default; that many activations are 92 GB at d_in 2,304
SMALL_BATCHES = ((16_384, 1024), (65_536, 2048))  # d_sae below which a batch is so large
LARGE_BATCH = 4096


def is_world(model: str) -> bool:
    """Return True if a model is a synthetic world: one of WORLDS, or a directory that holds one."""
    return model in WORLDS or Path(model).expanduser().joinpath(WORLD_FILE).is_file()


def is_streamed(model: str, tokens: int, asked: bool = False) -> bool:
    """Return True if rows come from the model as they are read: if it is asked, or they are more than are stored."""
    return not is_world(model) and (asked or tokens > MAX_HARVEST)


def has_tuned_rate(model: str) -> bool:
    """Return True if the learning rate of a model's baseline was tuned beforehand."""
    return model == "tiny-lm" or is_world(model)


def for_model(model: str, baseline: BaselineName = "batchtopk") -> Defaults:
    """Return the defaults of a model, without regard to its width; a world of the user's own has those of synth2k."""
    own = WORLDS.get(model, WORLDS["synth2k"]) if is_world(model) else OWN.get(model, LANGUAGE_MODEL)
    return of_kind(own, model, baseline)


def of_kind(own: Defaults, model: str, baseline: BaselineName) -> Defaults:
    """Return a model's defaults with those that a kind of baseline has of its own.

    As activations are scaled, another language model has the L1 coefficient of tiny-lm, and a world that of synth2k.
    """
    alike = "synth2k" if is_world(model) else "tiny-lm"
    return replace(
        own,
        learning_rate=RATES.get((model, baseline), own.learning_rate),
        l1_coefficient=L1_COEFFICIENTS.get((alike, baseline), own.l1_coefficient),
    )


def width_for(d_in: int) -> int:
    """Return the d_sae that suits activations of this width: EXPANSION times d_in, as a power of two."""
    return 2 ** round(math.log2(EXPANSION * d_in))


def suited_to(d_sae: int, hook_name: str) -> Defaults:
    """Return the defaults of a language model that has none of its OWN, for SAEs of a width.

    K grows with the root of the width: 64 at 16,384 and 128 at 65,536, where SAE-Bench trains K 20 to 640, and the SAE
    of 16,384 that Gemma Scope shows has L0 71. The learning rate falls with the root of the width (Gao et al. 2024,
    arXiv 2406.04093, figure 3), by the constant that dictionary_learning and sparsify use: 2e-4 at 16,384. Batches grow
    with the width, as a latent fires the more rarely the more there are; SAE-Bench's has 2,048 tokens.
    """
    batch = next((size for width, size in SMALL_BATCHES if d_sae < width), LARGE_BATCH)
    return replace(
        LANGUAGE_MODEL,
        hook_name=hook_name,
        d_sae=d_sae,
        k=max(round(math.sqrt(d_sae) / 2), 1),
        tokens=min(_two_digits(TOKENS_PER_LATENT * d_sae), MOST_TOKENS),
        batch=batch,
        learning_rate=float(f"{2e-4 * math.sqrt(16_384 / d_sae):.2g}"),
    )


def _two_digits(number: int) -> int:
    """Return a number rounded to two digits."""
    return int(float(f"{number:.2g}"))
