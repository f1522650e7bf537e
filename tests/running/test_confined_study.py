"""Whole studies with stand-in experiments, confined: they come to the same end, and what meddles meets nothing."""

import os
import shutil
from pathlib import Path

import pytest
from standin import HERE, Checkout, make_checkout

from agent.running import sandbox
from agent.running.sandbox import Sandbox
from agent.study.records import SandboxKind


def path_with(kind: SandboxKind, folder: Path) -> str:
    """Return a PATH under which this kind is the best that works; skip where it does not work at all."""
    found = {"bubblewrap": sandbox.find_bubblewrap, "landlock": sandbox.find_landlock}[kind]()
    if not isinstance(found, Sandbox):
        pytest.skip(found)
    if kind == "bubblewrap":
        return os.environ["PATH"]
    folder.mkdir()
    git = shutil.which("git")
    assert git
    (folder / "git").symlink_to(git)  # and no bwrap
    return str(folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.mark.parametrize("kind", ["bubblewrap", pytest.param("landlock", marks=pytest.mark.slow)])
def test_a_confined_study_comes_to_its_end(checkout: Checkout, tmp_path: Path, kind: SandboxKind):
    checkout.plan("better", "tampering", "rewriting", "killed")
    result = checkout.run(4, "--sandbox", "required", PATH=path_with(kind, tmp_path / "bin"))
    assert result.returncode == 0, result.stderr
    runs = checkout.state.runs
    tried = {run.proposal.title: run.verdict for run in runs}  # side by side, so that failures have runs of their own
    tried |= {each.proposal.title: each.verdict for run in runs for each in run.failed_attempts.values()}
    names = sorted(verdict.name for verdict in tried.values() if verdict)
    assert names == ["crashed", "crashed", "killed", "ok", "ok"]
    words = {"bubblewrap": "bubblewrap ", "landlock": "Landlock and seccomp "}[kind]
    assert f"runs are confined by {words}" in result.stdout
    assert f"Runs were confined by {words}" in checkout.notes
    assert checkout.state.confinements[0].kind == kind
    assert "Better (confirmed)" in checkout.notes
    study = checkout.study.directory
    assert "mine" not in (study / "run_0/final_info.json").read_text()


@pytest.mark.slow
def test_a_study_is_not_resumed_less_confined_unless_that_is_said(checkout: Checkout, tmp_path: Path):
    weaker = path_with("landlock", tmp_path / "bin")
    checkout.plan("better")
    cut = {"PYTHONPATH": f"{checkout.root}:{HERE / 'power_cut'}", "STANDIN_KILL_AFTER": "run_reserved"}
    checkout.run(1, "--sandbox", "required", PATH=path_with("bubblewrap", tmp_path), **cut)
    refused = checkout.agent("resume", PATH=weaker)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "was confined by bubblewrap, and here runs are confined by Landlock" in refused.stderr
    resumed = checkout.agent("resume", "--sandbox", "off")
    assert resumed.returncode == 0, resumed.stderr
    assert "runs are NOT confined: --sandbox off was given" in resumed.stdout
    assert "Runs were confined by bubblewrap" in checkout.notes
    assert "After it was resumed: Runs were NOT confined: --sandbox off was given." in checkout.notes
