"""The fingerprint of what figures depend on beside the experiment: they compare only where it is equal."""

import hashlib
import importlib.metadata
import json
import os
import platform
from typing import Any

import torch

from agent.lab import corpus, models, tokens
from agent.lab.code_hash import lab_hash
from agent.lab.defaults import CONTEXT_VARIABLE, EVALUATION_DATA, THREADS


def environment(text: str = "") -> dict[str, str]:
    """Return versions, device and text that the figures depend on, importing none of the packages but torch.

    `text` is pinned; of a path only the hash of what is there counts.
    """
    packages = ("torch", "transformer-lens", "sae-lens", "sae-bench", "sae-probes", "scikit-learn", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    config = models.device_config()
    return {
        "python": platform.python_version(),
        **versions,
        "device": torch.cuda.get_device_name(config.device) if config.device.startswith("cuda") else config.device,
        "dtype": str(config.dtype).removeprefix("torch."),
        "text": corpus.version(text),
        "evaluation_data": os.environ.get(EVALUATION_DATA, ""),
        "context": os.environ.get(CONTEXT_VARIABLE, ""),
        "threads": os.environ.get(THREADS, ""),
        **({} if tokens.begins() else {"windows": "without a beginning token"}),
    }


def fingerprint(model: str, text: str = "", streamed: bool = False) -> dict[str, Any]:
    """Return the `parts` that figures depend on, and `fingerprint`, 16 hex digits of their hash."""
    parts = {"model": models.identity(model), "lab": lab_hash(), **environment(text)}
    if streamed:  # the rows come in another order
        parts["rows"] = "streamed"
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"fingerprint": digest[:16], "parts": parts}
