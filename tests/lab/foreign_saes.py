"""Small SAEs in each format that others write, with their own libraries' code where it is installed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_bench.custom_saes import batch_topk_sae, gated_sae, jumprelu_sae, relu_sae, topk_sae
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from small_lab import CONTEXT, HOOK
from torch import Tensor

D_SAE, K = 96, 6
SAE_LENS = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K}),
    "matryoshka_batchtopk": (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": K, "matryoshka_widths": [D_SAE // 2, D_SAE]},
    ),
}
DICTIONARIES = {
    "AutoEncoder": {
        "bias": "b_dec",
        "encoder.weight": "W_enc.T",
        "encoder.bias": "b_enc",
        "decoder.weight": "W_dec.T",
    },
    "GatedAutoEncoder": {
        "decoder_bias": "b_dec",
        "encoder.weight": "W_enc.T",
        "decoder.weight": "W_dec.T",
        "r_mag": "r_mag",
        "gate_bias": "b_enc",
        "mag_bias": "b_mag",
    },
    "AutoEncoderTopK": {
        "b_dec": "b_dec",
        "encoder.weight": "W_enc.T",
        "encoder.bias": "b_enc",
        "decoder.weight": "W_dec.T",
        "k": "k",
        "threshold": "unset",
    },
    "BatchTopKSAE": {
        "b_dec": "b_dec",
        "encoder.weight": "W_enc.T",
        "encoder.bias": "b_enc",
        "decoder.weight": "W_dec.T",
        "k": "k",
        "threshold": "one_threshold",
    },
    "MatryoshkaBatchTopKSAE": {
        "b_dec": "b_dec",
        "W_enc": "W_enc",
        "b_enc": "b_enc",
        "W_dec": "W_dec",
        "k": "k",
        "threshold": "one_threshold",
        "group_sizes": "group_sizes",
    },
    "JumpReluAutoEncoder": {
        "b_dec": "b_dec",
        "W_enc": "W_enc",
        "b_enc": "b_enc",
        "W_dec": "W_dec",
        "threshold": "threshold",
    },
}
BENCH = {
    "standard": (relu_sae.ReluSAE, {}),
    "topk": (topk_sae.TopKSAE, {"k": K}),
    "batch_topk": (batch_topk_sae.BatchTopKSAE, {"k": K}),
    "jumprelu": (jumprelu_sae.JumpReluSAE, {}),
    "gated": (gated_sae.GatedSAE, {}),
}


@dataclass(frozen=True)
class Weights:
    """The weights of an untrained SAE with some K latents active on given activations, in every format's parts."""

    parts: Mapping[str, Tensor]
    model: str

    @classmethod
    def of(cls, x: Tensor, model: str) -> "Weights":
        """Draw them for activations `[rows, d_in]`."""
        draw = torch.Generator().manual_seed(0)
        W_dec = torch.randn(D_SAE, x.shape[1], generator=draw)  # of different norms, as a trained one may have
        W_enc, b_dec = W_dec.T / W_dec.norm(dim=1), x.mean(0)
        pre = (x - b_dec) @ W_enc
        b_enc = -pre.quantile(1 - 2 * K / D_SAE, dim=0)
        threshold = (pre + b_enc).relu().quantile(1 - K / D_SAE, dim=0)
        parts = {
            "W_enc": W_enc,
            "W_dec": W_dec,
            "b_enc": b_enc,
            "b_dec": b_dec,
            "threshold": threshold,
            "one_threshold": threshold.mean(),
            "unset": torch.tensor(-1.0),
            "r_mag": 0.1 * torch.randn(D_SAE, generator=draw),
            "b_mag": b_enc + 0.1,
            "k": torch.tensor(K, dtype=torch.int),
            "group_sizes": torch.tensor([D_SAE // 2, D_SAE // 2]),
        }
        return cls({name: tensor.contiguous() for name, tensor in parts.items()}, model)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.parts[name.removesuffix(".T")]
        return tensor.T.contiguous() if name.endswith(".T") else tensor.clone()

    def fill(self, sae: torch.nn.Module, **names: str) -> None:
        """Set the parameters and buffers of a library's SAE, by their own names or those of `names`."""
        for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
            tensor.data = self[names.get(name, name)].to(tensor.dtype)

    @property
    def d_in(self) -> int:
        return len(self["b_dec"])


def sae_lens(folder: Path, weights: Weights, kind: str, dtype: str = "float32", **settings: Any) -> Path:
    """Save an SAE by SAELens, for use or, of a kind that is trained over batches, as its training leaves it."""
    cls, config, own = SAE_LENS[kind]
    metadata = SAEMetadata(model_name=weights.model, hook_name=HOOK, context_size=CONTEXT, prepend_bos=True)
    sae = cls(config(**{"d_in": weights.d_in, "d_sae": D_SAE, "dtype": dtype, "metadata": metadata} | own | settings))
    weights.fill(sae, b_gate="b_enc", topk_threshold="one_threshold")
    sae.save_model(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def dictionary(folder: Path, weights: Weights, kind: str) -> Path:
    """Save what a training of dictionary_learning leaves of an SAE."""
    folder.mkdir(parents=True)
    torch.save({name: weights[part] for name, part in DICTIONARIES[kind].items()}, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": weights.d_in, "dict_size": D_SAE, "layer": 1, "steps": 100}
    trainer |= {"lm_name": weights.model, "submodule_name": "resid_post_layer_1"}
    trainer |= {"k": K} if "k" in DICTIONARIES[kind] else {}
    buffer = {"d_submodule": weights.d_in, "ctx_len": CONTEXT, "out_batch_size": 2048}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    return folder


def sparse_coder(folder: Path, weights: Weights, activation: str = "topk") -> Path:
    """Save an SAE as sparsify does, in a folder named by its hookpoint."""
    folder.mkdir(parents=True)
    names = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    save_file({name: weights[part] for name, part in names.items()}, folder / "sae.safetensors")
    config = {"activation": activation, "expansion_factor": 3, "num_latents": 0, "k": K, "d_in": weights.d_in}
    config |= {"normalize_decoder": True, "multi_topk": False, "skip_connection": False, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder.parent / "config.json").write_text(json.dumps({"model": weights.model, "ctx_len": CONTEXT}))
    return folder


def bench(folder: Path, weights: Weights, kind: str) -> Path:
    """Save an SAE of one of SAE-Bench's classes as the documentation says."""
    cls, own = BENCH[kind]
    device = torch.device("cpu")
    sae = cls(weights.d_in, D_SAE, model_name=weights.model, hook_layer=1, device=device, dtype=torch.float32, **own)
    weights.fill(sae, gate_bias="b_enc", threshold="one_threshold" if kind == "batch_topk" else "threshold")
    sae.cfg.architecture = kind
    folder.mkdir(parents=True)
    torch.save(sae.state_dict(), folder / "sae.pt")
    (folder / "cfg.json").write_text(json.dumps(sae.cfg.to_dict()))
    return folder
