"""A GPU that its driver shows and torch does not see is named."""

import os
from pathlib import Path

import pytest
import torch

from agent.lab import gpus
from agent.lab.evaluation import doctor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as NVIDIA's driver shows one GPU; nobody has chosen the CPU."""
    for name in ("SAE_AGENT_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    information = tmp_path / "gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\nGPU UUID: \t GPU-1\n")
    return tmp_path / "gpus"


def test_a_gpu_that_torch_does_not_see_is_one_line_with_the_reason(driver: Path):
    line = gpus.unusable(driver)
    assert line.startswith(f"NVIDIA H200 is in this machine, but torch {torch.__version__} does not see it (")
    assert "\n" not in line


@pytest.mark.parametrize("chosen", [{"SAE_AGENT_DEVICE": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_nothing_is_said_where_the_cpu_was_chosen(
    driver: Path, chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert gpus.unusable(driver) == ""


def test_nothing_is_said_where_there_is_no_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(driver))
    assert gpus.unusable(driver / "none") == ""


def test_nvidia_smi_is_asked_where_the_driver_has_no_folder(driver: Path, monkeypatch: pytest.MonkeyPatch):
    program = driver / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver}:{os.environ['PATH']}")
    assert gpus.unusable(driver / "none").startswith("NVIDIA GeForce RTX 3090 is in this machine, but torch ")
    assert "; NVIDIA GeForce RTX 3090 is in" in doctor.machine_summary()["device"] or gpus.DRIVER.exists()
