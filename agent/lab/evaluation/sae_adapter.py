"""SAEs in the form that SAE-Bench expects of a custom SAE, and how their latents are used."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from agent.lab import models
from agent.lab.checkpoint import Checkpoint, Header, sae_lens

if TYPE_CHECKING:
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig


ROWS = 4096  # activations that are encoded at once, of an SAE of ordinary width
MOST_VALUES = 2**26  # of their latents: of an SAE of more than 16,384 fewer rows are encoded at once


def rows_at_once(d_sae: int) -> int:
    """Return how many activations are encoded at once, so that their latents fit in memory beside the SAE."""
    return max(1, min(ROWS, MOST_VALUES // d_sae))


class BenchSAE(ABC):
    """An SAE with the attributes that SAE-Bench reads. `encode` and `decode` take the model's own activations."""

    def __init__(self, cfg: "CustomSAEConfig", W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> None:
        self.cfg = cfg
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = W_enc, b_enc, W_dec, b_dec
        self.device, self.dtype = W_dec.device, W_dec.dtype

    def to(self, *_: object, **__: object) -> Self:
        """Return the SAE as it is: it is evaluated in float32 on the chosen device."""
        return self

    def eval(self) -> Self:
        """Return the SAE as it is: it is always in evaluation mode."""
        return self

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Encode activations `[..., d_in]` to latents `[..., d_sae]`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[..., d_sae]` to activations `[..., d_in]`."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    __call__ = forward


class CheckpointSAE(BenchSAE):
    """A checked checkpoint, with the header's scaling folded into the weights. `sample [n, d_in]`: activations."""

    def __init__(self, cfg: "CustomSAEConfig", checkpoint: Checkpoint, sample: Tensor) -> None:
        self.checkpoint = checkpoint
        scale = checkpoint.header.scale
        W_enc, b_enc = checkpoint.W_enc, checkpoint.b_enc
        if W_enc is None or b_enc is None:  # not affine: the few metrics that read W_enc get its mean Jacobian
            W_enc, b_enc = checkpoint.encoder_matrix(sample * scale), torch.zeros(cfg.d_sae)
        device = sample.device
        super().__init__(
            cfg,
            (W_enc * scale).to(device),
            b_enc.to(device),
            (checkpoint.W_dec / scale).to(device),
            (checkpoint.b_dec / scale).to(device),
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.checkpoint.encode(x.float())


class PartSAE(BenchSAE):
    """The latents [start, end) of an SAE, without the others."""

    def __init__(self, whole: BenchSAE, start: int, end: int) -> None:
        cfg = copy.copy(whole.cfg)
        cfg.d_sae = end - start
        rows = slice(start, end)
        super().__init__(cfg, whole.W_enc[:, rows], whole.b_enc[rows], whole.W_dec[rows], whole.b_dec)
        self.whole, self.rows = whole, rows

    def encode(self, x: Tensor) -> Tensor:
        return self.whole.encode(x)[..., self.rows]


# SAE-Bench's words for kinds of SAE, by which its graphs mark them.
ARCHITECTURES = {
    "relu": "standard",
    "batchtopk": "batch_topk",
    "matryoshka": "matryoshka_batch_topk",
    **{name: name for name in ("jumprelu", "gated", "topk")},
}


@dataclass(frozen=True)
class Trained:
    """What an SAE was trained as, as SAE-Bench's results say it of an SAE."""

    architecture: str = "custom"
    tokens: int = 0
    k: float | None = None


UNTRAINED = Trained()


def training_of(header: Header, threshold: Tensor | None) -> Trained:
    """Return what a checkpoint was trained as, from its header and the thresholds of its latents."""
    architecture = ARCHITECTURES.get(sae_lens.trained_as(header, threshold) or "", "custom")
    if header.training:
        k = header.training.settings.get("K")
        return Trained(architecture, header.training.tokens, k if isinstance(k, int | float) else None)
    assert header.imported  # a header has the one or the other
    return Trained(architecture, header.imported.declared_tokens or 0, header.imported.declared_l0)


def bench_config(
    model: str, hook_name: str, d_in: int, d_sae: int, context: int, trained: Trained = UNTRAINED
) -> "CustomSAEConfig":
    """Return SAE-Bench's configuration of an SAE, with the fields that its evaluations and its graphs read."""
    import sae_bench.sae_bench_utils.general_utils as general_utils
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig

    @dataclass
    class Config(CustomSAEConfig):
        k: float | None = None  # as the configurations of SAELens have it, which SAE-Bench keeps too

    cfg = Config(
        model_name=model,
        d_in=d_in,
        d_sae=d_sae,
        hook_layer=models.layer_of(hook_name),
        hook_name=hook_name,
        context_size=context,
        architecture=trained.architecture,
        training_tokens=trained.tokens,
        k=trained.k,
        dtype="float32",
        device=models.device_config().device,
        prepend_bos=True,
    )
    general_utils._standardize_sae_cfg(cfg)
    if trained.architecture == "gated":
        cfg.architecture_str = "jumprelu"  # pyright: ignore  # which it equals here; core looks for a b_mag otherwise
    return cfg


@dataclass(frozen=True)
class Usage:
    """Sums over the evaluation text that give exact metrics whatever the batch size."""

    tokens: int
    squared_error: float
    squared_deviation: float  # about the mean activation
    fired: Tensor  # [d_sae], tokens on which each latent fired

    @property
    def explained_variance_centered(self) -> float:
        """1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, as sae_lens.evals.ExplainedVarianceCalculator has it."""
        return 1 - self.squared_error / self.squared_deviation

    @property
    def l0(self) -> float:
        return self.fired.sum().item() / self.tokens


class UsageAccumulator:
    """A sum of Usage over batches. `mean [d_in]`: of all activations."""

    def __init__(self, d_sae: int, mean: Tensor) -> None:
        self.mean, self.tokens, self.error, self.deviation = mean, 0, 0.0, 0.0
        self.fired = torch.zeros(d_sae, dtype=torch.float64)

    def add(self, x: Tensor, latents: Tensor, reconstruction: Tensor) -> None:
        """Add activations `[tokens, d_in]`, their latents `[tokens, d_sae]` and reconstruction `[tokens, d_in]`."""
        self.tokens += len(x)
        self.error += (x - reconstruction).double().pow(2).sum().item()
        self.deviation += (x - self.mean).double().pow(2).sum().item()
        self.fired += (latents != 0).sum(0).double().cpu()

    def usage(self) -> Usage:
        return Usage(self.tokens, self.error, self.deviation, self.fired)


@torch.no_grad()
def measure_usage(sae: BenchSAE, activations: Tensor, mean: Tensor, batch: int = ROWS) -> Usage:
    """Encode and decode the evaluation text's activations `[tokens, d_in]`, and return the sums."""
    accumulator = UsageAccumulator(sae.cfg.d_sae, mean)
    for x in activations.split(min(batch, rows_at_once(sae.cfg.d_sae))):
        latents = sae.encode(x)
        accumulator.add(x, latents, sae.decode(latents))
    return accumulator.usage()
