"""Sentinels: SAEs whose scores are known beforehand. If one scores otherwise, the evaluator is wrong.

The permuted decoder checks that reconstruction is scored and that probing reads the encoder alone (on a world: MCC the
decoder alone), the identity that the model loses nothing on the way, the random SAE that training raises the scores.
"""

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab.checkpoint import CheckpointError
from agent.lab.defaults import is_world
from agent.lab.errors import UserError, describe
from agent.lab.evaluation.bench.core import BATCH_WINDOWS
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import BenchSAE, CheckpointSAE, rows_at_once
from agent.lab.results import Expectation, Number, Sentinels

if TYPE_CHECKING:
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig

    from agent.lab.evaluation.evaluator import Evaluator

PERMUTATION_SEED = 0
WINDOWS = 2 * BATCH_WINDOWS  # of the development text: the expectations hold on little text too

Scores = dict[str, Number]  # by metric


class IdentitySAE(BenchSAE):
    """An SAE that loses nothing: its latents are the positive and negative parts of x - mean, so d_sae is 2 d_in."""

    def __init__(self, cfg: "CustomSAEConfig", mean: Tensor) -> None:
        both = torch.cat([torch.eye(cfg.d_in), -torch.eye(cfg.d_in)]).to(mean.device)
        super().__init__(cfg, both.T.contiguous(), -(both @ mean), both, mean)

    def encode(self, x: Tensor) -> Tensor:
        return (x.float() @ self.W_enc + self.b_enc).relu()


@dataclass(frozen=True)
class SentinelSAEs:
    """The SAEs that the evaluator is checked on."""

    trained: BenchSAE
    permuted: BenchSAE  # the trained one with its decoder rows in another order
    identity: BenchSAE
    random: RandomSAE


def permute_decoder(sae: CheckpointSAE) -> CheckpointSAE:
    """Return the SAE with its decoder rows in another order, the same order every time; the rest is shared."""
    generator = torch.Generator().manual_seed(PERMUTATION_SEED)
    permuted = copy.copy(sae)
    permuted.W_dec = sae.W_dec[torch.randperm(len(sae.W_dec), generator=generator).to(sae.device)]
    return permuted


def build_sentinels(evaluator: "Evaluator", run_dir: Path) -> SentinelSAEs:
    """Make the sentinels of a trained baseline; the random one has its L0. Raises CheckpointError."""
    held_out = evaluator.held_out("dev", WINDOWS)
    loaded = evaluator.load_checkpoint(run_dir, held_out)
    d_sae, d_in = loaded.W_dec.shape
    batches = held_out.activations.split(rows_at_once(d_sae))
    l0 = torch.cat([(loaded.encode(x) != 0).sum(1) for x in batches]).float().mean().item()
    trained = evaluator.checkpoint_sae(loaded, held_out)
    return SentinelSAEs(
        trained=trained,
        permuted=permute_decoder(trained),
        identity=IdentitySAE(evaluator.config(2 * d_in, d_in), held_out.mean),
        random=evaluator.random_sae(d_sae, max(1, min(round(l0), d_sae))),
    )


def check_evaluator(evaluator: "Evaluator", run_dir: Path, progress: Callable[[str], None]) -> Sentinels:
    """Check the evaluator on the sentinels of a run's trained baseline.

    Without scores of core there are no expectations, and its error is in the result. Raises what says nothing of the
    evaluator: UserError, OSError, and the errors of a full memory.
    """
    try:
        saes = build_sentinels(evaluator, run_dir)
        progress("checkpoint")
        with tempfile.TemporaryDirectory() as out:
            return check_expectations(evaluator, saes, Path(out), progress)
    except Exception as error:
        outside = isinstance(error, UserError | OSError | MemoryError | torch.OutOfMemoryError)
        if outside and not isinstance(error, CheckpointError):
            raise
        return Sentinels(expectations=[], errors={"core": describe(error)})


def check_expectations(
    evaluator: "Evaluator", saes: SentinelSAEs, out: Path, progress: Callable[[str], None] = lambda _: None
) -> Sentinels:
    """Score the sentinels on the development text and compare the scores with what they must be.

    SAE-Bench's files go to `out`, an empty folder. Raises EvaluationError if there are no scores of core. A further
    family that fails leaves its reason, and nothing is expected of its metrics.
    """
    held_out, world = evaluator.held_out("dev", WINDOWS), is_world(evaluator.model_name)
    further = "synthetic" if world else "sparse_probing_sae_probes"
    errors: dict[str, str] = {}

    def score(name: str, sae: BenchSAE, extra: bool = False) -> Scores:
        core, _ = evaluator.score_core(sae, held_out, out / name, name)
        scores: Scores = core.model_dump()
        if extra and not errors:
            try:
                scores |= evaluator.sentinel_metrics(sae, held_out, out / name, name)
            except Exception as error:
                errors[further] = describe(error)
        progress(f"{name} sentinel")
        return scores

    trained = score("trained", saes.trained, extra=True)
    permuted = score("permuted decoder", saes.permuted, extra=True)
    identity, random = score("identity", saes.identity), score("random", saes.random, extra=world)
    variance, k = _number(trained, "explained_variance_centered"), saes.random.k
    if not world:
        own_kind = _language_model_expectations(trained, permuted, identity)
        own_kind += [] if errors else _probing_expectations(trained, permuted)
    else:
        own_kind = [] if errors else _world_expectations(trained, permuted, random)
    return Sentinels(
        expectations=[
            expectation("permuted decoder", permuted, "explained_variance_centered", "below 0", -math.inf, 0),
            expectation("identity", identity, "explained_variance_centered", "above 0.9999", 1 - 1e-4, math.inf),
            expectation("random", random, "l0", f"within 1% of {k}", 0.99 * k, 1.01 * k),
            expectation("random", random, "explained_variance_centered", f"below {variance:.4f}", -math.inf, variance),
            *own_kind,
        ],
        errors=errors,
    )


def _language_model_expectations(trained: Scores, permuted: Scores, identity: Scores) -> list[Expectation]:
    preserved = _number(trained, "ce_loss_score")
    return [
        expectation("permuted decoder", permuted, "ce_loss_score", f"below {preserved:.4f}", -math.inf, preserved),
        expectation("identity", identity, "ce_loss_score", "above 0.999", 1 - 1e-3, math.inf),
        expectation("identity", identity, "loss_added", "within 0.001 of 0", -1e-3, 1e-3),
    ]


def _probing_expectations(trained: Scores, permuted: Scores) -> list[Expectation]:
    auc = _number(trained, "probing_auc_5")
    return [expectation("permuted decoder", permuted, "probing_auc_5", f"equal to {auc:.4f}", auc - 1e-6, auc + 1e-6)]


def _world_expectations(trained: Scores, permuted: Scores, random: Scores) -> list[Expectation]:
    # MCC reads the decoder alone, whatever the order of its rows; F1 reads the encoder too.
    f1, mcc = _number(trained, "f1"), _number(trained, "mcc")
    return [
        expectation("permuted decoder", permuted, "f1", f"below {f1:.4f}", -math.inf, f1),
        expectation("permuted decoder", permuted, "mcc", f"equal to {mcc:.4f}", mcc - 1e-6, mcc + 1e-6),
        expectation("random", random, "f1", f"below {f1:.4f}", -math.inf, f1),
        expectation("random", random, "mcc", f"below {mcc:.4f}", -math.inf, mcc),
    ]


def expectation(sentinel: str, scores: Scores, metric: str, expected: str, low: float, high: float) -> Expectation:
    """Return whether a sentinel's score lies between two bounds, which `expected` names in words."""
    value = _number(scores, metric)
    held = low < value < high  # False for NaN
    finite = value if math.isfinite(value) else None
    return Expectation(sentinel=sentinel, metric=metric, expected=expected, found=finite, held=held)


def _number(scores: Scores, metric: str) -> float:
    value = scores[metric]
    return math.nan if value is None else value
