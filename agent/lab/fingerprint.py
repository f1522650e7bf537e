"""The ground on which figures compare: what they depend on beside the experiment."""

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import torch

from agent.lab import models, text
from agent.lab.code_hash import lab_hash


def environment() -> dict[str, str]:
    """Versions, device and text that the figures depend on. Imports none of the packages it names but torch."""
    packages = ("torch", "transformer-lens", "sae-lens", "sae-bench", "sae-probes", "scikit-learn", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    chosen = models.device_config()
    return {
        "python": platform.python_version(),
        **versions,
        "device": torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else chosen.device,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "text": text.VERSION,
    }


def fingerprint(model: str) -> dict[str, Any]:
    """`parts`, and `ground`, a hash of them: figures of two runs compare where these are equal."""
    parts = {"model": models.identity(model), "lab": lab_hash(), **environment()}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"ground": digest[:16], "parts": parts}
