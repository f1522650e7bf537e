"""SAEs in SAELens' format: a directory of cfg.json and sae_weights.safetensors, of version 6 or before."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, MatchingPursuitSAEConfig, TrainingSAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from torch import Tensor

from agent.lab.errors import UserError, describe
from agent.lab.foreign import reading
from agent.lab.foreign.encoders import Encoder, JumpReLU, MatchingPursuit, ReLU, TopK, gated
from agent.lab.foreign.sae import Foreign, checked, flag, part, record, require_top, size, word

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, RUNNER, SPARSITY = "activation_scaler.json", "runner_cfg.json", "sparsity.safetensors"
KINDS = {  # SAELens' words for what is read -> those of a checkpoint's header
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
    "matching_pursuit": "matching_pursuit",
}
MOST_ITERATIONS = 320  # of matching pursuit: they are unrolled, and so many take minutes
NO_RECONSTRUCTION = "it does not reconstruct the activations that it reads"
REFUSED_KINDS = {  # by a part of their names
    "transcoder": NO_RECONSTRUCTION,
    "crosscoder": NO_RECONSTRUCTION,
    "clt": NO_RECONSTRUCTION,
    "abstopk": "its latents may be negative, and some evaluations count those that are above zero alone",
}
OVER_A_BATCH = ("batchtopk", "matryoshka_batchtopk")  # in a training; used with a threshold
BY_TOKEN = "its reconstruction is scaled by each token's own {}, which a decoder of one matrix and bias cannot do"
# What is done to activations in front of the SAE, and why it is refused.
REFUSED_NORMALIZATION = {
    "layer_norm": BY_TOKEN.format("mean and deviation"),
    "constant_norm_rescale": BY_TOKEN.format("norm"),
    "covariance_whitening": "its whitening was not folded into its weights: fold it with SAELens, and save it again",
}


@dataclass(frozen=True)
class Declared:
    """What the files around an SAE say of it."""

    source: str  # as the user named it
    l0: float | None = None
    tokens: int | None = None


def is_one(folder: Path) -> bool:
    """Return whether a folder holds an SAE in this format."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def read(folder: Path, source: str) -> Foreign:
    """Read a directory that SAELens saved. Raises UserError."""
    config, tensors = reading.json_object(folder / CONFIG), reading.safetensors(folder / WEIGHTS)
    refuse(config, source)
    architecture = config["architecture"] = config.get("architecture") or "standard"
    declared = Declared(source, _declared_l0(config, folder), _declared_tokens(config, folder))
    if architecture in OVER_A_BATCH:
        _check_training(config, tensors, source)
        config, tensors = _for_inference(folder, source)
    config = _defaulted(config, source)
    if config.get("normalize_activations") == "expected_average_only_in":
        config, tensors = _with_scale_folded(config, tensors, folder)
    return convert(config, tensors, declared, architecture=architecture)


def refuse(config: Mapping[str, Any], source: str) -> None:
    """Raise UserError for an SAE that no checkpoint can stand for, with the reason."""
    architecture = word(config, "architecture", source) or "standard"
    if architecture not in KINDS:
        known = (reason for name, reason in REFUSED_KINDS.items() if name in architecture)
        reason = next(known, f"an SAE here is one of {', '.join(KINDS)}")
        raise UserError(f"{source} is of the architecture {architecture[:60]}, which is not read: {reason}")
    metadata = part(config, "metadata", source)
    names = ((metadata, "hook_name"), (config, "hook_name"), (config, "hook_point"))
    hook_name = next((found for where, name in names if (found := word(where, name, source))), "")
    reshaped = config.get("reshape_activations") or ("hook_z" if "hook_z" in hook_name else "none")
    if reshaped != "none":
        raise UserError(
            f"{source} reads {hook_name or 'activations'} reshaped ({reshaped}: all heads as one vector), which is not "
            "read: use an SAE on a residual stream, or on an attention's or an MLP's output"
        )
    head = metadata.get("hook_head_index", config.get("hook_head_index", config.get("hook_point_head_index")))
    if head is not None:
        raise UserError(f"{source} reads head {head} of {hook_name} alone, which is not read")
    if reason := REFUSED_NORMALIZATION.get(str(config.get("normalize_activations"))):
        raise UserError(f"{source} has normalize_activations {config['normalize_activations']}: {reason}")


def convert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    declared: Declared,
    *,
    architecture: str,
    original: SAE[Any] | None = None,
) -> Foreign:
    """Return an SAE of version 6's configuration and state; `original` is it in SAELens, made of these if not given.

    Raises UserError.
    """
    source, kind = declared.source, config["architecture"]
    metadata = part(config, "metadata", source)
    d_in, d_sae = size(config, "d_in", source), size(config, "d_sae", source)
    tensors, folded = _with_old_factor_folded(config, tensors, d_sae, source)
    config = _settled(config, source)
    own = _plain(config, checked(tensors, _shapes(kind, d_in, d_sae), source))
    encoder, k = _encoder(config, own, source)
    imported = record(
        source=source,
        format="saelens",
        architecture=architecture,
        declared_l0=k or declared.l0,
        declared_tokens=declared.tokens,
        context=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos") is not False,
        library=f"sae_lens {version('sae_lens')}",
    )
    return Foreign(
        imported,
        encoder,
        own["W_dec"],
        own["b_dec"],
        kind=KINDS[architecture],
        model=word(metadata, "model_name", source),
        hook_name=word(metadata, "hook_name", source),
        original=original or _in_sae_lens(config, tensors, source),
        warnings=(*folded, *_warnings(metadata, source)),
    )


def _settled(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration whose flags are booleans and whose K is an int, not 32.0. Raises UserError."""
    flags = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
    settled = {name: flag(config, name, default, source) for name, default in flags.items() if name in config}
    return {**config, **settled, **({"k": size(config, "k", source)} if config["architecture"] == "topk" else {})}


def _plain(config: Mapping[str, Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the same SAE without what SAELens does to a kind's activations or latents besides."""
    if config["architecture"] == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norms = own["W_dec"].norm(dim=1)
        scaled = {"W_enc": own["W_enc"] * norms, "b_enc": own["b_enc"] * norms}
        return own | scaled | {"W_dec": own["W_dec"] / norms[:, None]}
    if config["architecture"] == "matching_pursuit" and not config.get("apply_b_dec_to_input", True):
        return own | {"b_dec": torch.zeros_like(own["b_dec"])}  # it is added only if it was subtracted
    return own


def _encoder(
    config: Mapping[str, Any], own: Mapping[str, Tensor], source: str
) -> tuple[Encoder | MatchingPursuit, int]:
    """Return an encoder, and how many latents of each token it keeps, 0 if that depends on the token."""
    kind = config["architecture"]
    if kind == "matching_pursuit":
        return _pursuit(config, own, source)
    W_enc, subtracted = own["W_enc"], own["b_dec"] if config.get("apply_b_dec_to_input", True) else None
    if kind == "gated":
        return gated(W_enc, own["b_gate"], own["r_mag"], own["b_mag"], subtracted), 0
    if kind == "topk":
        require_top(config["k"], W_enc.shape[1], source)
        return TopK(W_enc, own["b_enc"], config["k"], subtracted), config["k"]
    if kind == "jumprelu":
        return JumpReLU(W_enc, own["b_enc"], own["threshold"], subtracted), 0
    return ReLU(W_enc, own["b_enc"], subtracted), 0


def _pursuit(config: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> tuple[MatchingPursuit, int]:
    settings = quietly(lambda: MatchingPursuitSAEConfig.from_dict(dict(config)), source)
    iterations, threshold = settings.max_iterations, settings.residual_threshold
    iterations = settings.d_in if iterations is None else iterations
    if type(iterations) is not int or iterations < 1 or not isinstance(threshold, int | float):
        raise UserError(f"{source}: its max_iterations is {iterations!r} and its residual_threshold {threshold!r}")
    if iterations > MOST_ITERATIONS:
        raise UserError(
            f"{source} may take {iterations:,} latents one after another (max_iterations, else its d_in), and they are "
            f"unrolled up to {MOST_ITERATIONS}: set max_iterations in its {CONFIG} to what its tokens need"
        )
    repeats = settings.stop_on_duplicate_support
    encoder = MatchingPursuit(own["W_dec"], iterations, threshold, bool(repeats), own["b_dec"])
    return encoder, 0 if repeats or threshold > 0 else iterations


def quietly(load: Callable[[], Any], source: str) -> Any:
    """Return what SAELens loads, without its warnings. Raises UserError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load()
        except Exception as error:  # a damaged configuration raises anything
            raise UserError(f"SAELens cannot load {source}: {describe(error)}") from error


def _shapes(kind: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    names = {"standard": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "r_mag", "b_mag")}
    decoder: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if kind == "matching_pursuit":
        return decoder
    return {"W_enc": (d_in, d_sae)} | decoder | dict.fromkeys(names.get(kind, ("b_enc",)), (d_sae,))


def _check_training(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> None:
    shapes = _shapes("standard", size(config, "d_in", source), size(config, "d_sae", source))
    checked(tensors, shapes | {"topk_threshold": ()}, source)


def _for_inference(folder: Path, source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a training's SAE as SAELens itself saves it for use: with a threshold in place of a top-k over a batch."""
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch)
        training = quietly(lambda: TrainingSAE.load_from_disk(folder, dtype="float32"), source)
        quietly(lambda: training.save_inference_model(saved), source)
        return reading.json_object(saved / CONFIG), reading.safetensors(saved / WEIGHTS)


def _defaulted(config: dict[str, Any], source: str) -> dict[str, Any]:
    return quietly(lambda: handle_config_defaulting(config), source) | {
        name: config[name] for name in ("finetuning_scaling_factor",) if name in config
    }


def _with_scale_folded(
    config: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fold the factor of a training's activations into the SAE, as SAELens does when a training ends."""
    factor = reading.object_beside(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, float | int) or not factor > 0:
        raise UserError(
            f"{folder} has normalize_activations expected_average_only_in, and the factor that its training scaled "
            f'activations by is in none of its files: put {SCALER} beside them, {{"scaling_factor": sqrt(d_in) / mean '
            "norm of an activation}"
        )
    sae = _in_sae_lens(config, tensors, str(folder))
    sae.fold_activation_norm_scaling_factor(float(factor))
    scaled = ("normalize_activations", "residual_threshold")
    folded = {name: value for name, value in sae.cfg.to_dict().items() if name in scaled}
    return config | folded, dict(sae.state_dict())


def _with_old_factor_folded(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], d_sae: int, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fold the factor of each latent that versions before 6 trained after the SAE into W_dec."""
    tensors = dict(tensors)
    factor = tensors.pop("scaling_factor", tensors.pop("finetuning_scaling_factor", None))
    if factor is None or bool((factor == 1).all()):
        return tensors, ()
    if not config.get("finetuning_scaling_factor"):
        raise UserError(f"{source} has a scaling_factor, and its configuration says that it is not used: correct one")
    W_dec = checked(tensors | {"scaling_factor": factor}, {"scaling_factor": (d_sae,)}, source)["scaling_factor"]
    tensors["W_dec"] = tensors["W_dec"].float() * W_dec[:, None]
    return tensors, ("its scaling_factor, which SAELens 6 no longer reads, is folded into W_dec",)


def _in_sae_lens(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> SAE[Any]:
    """Return an SAE in SAELens' class, in float32."""

    def given(*_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        state = {name: tensor.detach().clone().float() for name, tensor in tensors.items()}
        return {**config, "device": "cpu", "dtype": "float32"}, state

    with torch.no_grad():
        return quietly(lambda: SAE.load_from_disk("", converter=given), source)


def _declared_l0(config: Mapping[str, Any], folder: Path) -> float | None:
    details = part(part(config, "metadata", folder), "training_architecture_details", folder)
    if isinstance(k := details.get("k") or config.get("k"), int | float) and k:
        return float(k)
    if (folder / SPARSITY).exists() and "sparsity" in (saved := reading.safetensors(folder / SPARSITY)):
        return float((10 ** saved["sparsity"].double()).sum())  # log10 of the share of tokens on which each fired
    return None


def _declared_tokens(config: Mapping[str, Any], folder: Path) -> int | None:
    named = (config.get("metadata") or {}).get("training_tokens")  # as agent export writes it
    tokens = config.get("training_tokens") or named or reading.object_beside(folder / RUNNER).get("training_tokens")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def _warnings(metadata: Mapping[str, Any], source: str) -> list[str]:
    found = []
    if arguments := part(metadata, "model_from_pretrained_kwargs", source):
        found.append(
            f"its model was loaded with {', '.join(f'{name}={value}' for name, value in sorted(arguments.items()))} in "
            "TransformerLens, and here no weight is processed: its activations may be others"
        )
    if isinstance(positions := metadata.get("seqpos_slice"), list | tuple) and any(p is not None for p in positions):
        found.append(f"it was trained on the positions {positions} alone, and is scored on all")
    return found
