"""The command line: what a user's mistake gets, and how soon an answer comes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin import Checkout, make_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_checkout(tmp_path_factory.mktemp("cli"))
    checkout.plan("fine")
    return checkout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --idea stand_inn --max-runs 1", "unknown idea 'stand_inn': did you mean stand_in?"),
        ("run --idea stand_in --max-runs 0", "--max-runs"),
        ("run --idea stand_in --max-runs many", "--max-runs"),
        ("run --idea stand_in --max-runs 1 --run-timeout -5", "--run-timeout"),
        ("run --idea stand_in --max-runs 1 --max-hours 0", "--max-hours 0"),
        ("run --idea stand_in", "--max-runs"),
        ("run --max-runs 1", "--idea"),
        ("run --idea stand_in --max-runs 1 --modle gpt2", "--modle"),
        ("run --idea stand_in --max-runs 1 --model gtp2", "unknown model 'gtp2': did you mean tiny-lm?"),
        ("rum", "'rum'"),
        ("resume", "agent run starts one"),
        ("resume nowhere", "nowhere is not a study that has started"),
        ("show", "path"),
        ("show nowhere", "nowhere is not a directory"),
        ("show .", "neither a run"),
    ],
)
def test_a_mistake_gets_one_line(checkout: Checkout, arguments: str, said: str):
    ended = checkout.agent(*arguments.split())
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list((checkout.root / "runs").glob("*"))


def test_no_command_at_all_shows_the_commands(checkout: Checkout):
    ended = checkout.agent()
    assert ended.returncode == 0
    assert "resume" in ended.stdout
    assert not ended.stderr


def test_a_broken_template_is_known_before_anything_starts(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    template = checkout.root / "templates/ideas/stand_in/experiment.py.j2"
    template.write_text(template.read_text().replace("{{ behaviour }}", "{{ behavior }}"))
    ended = checkout.run(1)
    assert ended.returncode == 2
    assert "stand_in, step step_1_sound" in ended.stderr
    assert "line 2: 'behavior' is undefined" in ended.stderr
    assert not (checkout.root / "runs").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    (checkout.root / "runs").write_text("a file where a directory should be")
    ended = checkout.run(1)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {checkout.root / 'runs'}: File exists\n"


def test_a_machine_without_git_is_told_so(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    ended = checkout.run(1, PATH=str(tmp_path))
    assert ended.returncode == 2
    assert "error: git is not installed" in ended.stderr
    assert not list((checkout.root / "runs").glob("*"))


def test_help_comes_within_a_second(checkout: Checkout):
    start = time.monotonic()
    ended = checkout.agent("--help")
    assert time.monotonic() - start < 1
    assert ended.returncode == 0
    assert "show" in ended.stdout


def test_the_first_line_comes_within_two_seconds(checkout: Checkout):
    start = time.monotonic()
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HARVEST="60")
    assert driver.stdout
    assert driver.stdout.readline().startswith("A stand-in idea: tiny-lm")
    assert time.monotonic() - start < 2
    driver.terminate()
    driver.communicate(timeout=30)
    assert driver.returncode == 130


def test_the_driver_does_not_import_torch():
    heavy = {"torch", "matplotlib", "git", "rich"}
    code = f"import sys, agent.cli, agent.loop, agent.show; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
