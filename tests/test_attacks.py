"""Attacks on a study, carried out for real against a copy of the checkout: what has been ended does not come back."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from attacking.trial import Calm, calm_study, carry_out
from attacks import ATTACKS

ENDED = ("1", "18", "25", "28")  # in seconds, with the stand-in lab
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the attacks are those of Linux")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    return calm_study(tmp_path_factory.mktemp("calm"), "stand-in", None)


@pytest.mark.parametrize("number", ENDED)
def test_an_attack_that_was_ended_does_not_succeed(number: str, calm: Calm, tmp_path: Path):
    row = carry_out(ATTACKS[number], tmp_path / "trial", None, calm)
    assert row.result in ("stopped", "noticed"), row
