"""`agent doctor` reckons what a study needs, on the embedded model, and refuses what cannot fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 0, "reckoned from shapes: a job needs about "),
        (("--d-sae", "1000000000"), 2, "error: a job (192 x 1,000,000,000 latents in batches of 1,024): about "),
    ],
)
def test_the_doctor_says_what_a_study_needs(tmp_path: Path, options: tuple[str, ...], code: int, says: str):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SAE_AGENT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "agent", "doctor", "--evals", "core", *options]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert says in (ended.stderr if code else ended.stdout)
    assert ended.stderr.count("\n") == bool(code)
