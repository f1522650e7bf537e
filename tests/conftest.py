"""What the tests of the lab share: a small language model, its activations, and a cache that is not the user's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from hypothesis import settings

import agent.lab  # noqa: F401  # before anything imports transformers, as its settings have to be

if TYPE_CHECKING:
    from slurm_cluster import Cluster

    from agent.lab.activations import Manifest
    from agent.lab.evaluation.evaluator import Evaluator

# As in agent.lab's settings, which come too late here: pytest itself imports jaxtyping, as a plugin.
jaxtyping.config.update("jaxtyping_disable", True)

# The same examples every time: what fails on one machine fails on all.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Ctrl-C is ignored in what a script starts in the background, and children inherit that; the tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two test processes at once are each told the width of a terminal, and their children have none.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SAE_AGENT_CACHE for this process and those it starts, until the tests end.

    One thread each: the work is too small for two, and where another process holds the second core it takes 60 times
    as long with them.
    """
    import torch

    directory, threads = tmp_path_factory.mktemp("cache of the tests"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_CACHE", str(directory))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("SAE_AGENT_DEVICE", "SAE_AGENT_SMOKE", "SAE_AGENT_DRIVEN", "SAE_AGENT_FIXED", "SAE_AGENT_SEED"):
            patch.delenv(name, raising=False)
        torch.set_num_threads(1)
        yield directory
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:  # noqa: ARG001
    """A GPTNeoX in a directory whose path holds a space and names TransformerLens would take for an architecture."""
    from small_lab import make_model

    return make_model(tmp_path_factory.mktemp("robert bert") / "my llama t5")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cluster]":
    """A SLURM cluster on this machine."""
    from slurm_cluster import slurm_cluster

    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def harvest(small_model: Path) -> "tuple[Path, Manifest]":
    """The small model's stored activations."""
    from small_lab import HOOK, TOKENS

    from agent.lab import activations

    return activations.ensure_harvest(str(small_model), HOOK, TOKENS)


@pytest.fixture(scope="session")
def evaluator(small_model: Path) -> "Evaluator":
    """The small model with what all its evaluations share."""
    from small_lab import HOOK

    from agent.lab.evaluation.evaluator import Evaluator

    return Evaluator(str(small_model), HOOK)
