"""GPUs that their driver shows and torch cannot use."""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU that this machine or container has
HIDDEN = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES: somebody does not want them used


def unusable(driver: Path = DRIVER) -> str:
    """Return one line on a GPU that NVIDIA's driver shows and torch does not see, or an empty string.

    Empty too where somebody has chosen the CPU, by SAE_AGENT_DEVICE or CUDA_VISIBLE_DEVICES.
    """
    chosen = os.environ.get("SAE_AGENT_DEVICE") or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN
    if chosen or torch.cuda.is_available() or not (names := shown_by_driver(driver)):
        return ""
    return f"{', '.join(names)} is in this machine, but torch {torch.__version__} does not see it ({_reason()})"


def shown_by_driver(driver: Path = DRIVER) -> list[str]:
    """Return the names of the GPUs that NVIDIA's driver shows."""
    texts = [path.read_text(errors="replace") for path in sorted(driver.glob("*/information"))]
    if not texts and (program := shutil.which("nvidia-smi")):  # where /proc has nothing, as on WSL
        with suppress(subprocess.TimeoutExpired):
            texts = [subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout]
    return [name.strip() for text in texts for name in re.findall(r"(?m)^(?:Model:|GPU \d+:)([^(\n]+)", text)]


def _reason() -> str:
    if torch.version.cuda is None:
        return "it is built without CUDA: install one with CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # names the driver's version where that is too old
        return str(error).splitlines()[0]
    return f"it is built for CUDA {torch.version.cuda}"
