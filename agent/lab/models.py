"""Models by name, as HookedTransformers: the embedded tiny-lm, a local directory, or any hub model."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from safetensors import SafetensorError

from agent.lab import precision, worlds
from agent.lab.defaults import DTYPES, WORLD_FILE, WORLD_HOOK, WORLDS, is_world
from agent.lab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

EMBEDDED = {"tiny-lm": Path(__file__).parent / "tiny_lm"}
HOOK = re.compile(r"blocks\.\d+\.(hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|mlp\.hook_post)")
MAX_CONTEXT = 128  # tokens in a window, SAE-Bench core's default; longer ones cost attention time


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
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"unknown device {device!r}: use cpu, cuda or cuda:N")
    on_gpu = device.startswith("cuda")
    if on_gpu and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(f"no device {device}: {torch.cuda.device_count()} GPUs are visible; use --device cpu")
    dtype = os.environ.get("SAE_AGENT_DTYPE") or ("bfloat16" if on_gpu else "float32")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: use {' or '.join(DTYPES)}")
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
    if not (path / "config.json").is_file() and not (path / WORLD_FILE).is_file():
        raise UserError(f"{path} holds no config.json: a local model is a directory that save_pretrained wrote")
    return path.absolute()


def find_directory(name: str) -> Path | None:
    """Return the directory of a model's files, or None for a hub model that was not fetched yet.

    Raises UserError for an unknown model.
    """
    if directory := local_directory(name):
        return directory
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(_hub_repository(name), "config.json")
    return Path(config).parent if isinstance(config, str) else None


def canonical_name(name: str) -> str:
    """Return a name that finds the same model from any working directory: for a local one its absolute path."""
    directory = local_directory(name)
    return str(directory) if directory and name not in EMBEDDED else name


def identity(name: str) -> str:
    """Return a hash of weights and tokenizer for a local model, the hub's commit for another, fetched if need be."""
    if is_world(name):
        return worlds.identity(name)
    directory = local_directory(name)
    if directory is None:
        return _hub_commit(_hub_repository(name))
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix == ".safetensors" or path.name in {"config.json", "tokenizer.json"}:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def load(name: str) -> "HookedTransformer":
    """Load a language model in evaluation mode, without weight processing. Its logits are in float32.

    Raises UserError for a model that is unknown, unreachable or damaged.
    """
    directory = local_directory(name)
    config = device_config()
    precision.allow_tf32(False)
    # TransformerLens 3 prints an advertisement of its successor, and a line, at every load.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = _load_local(directory, config) if directory else _load_hub(name, config)
    if model.tokenizer is None:
        raise UserError(f"model {name} has no tokenizer: save one to its directory")
    if config.dtype != torch.float32:
        precision.unembed_in_float32(model)
    return model.eval().requires_grad_(False)


def context_size(model: "HookedTransformer") -> int:
    """Return the tokens in one window of text: the model's context, at most MAX_CONTEXT."""
    return min(model.cfg.n_ctx, MAX_CONTEXT)


def check_hook(model: "HookedTransformer", hook_name: str) -> None:
    """Raise UserError unless the model has this hook and it has an activation vector per token."""
    if hook_name not in model.hook_dict:
        raise UserError(f"the model has no hook {hook_name!r}: {did_you_mean(hook_name, model.hook_dict)}")
    if not HOOK.fullmatch(hook_name):
        raise UserError(f"hook {hook_name!r} has no per-token activation vector: use one like blocks.1.hook_resid_post")


def layer_of(hook_name: str) -> int:
    """Return the layer number in a hook's name, 0 for a world. Raises UserError for a name without one."""
    if hook_name == WORLD_HOOK:
        return 0
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    if match is None:
        raise UserError(f"hook {hook_name!r} names no layer: use one like blocks.1.hook_resid_post")
    return int(match.group(1))


def _load_local(directory: Path, config: DeviceConfig) -> "HookedTransformer":
    """Load a local model by a neutral link, and check its architecture against its own config.json.

    TransformerLens picks the architecture by substrings of the path: a folder of user robert would load as BERT.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{directory} cannot be loaded as a model: {str(error).splitlines()[0]}") from error
    working_directory = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "local").symlink_to(directory, target_is_directory=True)
        os.chdir(scratch)  # a relative name keeps the user's folders out of the path that TransformerLens reads
        OFFICIAL_MODEL_NAMES.append("local")
        try:
            model = HookedTransformer.from_pretrained_no_processing(
                "local", hf_model=hf_model, tokenizer=tokenizer, device=config.device, dtype=config.dtype
            )
        except Exception as error:  # the conversion of an architecture may raise anything
            raise UserError(f"TransformerLens cannot load {directory}: {error}") from error
        finally:
            OFFICIAL_MODEL_NAMES.remove("local")
            os.chdir(working_directory)
    declared = json.loads((directory / "config.json").read_text())["architectures"][0]
    if model.cfg.original_architecture != declared:
        raise UserError(
            f"{directory} is a {declared}, but TransformerLens loaded it as {model.cfg.original_architecture}"
        )
    return model


def _hub_repository(name: str) -> str:
    """Return the hub repository of a TransformerLens model name or alias. Raises UserError with the closest names."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = {alias.lower(): official for official, names in MODEL_ALIASES.items() for alias in names}
    officials = {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    known: dict[str, str] = {**aliases, **officials}
    if name.lower() not in known:
        raise UserError(
            f"unknown model {name!r}: {did_you_mean(name, [*known, *EMBEDDED, *WORLDS])} (or a local directory)"
        )
    return known[name.lower()]


def _hub_commit(repository: str) -> str:
    """Return the commit of a hub model's local snapshot, fetching it first if there is none."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json")
    if not isinstance(config, str):
        _fetch(repository)
        config = try_to_load_from_cache(repository, "config.json")
    if not isinstance(config, str):
        raise UserError(f"model {repository} holds no config.json on the hub: use another model")
    return Path(config).parent.name


@functools.cache
def hub_error() -> OSError | None:
    """Return the error of a connection to the hub, or None if it can be reached."""
    from huggingface_hub.constants import ENDPOINT

    hub = urlparse(ENDPOINT)
    address = (hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443))
    try:
        if hub.scheme not in getproxies():  # behind a proxy only the proxy knows
            socket.create_connection(address, timeout=5).close()
    except OSError as error:
        return error
    return None


def _fetch(repository: str) -> None:
    """Download a hub model, so that everything after works without a network. Raises UserError."""
    if error := hub_error():
        raise UserError(
            f"model {repository} is not stored on this machine and the hub cannot be reached ({error}): "
            "use the embedded tiny-lm, a local directory, or fetch it where there is a network"
        )
    script = "import sys; from huggingface_hub import snapshot_download as get; get(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", script, repository],
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode != 0:
        reason = (result.stderr.strip() or "?").splitlines()[-1]
        raise UserError(f"model {repository} could not be fetched: {reason}")


def _load_hub(name: str, config: DeviceConfig) -> "HookedTransformer":
    from transformer_lens import HookedTransformer

    _hub_commit(_hub_repository(name))
    kwargs: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
    return HookedTransformer.from_pretrained_no_processing(name, **kwargs)
