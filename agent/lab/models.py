"""Models by name: the embedded tiny-lm, a local directory, or any model of the hub that TransformerLens can wrap."""

import contextlib
import io
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agent.lab import hub, model_files, model_shape, parity, precision, worlds
from agent.lab.defaults import (
    CONTEXT,
    CONTEXT_VARIABLE,
    DTYPES,
    LEAST_CONTEXT,
    WORLD_FILE,
    WORLD_HOOK,
    WORLDS,
    is_world,
)
from agent.lab.errors import UserError, describe, did_you_mean
from agent.lab.model_shape import POSITIONS

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

EMBEDDED = {"tiny-lm": Path(__file__).parent / "tiny_lm"}
LINK = "local"  # what TransformerLens calls every model


@dataclass(frozen=True)
class DeviceConfig:
    """The device of the computation, and the language model's dtype on it."""

    device: str
    dtype: torch.dtype


def device_config() -> DeviceConfig:
    """Return SAE_AGENT_DEVICE, or else a GPU if there is one; and SAE_AGENT_DTYPE, or else bfloat16 on a GPU and
    float32 on a CPU.

    Raises UserError for a device that this machine lacks, or an unknown dtype.
    """
    device = os.environ.get("SAE_AGENT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise UserError(f"unknown device {device!r}: use cpu, cuda, cuda:N or mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("no device mps here: use --device cpu")
    on_gpu = device.startswith("cuda")
    if on_gpu and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(f"no device {device}: {torch.cuda.device_count()} GPUs are visible; use --device cpu")
    dtype = os.environ.get("SAE_AGENT_DTYPE") or ("bfloat16" if on_gpu else "float32")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: use {' or '.join(DTYPES)}")
    if (device, dtype) == ("mps", "bfloat16"):
        raise UserError("--dtype bfloat16 is not for --device mps, which is used in float32 alone: leave it out")
    return DeviceConfig(device, getattr(torch, dtype))


def local_directory(name: str) -> Path | None:
    """Return the directory of an embedded or local model, or None for a name of the hub or of WORLDS.

    Raises UserError for a directory without a model.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    path = Path(name).expanduser()
    if name in WORLDS or not path.is_dir():
        return None
    if not (path / model_files.CONFIG).is_file() and not (path / WORLD_FILE).is_file():
        raise UserError(f"{path} holds no config.json: a local model is a directory that save_pretrained wrote")
    return path.absolute()


def find_directory(name: str) -> Path | None:
    """Return the directory of a model's files, or None for a hub model that was not fetched yet, or not whole.

    Raises UserError for an unknown model.
    """
    if directory := local_directory(name):
        return directory
    snapshot = hub.stored(hub_repository(name))
    return snapshot if snapshot and hub.is_complete(snapshot) else None


def canonical_name(name: str) -> str:
    """Return the one name of a model: a local one's absolute path, without links, and the hub's own name.

    Raises UserError for a name that is neither.
    """
    if name in EMBEDDED or name in WORLDS:
        return name
    if directory := local_directory(name):
        return str(directory.resolve())
    return name if Path(name).is_absolute() else hub_repository(name)  # a confined run sees no model's files


def identity(name: str) -> str:
    """Return a hash of a local model's files, or the hub's commit for another, fetched if need be.

    Raises UserError for a model that is unknown, unreachable, or lacks files.
    """
    if is_world(name):
        return worlds.identity(name)
    directory = local_directory(name)
    if directory is None:
        return hub.snapshot(hub_repository(name)).name
    files = model_files.needed(directory)
    if name in EMBEDDED:  # by what was hashed before a tokenizer's settings were: its activations stay
        files = [path for path in files if path.name != "tokenizer_config.json"]
    return model_files.hash_files(files)


def load(name: str) -> "HookedTransformer":
    """Load a language model in evaluation mode, without weight processing, and check it against transformers.

    Its logits are in float32. It is a TransformerLens bridge around the transformers model (see bridge.py), but for the
    embedded model, whose figures were made with a HookedTransformer; both have the methods that are used here.

    Raises UserError for a model that is unknown, unreachable or damaged, or is another one in TransformerLens.
    """
    directory, config = local_directory(name) or hub.snapshot(hub_repository(name)), device_config()
    precision.allow_tf32(False)
    model_files.needed(directory)
    # TransformerLens 3 prints an advertisement of its successor, and a line, at every load.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        hf_model, tokenizer = _load_transformers(directory, torch.float32 if name in EMBEDDED else config.dtype)
        ids = parity.sample_ids(tokenizer, _positions(hf_model.config))
        require_embedded(ids, hf_model.get_input_embeddings().num_embeddings)
        try:
            if name in EMBEDDED:
                reference = parity.run_transformers(hf_model, ids)
                model = _hooked_transformer(directory, hf_model, tokenizer, config)
            else:
                reference = parity.run_transformers(hf_model.to(config.device), ids)
                model = _bridge(directory, hf_model, tokenizer, config)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the conversion of an architecture may raise anything
            kind = type(hf_model).__name__
            raise UserError(f"TransformerLens cannot load {directory}, a {kind}: {describe(error)}") from error
    parity.check_model(model, reference, name, config.dtype)
    if config.dtype != torch.float32:
        precision.unembed_in_float32(model)
    return model.eval().requires_grad_(False)


def context_size(model: "HookedTransformer") -> int:
    """Return the tokens in one window of text: the model's positions, at most `most_context()`.

    Raises UserError if SAE_AGENT_CONTEXT asks for more than the model has positions.
    """
    most, positions = most_context(), model.cfg.n_ctx
    if os.environ.get(CONTEXT_VARIABLE) and most > positions:
        raise UserError(f"--context {most}: the model has {positions} positions; give {positions} or fewer")
    return min(positions, most)


def most_context() -> int:
    """Return the tokens in a window of text, if the model has so many positions: SAE_AGENT_CONTEXT, or CONTEXT.

    Raises UserError unless it is a whole number of at least LEAST_CONTEXT.
    """
    asked = os.environ.get(CONTEXT_VARIABLE) or str(CONTEXT)
    if not asked.isdecimal() or int(asked) < LEAST_CONTEXT:
        raise UserError(f"{CONTEXT_VARIABLE} is {asked!r}: give a number of tokens, at least {LEAST_CONTEXT}")
    return int(asked)


def check_hook(model: "HookedTransformer", hook_name: str) -> None:
    """Raise UserError unless the model has this hook, with an activation vector per token that can be replaced."""
    if hook_name not in model.hook_dict:
        raise UserError(f"the model has no hook {hook_name!r}: {did_you_mean(hook_name, model.hook_dict)}")
    model_shape.layer_of(hook_name)
    parity.check_hook(model, hook_name, parity.sample_ids(model.tokenizer, model.cfg.n_ctx))


def require_embedded(ids: torch.Tensor, embeddings: int) -> None:
    """Raise UserError if there are token ids that the model does not embed."""
    if (largest := int(ids.max())) >= embeddings:
        raise UserError(
            f"the tokenizer makes token {largest} of the text, and the model embeds {embeddings} tokens: they do not "
            "belong together; save the model's own tokenizer beside it, or resize its embeddings"
        )


def hook_width(model: "HookedTransformer", hook_name: str) -> int:
    """Return the width of the activation vectors at a hook."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    _, cached = model.run_with_cache(ids, names_filter=[hook_name], prepend_bos=False)
    return cached[hook_name].shape[-1]


def layer_of(hook_name: str) -> int:
    """Return the layer number in a hook's name, 0 for a world. Raises UserError for a hook that cannot be used."""
    return 0 if hook_name == WORLD_HOOK else model_shape.layer_of(hook_name)


def hub_repository(name: str) -> str:
    """Return the hub repository of a name: as the hub spells it, or one of TransformerLens' short names.

    Raises UserError with the closest names.
    """
    if hub.REPOSITORY.fullmatch(name):
        return name
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = {alias.lower(): official for official, names in MODEL_ALIASES.items() for alias in names}
    officials = {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    known: dict[str, str] = {**aliases, **officials}
    if name.lower() not in known:
        raise UserError(
            f"unknown model {name!r}: {did_you_mean(name, [*known, *EMBEDDED, *WORLDS])} (or OWNER/NAME as the hub "
            "spells it, or a local directory)"
        )
    return known[name.lower()]


def _load_transformers(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a transformers model, with eager attention, whose every part can be hooked, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # damaged files raise what their readers raise
        raise UserError(f"{directory} cannot be loaded as a model: {str(error).splitlines()[0]}") from error
    return hf_model, _with_end(tokenizer, hf_model.get_input_embeddings().num_embeddings, directory)


def _with_end(tokenizer: Any, embeddings: Any, directory: Path) -> Any:
    """Return a tokenizer with an end token, which documents are separated by: if it has none, the beginning token."""
    if tokenizer.eos_token_id is None:
        if tokenizer.bos_token_id is None:
            raise UserError(
                f"the tokenizer in {directory} has neither a beginning nor an end token, one of which separates "
                "documents: set eos_token in its tokenizer_config.json"
            )
        tokenizer.eos_token = tokenizer.bos_token
    for kind in ("bos", "eos", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None and number >= embeddings:
            raise UserError(
                f"the {kind}_token of the tokenizer in {directory} is token {number}, and the model embeds "
                f"{embeddings}: set another {kind}_token in its tokenizer_config.json, or resize the model's embeddings"
            )
    return tokenizer


def _positions(config: Any) -> int:
    """Return the positions that a transformers model has, or CONTEXT if its config does not limit them."""
    text = config.get_text_config()
    return next((getattr(text, name) for name in POSITIONS if getattr(text, name, None)), CONTEXT)


def _bridge(directory: Path, hf_model: Any, tokenizer: Any, config: DeviceConfig) -> Any:
    from agent.lab.bridge import Bridge  # its import takes four seconds

    model = Bridge.wrap(hf_model, str(directory), tokenizer=tokenizer, device=config.device, dtype=config.dtype)
    model.cfg.model_name = LINK  # SAE-Bench joins it to its folders: a path would have it write beside the model
    return model


def _hooked_transformer(directory: Path, hf_model: Any, tokenizer: Any, config: DeviceConfig) -> "HookedTransformer":
    """Convert a transformers model, by a neutral link to its directory.

    TransformerLens picks the architecture by substrings of the path: a folder of user robert would load as BERT.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path(LINK).symlink_to(directory, target_is_directory=True)
        OFFICIAL_MODEL_NAMES.append(LINK)
        try:
            return HookedTransformer.from_pretrained_no_processing(
                LINK, hf_model=hf_model, tokenizer=tokenizer, device=config.device, dtype=config.dtype
            )
        finally:
            OFFICIAL_MODEL_NAMES.remove(LINK)
