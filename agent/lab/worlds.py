"""Synthetic worlds: sparse features with a hierarchy in place of a language model, so that the features are known.

A world is a SyntheticModel of sae_lens.synthetic by the recipe of SynthSAEBench (arXiv 2602.14687), built here and kept
in the cache. The published one was drawn on a GPU, whose random numbers a CPU does not have: a world built here equals
it in distribution, and its scores are `local equivalent`. A directory that SyntheticModel.save wrote is a world too.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from agent.lab import cache, defaults
from agent.lab.errors import UserError
from agent.lab.files import atomic_path
from agent.lab.locks import waiting_lock
from agent.lab.progress import notify, track

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

Split = Literal["sae", "dev", "test"]

FORMAT = 1  # of built worlds: raise it if the code builds another world
SIZES = {"synth2k": (2048, 256, 16), "synth-sae-bench-16k": (16384, 768, 128)}  # features, dimensions, roots
SEEDS: dict[Split, int] = {"sae": 0, "dev": 1_000_000, "test": 2_000_000}  # of the first batch; the next has one more
BATCH = 1024  # samples drawn at once; the features of one batch take 64 MB in the largest world


def world_config(features: int, d_in: int, roots: int) -> "SyntheticModelConfig":
    """Return the published recipe (v2 of its configuration) at another size."""
    from sae_lens.synthetic import (
        FoldedNormalMagnitudeConfig,
        HierarchyConfig,
        LinearMagnitudeConfig,
        LowRankCorrelationConfig,
        OrthogonalizationConfig,
        SyntheticModelConfig,
        ZipfianFiringProbabilityConfig,
    )

    return SyntheticModelConfig(
        num_features=features,
        hidden_dim=d_in,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=HierarchyConfig(
            total_root_nodes=roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )


def identity(name: str) -> str:
    """Return a hash of a world: of the configuration and version it is built by, or of a directory's files."""
    if name in SIZES:
        content = json.dumps([FORMAT, world_config(*SIZES[name]).to_dict()], sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]
    digest = hashlib.sha256()
    for path in sorted(Path(name).expanduser().iterdir()):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check_hook(name: str, hook_name: str) -> None:
    """Raise UserError unless this is the hook of a world."""
    if hook_name != defaults.WORLD_HOOK:
        raise UserError(f"the world {name} has no hook {hook_name!r}: its one hook is {defaults.WORLD_HOOK}")


def load(name: str, device: str = "cpu") -> "SyntheticModel":
    """Load a world, building it first if the cache has none. Raises UserError for a damaged directory."""
    from sae_lens.synthetic import SyntheticModel

    if name in SIZES:
        folder = cache.root() / "worlds" / f"{name}-{identity(name)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder.with_name(folder.name + ".lock"), "another process builds the same world"):
            if not folder.exists():
                with atomic_path(folder) as partial:
                    build(world_config(*SIZES[name])).save(partial)
        cache.mark_used(folder)
    else:
        folder = Path(name).expanduser()
    try:
        with torch.random.fork_rng():  # loading draws features and throws them away
            return SyntheticModel.load_from_disk(folder, device=device).requires_grad_(False)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be loaded as a world: {reason}; delete it or write it again") from error


def build(config: "SyntheticModelConfig") -> "SyntheticModel":
    """Build a world on the CPU, so that every machine draws the same numbers."""
    from sae_lens.synthetic import FeatureDictionary, SyntheticModel

    assert config.orthogonalization
    notify(f"building a world of {config.num_features:,} features in {config.hidden_dim} dimensions")
    dictionary = FeatureDictionary(
        config.num_features, config.hidden_dim, bias=config.bias, initializer=None, seed=config.seed
    )
    steps, rate = config.orthogonalization.num_steps, config.orthogonalization.lr
    dictionary.feature_vectors.data = orthogonalize(dictionary.feature_vectors.data, steps, rate)
    return SyntheticModel(config, feature_dict=dictionary)


def orthogonalize(vectors: Tensor, steps: int, rate: float) -> Tensor:
    """Push vectors `[n, d]` apart with Adam, as sae_lens.synthetic.orthogonalize_embeddings does. Returns unit vectors.

    Its loss is sum_{i != j} (e_i . e_j)^2 + n sum_i (s_i - 1)^2 with s_i = |e_i|^2, whose first sum is
    ||E^T E||^2 - sum s^2. So the gradient is 4 (E E^T E - s E + n (s - 1) E): n d^2 operations in place of n^2 d.
    """
    vectors = F.normalize(vectors.detach(), dim=1).requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=rate)
    for _ in track(range(steps), "orthogonalizing the features", unit="steps"):
        vectors.grad = orthogonalization_gradient(vectors.detach())
        optimizer.step()
    return F.normalize(vectors.detach(), dim=1)


def orthogonalization_gradient(vectors: Tensor) -> Tensor:
    """Return the gradient `[n, d]` of the loss of `orthogonalize`."""
    squares = vectors.pow(2).sum(1, keepdim=True)
    return 4 * (vectors @ (vectors.T @ vectors) + (len(vectors) * (squares - 1) - squares) * vectors)


@torch.no_grad()
def samples(world: "SyntheticModel", rows: int, split: Split, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the samples from the `first`, a multiple of BATCH, to `rows` in batches: activations `[batch, d_in]` and
    features `[batch, num_features]`.

    A batch has a seed of its own, so its rows do not depend on what is drawn before it.
    """
    for start in track(range(first, rows, BATCH), f"drawing from the world ({split})", "samples", per_item=BATCH):
        with torch.random.fork_rng():
            torch.manual_seed(start // BATCH + SEEDS[split])
            drawn = world.sample_with_features(min(BATCH, rows - start))
        yield drawn
