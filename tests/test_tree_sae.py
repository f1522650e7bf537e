"""The template of tree_sae: each step of its plan trains, and its mechanisms do what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_lab import BATCH, D_SAE, HOOK, TOKENS, K, experiment, load

from agent import ideas
from agent.lab import activations, checkpoint, results

PLAN = ideas.load("tree_sae").plan


def stream(model: Path, size: int = TOKENS, batch: int = BATCH) -> activations.Stream:
    folder, manifest = activations.ensure(str(model), HOOK, TOKENS)
    return activations.Stream(folder, manifest, size, batch, seed=0)


@pytest.fixture(scope="module")
def modules(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    """Each step of the plan as a module."""
    directory = tmp_path_factory.mktemp("steps")
    return {step.name: load(experiment(directory / step.name, small_model, step, idea="tree_sae")) for step in PLAN}


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_each_step_trains_and_leaves_a_checkpoint(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    modules[name].main(tmp_path)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    assert list(loaded.header.groups) == ["level_0", "level_1", "level_2"]
    assert loaded.header.training.tokens == activations.SMOKE_TOKENS
    rows = results.read_metrics(tmp_path)
    assert rows[0].mse and rows[-1].mse and rows[-1].mse < rows[0].mse
