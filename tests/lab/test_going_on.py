"""A training that is cut short and goes on from its saved state ends as if nothing had happened."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_lab import BATCH, experiment, load

from agent import ideas
from agent.lab import results, state
from agent.lab.activations import SMOKE_TOKENS
from agent.lab.defaults import SAVE_EVERY

IDEAS = [None, *sorted(ideas.idea_names())]
STEPS = -(-SMOKE_TOKENS // BATCH)
SAVED, CUT = 23, 31  # steps after which the state is saved, and after which the training is cut short


class Cut(Exception):
    """Somebody ended the process."""


@pytest.fixture(autouse=True)
def few_steps(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv("SAE_AGENT_SMOKE", "1")
    monkeypatch.setenv("SAE_AGENT_DRIVEN", "1")


def script_of(directory: Path, model: Path, idea: str | None) -> Path:
    """Write the experiment that an idea's plan ends with, or the baseline."""
    step = ideas.load(idea).plan[-1] if idea else None
    dead_early = {"DEAD_AFTER": 5 * BATCH, "DEAD_EVERY": 7}
    return experiment(directory, model, step, idea or "hierarchical_sae", **dead_early)


def train(script: Path, out_dir: Path, cut_after: int | None = None) -> None:
    """Train in this process, as `run(main)` does in its own; `cut_after` so many steps, raise Cut."""
    module, done = load(script), 0
    if cut_after:
        constrain = module.constrain

        def constrain_or_end(sae: Any) -> None:
            nonlocal done
            done += 1
            if done > cut_after:
                raise Cut
            constrain(sae)

        module.constrain = constrain_or_end
    out_dir.mkdir(exist_ok=True)
    shutil.copy(script, out_dir / "experiment.py")
    module.main(out_dir)


def tensors(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "checkpoint/tensors.safetensors")


def rows(out_dir: Path) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds"}) for row in results.read_metrics(out_dir)]


@pytest.mark.parametrize("idea", IDEAS)
def test_it_ends_as_if_nothing_had_happened(
    small_model: Path, harvest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idea: str | None
):
    assert harvest
    script = script_of(tmp_path / "idea", small_model, idea)
    train(script, tmp_path / "undisturbed")
    monkeypatch.setenv(SAVE_EVERY, str(SAVED * BATCH))
    with pytest.raises(Cut):
        train(script, tmp_path / "cut", cut_after=CUT)
    assert len(rows(tmp_path / "cut")) == CUT
    torch.manual_seed(99)
    train(script, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "undisturbed")
    assert len(rows(tmp_path / "cut")) == STEPS
    expected, found = tensors(tmp_path / "undisturbed"), tensors(tmp_path / "cut")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert state.files(tmp_path / "cut") == []
