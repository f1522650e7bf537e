"""SAEs of SAELens' kinds, in SAELens' format: its own tools use them, and compute what the checkpoint computes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from small_lab import CONTEXT, D_SAE, HOOK, TOKENS, K, stream
from torch import Tensor

from agent.lab import checkpoint, models, text
from agent.lab.checkpoint import Checkpoint, CheckpointError, Header
from agent.lab.results import Training

KINDS = ["relu", "jumprelu", "batchtopk", "matryoshka", "gated", "topk", "abstopk"]


@dataclass
class Kinds:
    """Untrained SAEs of all kinds with the same weights, which fire on real activations."""

    W_dec: Tensor
    b_dec: Tensor
    b_enc: Tensor
    threshold: Tensor
    manifest: Any

    def pre(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_dec.T + self.b_enc

    def relu(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def thresholded(self, x: Tensor) -> Tensor:
        pre = self.relu(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    jumprelu = batchtopk = matryoshka = gated = thresholded

    def topk(self, x: Tensor) -> Tensor:
        pre = self.relu(x)
        values, indices = pre.topk(K, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def abstopk(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        indices = pre.abs().topk(K, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    def save(self, run_dir: Path, kind: str, encode: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> Path:
        d_in, settings = len(self.b_dec), changes.pop("settings", {"K": K})
        training = Training(
            model=self.manifest.model,
            hook_name=HOOK,
            layer=1,
            d_in=d_in,
            d_sae=D_SAE,
            steps=10,
            tokens=TOKENS,
            final_loss=1.0,
            seconds=1.0,
            learning_rate=1e-3,
            seed=0,
            settings=settings,
            context=self.manifest.context,
            final_l0=7.5,
        )
        header = Header(
            model=self.manifest.model,
            hook_name=HOOK,
            layer=1,
            d_in=d_in,
            d_sae=D_SAE,
            scale=self.manifest.scale,
            training=training.model_copy(update=changes),
            any_parameter_changed=True,
            architecture=kind,
        )
        thresholds = {} if kind in ("relu", "topk", "abstopk") else {"threshold": self.threshold}
        encoder = {"W_enc": self.W_dec.T.contiguous(), "b_enc": self.b_enc, **thresholds}
        run_dir.mkdir()
        encode = encode or getattr(self, kind)
        checkpoint.save(run_dir / "checkpoint", encode, self.W_dec, self.b_dec, header, **encoder)
        return run_dir


@pytest.fixture(scope="module")
def kinds(small_model: Path) -> Kinds:
    generator = torch.Generator().manual_seed(0)
    data = stream(small_model, 512)
    W_dec = F.normalize(torch.randn(D_SAE, data.d_in, generator=generator), dim=1)
    b_enc = 0.1 * torch.randn(D_SAE, generator=generator)
    return Kinds(W_dec, data.mean.cpu(), b_enc, 1 + torch.rand(D_SAE, generator=generator), data.manifest)


@pytest.fixture(scope="module")
def activations(small_model: Path) -> Tensor:
    """The small model's own activations, unscaled."""
    data = stream(small_model, 2000)
    return torch.cat(list(data)).cpu() / data.manifest.scale


def pair(run_dir: Path) -> tuple[Checkpoint, Any]:
    """Load a checkpoint, and what was written of it for SAELens."""
    return checkpoint.load(run_dir / "checkpoint"), SAE.load_from_disk(run_dir / "sae_lens")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_computes_the_same_latents_and_reconstruction(
    kind: str, kinds: Kinds, activations: Tensor, tmp_path: Path
):
    ours, theirs = pair(kinds.save(tmp_path / "run", kind))
    latents = ours.encode(activations)
    assert 1 < (latents != 0).sum(1).float().mean() < D_SAE
    close = torch.isclose(theirs.encode(activations), latents, rtol=1e-4, atol=1e-4)
    assert (~close).sum() <= 2  # a latent may be carried over its threshold by the last bit
    rows = close.all(1)
    torch.testing.assert_close(theirs(activations)[rows], ours.decode(latents)[rows], rtol=1e-4, atol=1e-4)
    names = {"relu": "standard", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}
    assert theirs.cfg.architecture() == names.get(kind, kind)


def test_its_metadata_says_where_it_comes_from(kinds: Kinds, small_model: Path, tmp_path: Path):
    _, theirs = pair(kinds.save(tmp_path / "run", "jumprelu", text=f"owner/name@{'a' * 40}"))
    known = theirs.cfg.metadata
    assert (known.model_name, known.hook_name, known.hook_layer) == (str(small_model), HOOK, 1)
    assert (known.context_size, known.prepend_bos, known.exclude_special_tokens) == (CONTEXT, True, True)
    assert (known.dataset_path, known.training_tokens, known.l0) == ("owner/name", TOKENS, 7.5)
    assert (known.training_architecture, known.sae_lens_training_version) == ("jumprelu", None)


def test_one_threshold_for_all_latents_is_told_as_batchtopk(kinds: Kinds, tmp_path: Path):
    whole = Kinds(kinds.W_dec, kinds.b_dec, kinds.b_enc, torch.ones(D_SAE), kinds.manifest)
    _, theirs = pair(whole.save(tmp_path / "run", "jumprelu"))
    assert theirs.cfg.metadata.training_architecture == "batchtopk"


def test_sae_lens_evaluates_it_on_the_model(kinds: Kinds, small_model: Path, tmp_path: Path):
    """By its own store of activations, which asks for the metadata, and its own evaluations."""
    ours, theirs = pair(kinds.save(tmp_path / "run", "topk"))
    model: Any = models.load(str(small_model))
    documents = text.read_prompts(text.data_dir() / "24_headline_isiran.csv.zst")[:400]
    store = ActivationsStore.from_sae(
        model, theirs, Dataset.from_dict({"text": documents}), streaming=False, store_batch_size_prompts=4
    )
    config = EvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    metrics, _ = run_evals(theirs, store, model, ActivationScaler(), config)
    assert metrics["sparsity"]["l0"] == pytest.approx(K, rel=0.05)
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 2 * 4 * CONTEXT
    assert all(math.isfinite(value) for group in metrics.values() for value in group.values())
    rows = store.get_activations(store.get_batch_tokens(4)).flatten(0, 1)
    torch.testing.assert_close(theirs.encode(rows), ours.encode(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "encode", "settings", "message"),
    [
        (
            "topk",
            "topk",
            {"K": K + 1},
            f"encode is not the topk encoder of the W_enc and b_enc given with it and K {K + 1}",
        ),
        ("topk", "topk", {"K": 2.5}, "its K is 2.5; a topk SAE keeps a whole number"),
        ("topk", "topk", {}, "its K is None"),
        ("abstopk", "topk", {"K": K}, "encode is not the abstopk encoder"),
        ("gated", "relu", {"K": K}, "encode is not the gated encoder"),
        (
            "tree",
            "relu",
            {"K": K},
            "architecture 'tree' is not one of relu, jumprelu, batchtopk, matryoshka, gated, topk",
        ),
    ],
)
def test_what_it_is_not_is_refused(
    kind: str, encode: str, settings: dict[str, Any], message: str, kinds: Kinds, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=message):
        kinds.save(tmp_path / "run", kind, getattr(kinds, encode), settings=settings)
