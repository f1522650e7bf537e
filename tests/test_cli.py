"""The command line: what a user's mistake gets, and how soon an answer comes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from standin import Checkout, make_checkout

ROOT = Path(__file__).parent.parent


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
        ("run --idea stand_in --max-runs 1 --max-hours nan", "--max-hours nan: give a number of hours above 0"),
        ("run --idea stand_in", "--max-runs"),
        ("run --max-runs 1", "--idea"),
        ("run --idea stand_in --max-runs 1 --evals quik", "unknown evaluation 'quik': did you mean quick?"),
        ("run --idea stand_in --max-runs 1 --evals core,", "unknown evaluation ''"),
        ("run --idea stand_in --max-runs 1 --evals core,ravel", "ravel cannot run: it has no stand-in: write one"),
        ("doctor --evals tp", "unknown evaluation 'tp': did you mean tpp"),
        ("run --idea stand_in --max-runs 1 --modle gpt2", "--modle"),
        ("run --idea stand_in --max-runs 1 --model gtp2", "unknown model 'gtp2': did you mean tiny-lm?"),
        ("rum", "'rum'"),
        ("resume", "agent run starts one"),
        ("resume nowhere", "nowhere is not a study that has started"),
        ("show", "path"),
        ("show nowhere", "nowhere is not a directory"),
        ("show .", "neither a run"),
        ("ideas show stand_inn", "unknown idea 'stand_inn': did you mean stand_in?"),
        ("ideas show", "name"),
        ("cache --clear activation", "--clear activation: did you mean activations"),
        ("cache --clear", "--clear"),
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


def test_the_ideas_are_listed_the_broken_ones_with_what_is_wrong(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("sound", "denser")
    broken = checkout.root / "templates/ideas/broken/idea.yaml"
    broken.parent.mkdir()
    broken.write_text("title: A broken idea\nplan: 3\n")
    ended = checkout.agent("ideas")
    assert ended.returncode == 0
    head, first, second, *errors = (" ".join(line.split()) for line in ended.stdout.splitlines())
    assert head == "name title steps"
    assert first == "broken broken: see below"
    assert second == "stand_in A stand-in idea 2"
    assert errors == [f"broken: {broken} line 1: description: expected this field, found none"]


def test_an_idea_is_shown_with_its_plan(checkout: Checkout):
    checkout.plan("sound", primary_metric="loss_added", hypothesis="It helps.")
    ended = checkout.agent("ideas", "show", "stand_in")
    assert ended.returncode == 0
    for said in (
        "stand_in: A stand-in idea",
        "Nothing is trained.",
        "hypothesis: It helps.",
        "primary metric: loss added, smallest effect worth having 0.005 nats/token",
        "fixed: tiny-lm, blocks.1.hook_resid_post, 1,500,000 tokens, d_sae 1,024, seed 0",
        "1. Step 1 that is sound (step_1)",
        "why: The reason.",
        "predictions: CE-loss score up; L0 same",
        "parameters: behaviour sound",
    ):
        assert said in ended.stdout
    assert "when:" not in ended.stdout


def test_what_a_step_depends_on_is_shown(checkout: Checkout):
    checkout.plan("sound", "denser")
    path = checkout.root / "templates/ideas/stand_in/idea.yaml"
    idea = yaml.safe_load(path.read_text())
    idea["plan"][1]["when"] = {"step": "step_1", "metric": "explained_variance_centered", "came_out": "down"}
    path.write_text(yaml.safe_dump(idea))
    shown = checkout.agent("ideas", "show", "stand_in")
    assert "when: explained variance of step_1 came out below the baseline's" in shown.stdout


def test_a_broken_template_is_known_before_anything_starts(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    template = checkout.root / "templates/ideas/stand_in/experiment.py.j2"
    template.write_text(template.read_text().replace("{{ behaviour }}", "{{ behavior }}"))
    ended = checkout.run(1)
    assert ended.returncode == 2
    assert "stand_in, step step_1:" in ended.stderr
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


def test_the_cache_is_not_cleared_under_a_study(checkout: Checkout):
    checkout.plan("sound")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HARVEST="60")
    assert driver.stdout
    driver.stdout.readline()
    refused = checkout.agent("cache", "--clear", "all")
    driver.terminate()
    driver.communicate(timeout=30)
    assert refused.returncode == 2
    assert "is in use by a study or a run" in refused.stderr
    assert checkout.agent("cache", "--clear", "all").returncode == 0


def test_the_driver_does_not_import_torch():
    files = [path for path in (ROOT / "agent").rglob("*.py") if "lab" not in path.parts and path.name != "__main__.py"]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert "agent.commands.run" in modules
    heavy = {"torch", "transformers", "sae_lens", "sae_bench"}
    code = f"import sys, {', '.join(modules)}; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_the_command_line_starts_with_no_heavy_import():
    heavy = {"torch", "matplotlib", "git", "rich", "openai", "scipy", "pydantic"}
    code = f"import sys, agent.cli; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
