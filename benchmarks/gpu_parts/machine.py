"""The machine, and the rates by which a floor of a training step is reckoned."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from gpu_parts import timing
from gpu_parts.table import Row

from agent.lab import precision

PACKAGES = ("numpy", "transformers", "transformer-lens", "sae-lens", "sae-bench", "scikit-learn", "pandas")
PRODUCT, COPIED = 8192, 2**30  # rows and columns; float32 values, 4 GiB
SMALL_PRODUCT, SMALL_COPIED = 256, 2**18
ROUNDS = 10


@dataclass(frozen=True)
class Rates:
    """Measured rates on random data: of square matrix products in FLOP/s, and of a copy in bytes read and written/s."""

    bfloat16: float
    tf32: float
    float32: float
    memory: float


def rates(rehearse: bool) -> Rates:
    """Measure the rates of the device."""
    size, where = SMALL_PRODUCT if rehearse else PRODUCT, timing.device()

    def product(dtype: torch.dtype, tf32: bool = False) -> float:
        precision.allow_tf32(tf32)
        a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        return 2 * size**3 / timing.medians({"": lambda: a @ b}, ROUNDS)[""] * 1000

    products = product(torch.bfloat16), product(torch.float32, tf32=True), product(torch.float32)
    source = torch.randn(SMALL_COPIED if rehearse else COPIED, device=where)
    target = torch.empty_like(source)
    copy = timing.medians({"": lambda: target.copy_(source)}, ROUNDS)[""]
    return Rates(*products, memory=2 * source.nbytes / copy * 1000)


def measure(rehearse: bool) -> Iterator[Row]:
    """Yield what the machine is, and its rates."""
    where = timing.device()
    name = torch.cuda.get_device_name() if where.type == "cuda" else "NO GPU: a rehearsal on the CPU"
    memory = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if where.type == "cuda" else ""
    yield Row("device", name, memory)
    yield Row("driver, CUDA", _driver(), str(torch.version.cuda))
    yield Row("host", f"{os.cpu_count()} cores", f"Python {platform.python_version()}, {platform.release()}")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    yield Row("torch", torch.__version__, versions)
    missing = [name for name in ("git", "bwrap") if not shutil.which(name)]
    yield Row("programs missing", ", ".join(missing) or "none", "a study needs git; without bwrap see its first lines")
    found, size = rates(rehearse), SMALL_PRODUCT if rehearse else PRODUCT
    for kind in ("bfloat16", "tf32", "float32"):
        yield Row(f"matrix product, {kind}", f"{getattr(found, kind) / 1e12:.3g} TFLOP/s", f"{size} cubed, random data")
    yield Row("copy on the device", f"{found.memory / 1e12:.3g} TB/s", "bytes read and written")


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if not program:
        return "no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
