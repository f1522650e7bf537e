"""Attacks on a study, carried out for real against a copy of the checkout: what has been ended does not come back."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from attacking.attack import carry_out
from attacking.trial import Calm, calm_study
from attacks import ATTACKS

# With the stand-in lab and no sandbox.
ENDED = ("1", "16", "18")
ENDED_SLOWLY = ("5", "6", "10", "15", "15b", "16b", "17", "21", "25", "26", "28", "29", "30", "R10", "R11", "R14")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the attacks are those of Linux")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    return calm_study(tmp_path_factory.mktemp("calm") / "study", "stand-in", "off")


@pytest.mark.parametrize("number", [*ENDED, *(pytest.param(number, marks=pytest.mark.slow) for number in ENDED_SLOWLY)])
def test_an_attack_that_was_ended_does_not_succeed(number: str, calm: Calm, tmp_path: Path):
    row = carry_out(ATTACKS[number], tmp_path / "trial", "off", calm)
    assert row.result in ("stopped", "noticed"), row
