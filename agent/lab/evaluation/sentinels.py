"""SAEs whose scores are known beforehand: where one scores otherwise, the evaluator is wrong.

The permuted decoder shows that reconstruction is scored and that probing reads the encoder alone (on a world: MCC the
decoder alone), the identity that nothing is lost on the way through the model, the random SAE that training is what
lifts the scores.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import is_world
from agent.lab.evaluation.bench.core import BATCH_WINDOWS
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.results import Expectation, Number, Sentinels

if TYPE_CHECKING:
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig

    from agent.lab.evaluation.evaluator import Evaluator

PERMUTATION_SEED = 0
WINDOWS = 2 * BATCH_WINDOWS  # of the development text: what is expected holds on little text too

Scores = dict[str, Number]  # by the metric's name


class IdentitySAE(BenchSAE):
    """Loses nothing: x - mean as its positive and its negative parts, so d_sae is 2 d_in."""

    def __init__(self, cfg: "CustomSAEConfig", mean: Tensor) -> None:
        both = torch.cat([torch.eye(cfg.d_in), -torch.eye(cfg.d_in)]).to(mean.device)
        super().__init__(cfg, both.T.contiguous(), -(both @ mean), both, mean)

    def encode(self, x: Tensor) -> Tensor:
        return (x.float() @ self.W_enc + self.b_enc).relu()


@dataclass(frozen=True)
class SentinelSAEs:
    """What the evaluator is tried on."""

    trained: BenchSAE
    permuted: BenchSAE  # the trained one with the rows of its decoder in another order
    identity: BenchSAE
    random: RandomSAE


def permute_decoder(loaded: Checkpoint) -> Checkpoint:
    """The checkpoint with the rows of its decoder in another order, the same each time."""
    generator = torch.Generator().manual_seed(PERMUTATION_SEED)
    order = torch.randperm(len(loaded.W_dec), generator=generator).to(loaded.device)
    return replace(loaded, tensors=loaded.tensors | {"W_dec": loaded.W_dec[order]})


def build_sentinels(evaluator: "Evaluator", run_dir: Path) -> SentinelSAEs:
    """The sentinels beside a trained baseline, the random one as sparse as it is. Raises CheckpointError."""
    held_out = evaluator.held_out("dev", WINDOWS)
    loaded = evaluator.load_checkpoint(run_dir, held_out)
    d_sae, d_in = loaded.W_dec.shape
    l0 = (loaded.encode(held_out.activations) != 0).sum(1).float().mean().item()
    return SentinelSAEs(
        trained=evaluator.checkpoint_sae(loaded, held_out),
        permuted=evaluator.checkpoint_sae(permute_decoder(loaded), held_out),
        identity=IdentitySAE(evaluator.config(2 * d_in, d_in), held_out.mean),
        random=evaluator.random_sae(d_sae, max(1, min(round(l0), d_sae))),
    )


def check_evaluator(evaluator: "Evaluator", run_dir: Path, done: Callable[[str], None]) -> Sentinels:
    """Try the evaluator with the trained baseline of a run. Raises CheckpointError, EvaluationError."""
    tried = build_sentinels(evaluator, run_dir)
    done("checkpoint")
    with tempfile.TemporaryDirectory() as out:
        return check_expectations(evaluator, tried, Path(out), done)


def check_expectations(
    evaluator: "Evaluator", tried: SentinelSAEs, out: Path, done: Callable[[str], None] = lambda _: None
) -> Sentinels:
    """Score the sentinels on the development text and say of each expectation whether it held.

    SAE-Bench's files go to `out`, an empty folder. Raises EvaluationError where there are no scores at all.
    """
    held_out = evaluator.held_out("dev", WINDOWS)

    def score(name: str, sae: BenchSAE, beside: bool = False) -> Scores:
        core, _ = evaluator.score_core(sae, held_out, out / name, name)
        scores: Scores = core.model_dump()
        if beside:
            scores |= evaluator.sentinel_metrics(sae, held_out, out / name, name)
        done(f"{name} sentinel")
        return scores

    world = is_world(evaluator.model_name)
    trained, permuted = score("trained", tried.trained, beside=True), score("permuted decoder", tried.permuted, True)
    identity, random = score("identity", tried.identity), score("random", tried.random, beside=world)
    variance, k = _number(trained, "explained_variance_centered"), tried.random.k
    own = _of_a_world(trained, permuted, random) if world else _of_a_language_model(trained, permuted, identity)
    return Sentinels(
        expectations=[
            expectation("permuted decoder", permuted, "explained_variance_centered", "below 0", -math.inf, 0),
            expectation("identity", identity, "explained_variance_centered", "above 0.9999", 1 - 1e-4, math.inf),
            expectation("random", random, "l0", f"within 1% of {k}", 0.99 * k, 1.01 * k),
            expectation("random", random, "explained_variance_centered", f"below {variance:.4f}", -math.inf, variance),
            *own,
        ]
    )


def _of_a_language_model(trained: Scores, permuted: Scores, identity: Scores) -> list[Expectation]:
    preserved, auc = _number(trained, "ce_loss_score"), _number(trained, "probing_auc_5")
    return [
        expectation("permuted decoder", permuted, "ce_loss_score", f"below {preserved:.4f}", -math.inf, preserved),
        expectation("permuted decoder", permuted, "probing_auc_5", f"equal to {auc:.4f}", auc - 1e-6, auc + 1e-6),
        expectation("identity", identity, "ce_loss_score", "above 0.999", 1 - 1e-3, math.inf),
        expectation("identity", identity, "loss_added", "within 0.001 of 0", -1e-3, 1e-3),
    ]


def _of_a_world(trained: Scores, permuted: Scores, random: Scores) -> list[Expectation]:
    """MCC and uniqueness read the decoder alone, whatever the order of its rows; F1 reads both sides."""
    f1, mcc = _number(trained, "f1"), _number(trained, "mcc")
    return [
        expectation("permuted decoder", permuted, "f1", f"below {f1:.4f}", -math.inf, f1),
        expectation("permuted decoder", permuted, "mcc", f"equal to {mcc:.4f}", mcc - 1e-6, mcc + 1e-6),
        expectation("random", random, "f1", f"below {f1:.4f}", -math.inf, f1),
        expectation("random", random, "mcc", f"below {mcc:.4f}", -math.inf, mcc),
    ]


def expectation(sentinel: str, scores: Scores, metric: str, expected: str, low: float, high: float) -> Expectation:
    """Whether a sentinel's score lies between two bounds, said in words as `expected`."""
    found = _number(scores, metric)
    held = low < found < high  # false of what is not finite
    finite = found if math.isfinite(found) else None
    return Expectation(sentinel=sentinel, metric=metric, expected=expected, found=finite, held=held)


def _number(scores: Scores, metric: str) -> float:
    found = scores[metric]
    return math.nan if found is None else found
