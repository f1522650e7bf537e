"""Train an SAE of a kind of baseline by SAELens' own trainer, on given activations: what benchmarks/baselines.py asks.

What has a counterpart in the baseline is set to it: width, knob, learning rate and its schedule, the window of dead
latents, the rate of the threshold, prefixes. Of its own SAELens has the start (b_dec zero, decoder rows of norm 0.1),
the weight of the dead latents' loss, and decoder rows of any norm, unless it is to have ours.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens import saes
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

Constants = Mapping[str, Any]

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


def options(kind: str, knob: float, constants: Constants, steps: int) -> dict[str, Any]:
    """Return what SAELens' configuration of a kind has beyond the widths.

    Its losses are those of the baselines times d_in (and times the number of prefixes), so an L1 coefficient is the
    same number. The knob of jumprelu is the coefficient of L0: SAELens' loss with a target is one of each token's L0.
    """
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
                "l0_coefficient": knob,
                "l0_warm_up_steps": round(constants["L0_WARMUP"] * steps),
            }
    raise ValueError(f"no SAELens trainer for {kind}")


def trainer_config(constants: Constants, steps: int) -> SAETrainerConfig:
    """Return the configuration of the trainer, with the baseline's learning rate and schedule."""
    rate, batch = constants["LEARNING_RATE"], constants["BATCH"]
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


def train(
    kind: str, knob: float, constants: Constants, data: Iterable[Tensor], mean: Tensor, seed: int, *, side: str
) -> Any:
    """Return SAELens' inference SAE of a kind, trained on batches `[batch, d_in]` that it does not scale.

    `mean [d_in]` is that of the data. The side sae_lens_as_ours starts from it, with decoder rows of norm 1, and weighs
    the dead latents' loss as the baselines do; sae_lens_unit_norm rescales the rows to norm 1 after each step besides.
    """
    as_ours = side != "sae_lens"
    torch.manual_seed(seed)
    steps = constants["TOKENS"] // constants["BATCH"]
    training_class, config_class = CLASSES[kind]
    chosen = options(kind, knob, constants, steps)
    if as_ours:
        chosen["decoder_init_norm"] = 1.0
    if as_ours and hasattr(config_class, "aux_loss_coefficient"):
        terms = len(chosen.get("matryoshka_widths", [1]))  # of the squared error, where ours is their mean
        chosen["aux_loss_coefficient"] = terms * constants["AUX_COEFFICIENT"] / RESIDUAL.get(constants["MODEL"], 1.0)
    sae = training_class(config_class(d_in=len(mean), d_sae=constants["D_SAE"], **chosen))
    if as_ours:
        sae.b_dec.data.copy_(mean)
    trainer = SAETrainer(trainer_config(constants, steps), sae, batches(data))
    if side == "sae_lens_unit_norm":
        trainer.optimizer.register_step_post_hook(lambda *_: sae.W_dec.data.copy_(F.normalize(sae.W_dec.data, dim=1)))
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return saes.SAE.load_from_disk(folder)


def batches(data: Iterable[Tensor]) -> Iterator[Tensor]:
    """Return batches without end: SAELens counts them itself."""
    return chain.from_iterable(repeat(data))
