"""Train an SAE of a kind of baseline by SAELens' own trainer, on given activations: what benchmarks/baselines.py asks.

What has a counterpart in the baseline is set to it: width, knob, learning rate and its schedule, the window of dead
latents, the rate of the threshold, prefixes. What has none is a difference (sae_lens_alike.py), left or taken away.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
from sae_lens import saes
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

# isort: split
from sae_lens_alike import DIFFERENCES, Alike, Constants

LEFT = {  # of the differences, by side
    "sae_lens": frozenset(DIFFERENCES),
    "sae_lens_as_ours": frozenset(DIFFERENCES) - {"start"},
    "sae_lens_alike": frozenset[str](),
    **{f"sae_lens_but_{name}": frozenset({name}) for name in DIFFERENCES},  # alike but for one
}

# The mean squared error about which the trainings of the benchmark end. The baselines divide the dead latents' loss by
# that of the step, SAELens does not.
RESIDUAL = {"tiny-lm": 0.09, "synth2k": 0.21}

CLASSES: dict[str, tuple[type, type]] = {
    "batchtopk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig),
    "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig),
    "jumprelu": (saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig),
    "gated": (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig),
    "relu": (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig),
    "matryoshka": (saes.MatryoshkaBatchTopKTrainingSAE, saes.MatryoshkaBatchTopKTrainingSAEConfig),
}


def steps_of(constants: Constants) -> int:
    return constants["TOKENS"] // constants["BATCH"]


def options(kind: str, knob: float, constants: Constants, left: frozenset[str]) -> dict[str, Any]:
    """Return what SAELens' configuration of a kind has beyond the widths.

    Its losses are those of the baselines times d_in (and times the number of prefixes), so an L1 coefficient is the
    same number. The knob of jumprelu is the coefficient of L0 if that difference is left: SAELens' loss with a target
    is one of each token's L0.
    """
    steps = steps_of(constants)
    match kind:
        case "topk":
            return {"k": round(knob)}
        case "batchtopk":
            return {"k": knob, "topk_threshold_lr": constants["THRESHOLD_RATE"]}
        case "matryoshka":
            widths = [round(share * constants["D_SAE"]) for share in constants["PREFIXES"]]
            return {"k": knob, "topk_threshold_lr": constants["THRESHOLD_RATE"], "matryoshka_widths": widths}
        case "relu" | "gated":
            return {"l1_coefficient": knob, "l1_warm_up_steps": round(constants["L1_WARMUP"] * steps)}
        case "jumprelu":
            return {
                "jumprelu_init_threshold": constants["THRESHOLD_START"],
                "jumprelu_bandwidth": constants["BANDWIDTH"],
                "l0_coefficient": knob if "l0" in left else constants["L0_COEFFICIENT"],
                "l0_warm_up_steps": round(constants["L0_WARMUP"] * steps),
            }
    raise ValueError(f"no SAELens trainer for {kind}")


def trainer_config(constants: Constants) -> SAETrainerConfig:
    """Return the configuration of the trainer, with the baseline's learning rate and schedule."""
    rate, batch, steps = constants["LEARNING_RATE"], constants["BATCH"], steps_of(constants)
    return SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=rate,
        lr_end=rate,
        lr_warm_up_steps=round(constants["WARMUP"] * steps),
        lr_decay_steps=round(constants["DECAY"] * steps),
        dead_feature_window=max(constants["DEAD_AFTER"] // batch, 1),
        logger=LoggingConfig(log_to_wandb=False),
    )


def make(kind: str, knob: float, constants: Constants, d_in: int, left: frozenset[str]) -> Alike:
    """Return SAELens' training SAE of a kind, with these of DIFFERENCES left."""
    training_class, config_class = CLASSES[kind]
    chosen = options(kind, knob, constants, left)
    if "start" not in left:
        chosen["decoder_init_norm"] = 1.0
    if "start" not in left and hasattr(config_class, "aux_loss_coefficient"):
        terms = len(chosen.get("matryoshka_widths", [1]))  # of the squared error, where ours is their mean
        chosen["aux_loss_coefficient"] = terms * constants["AUX_COEFFICIENT"] / RESIDUAL.get(constants["MODEL"], 1.0)
    return Alike(kind, training_class(config_class(d_in=d_in, d_sae=constants["D_SAE"], **chosen)), constants, left)


def train(
    kind: str, knob: float, constants: Constants, data: Iterable[Tensor], mean: Tensor, left: frozenset[str]
) -> Any:
    """Return SAELens' inference SAE of a kind, trained on batches `[batch, d_in]` that it does not scale.

    `mean [d_in]` is that of the data. These of DIFFERENCES are left; the weight of the dead latents' loss is SAELens'
    own if its start is.
    """
    torch.manual_seed(constants["SEED"])
    alike = make(kind, knob, constants, len(mean), left)
    trainer = SAETrainer(trainer_config(constants), alike.sae, batches(data))
    alike.prepare(trainer, mean)
    trainer.fit()
    alike.restore()
    with tempfile.TemporaryDirectory() as folder:
        alike.sae.save_inference_model(folder)
        return saes.SAE.load_from_disk(folder)


def batches(data: Iterable[Tensor]) -> Iterator[Tensor]:
    """Return batches without end: SAELens counts them itself."""
    return chain.from_iterable(repeat(data))
