"""The command line: one line for a mistake, and quick answers."""

import re
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
    ("arguments", "message"),
    [
        ("run --idea stand_inn --max-runs 1", "unknown idea 'stand_inn': did you mean stand_in?"),
        ("run --idea stand_in --max-runs 0", "--max-runs"),
        ("run --idea stand_in --max-runs many", "--max-runs"),
        ("run --idea stand_in --max-runs 1 --run-timeout -5", "--run-timeout"),
        ("run --idea stand_in --max-runs 1 --max-hours 0", "--max-hours 0"),
        ("run --idea stand_in --max-runs 1 --max-hours nan", "--max-hours nan: give a number of hours above 0"),
        ("run --idea stand_in --max-runs 1 --dtype float16", "'--dtype': 'float16' is not one of"),
        ("run --idea stand_in --max-runs 1 --evaluation-data bench", "'bench' is not one of 'local', 'sae-bench'"),
        ("run --idea stand_in --max-runs 1 --model synth2k --evaluation-data sae-bench", "is a world without one"),
        ("run --idea stand_in --max-runs 1 --model synth2k --dtype bfloat16", "synth2k is a world without one"),
        ("run --idea stand_in --max-runs 1 --text=", "--text is empty: give a file, a folder or a hub dataset"),
        (f"run --idea stand_in --max-runs 1 --text {'pasted' * 100}", "cannot be read (File name too long)"),
        ("run --idea stand_in --max-runs 1 --text ~nobodyatall/a.txt", "is in the home of no user of this machine"),
        ("run --idea stand_in", "--max-runs"),
        ("run --max-runs 1", "--idea"),
        ("run --idea stand_in --max-runs 1 --evals quik", "unknown evaluation 'quik': did you mean quick?"),
        ("run --idea stand_in --max-runs 1 --evals core,", "unknown evaluation ''"),
        ("run --idea stand_in --max-runs 1 --evals=", "unknown evaluation ''"),
        ("run --idea stand_in --max-runs 1 --model=", "--model (empty) is no directory: give a model's directory"),
        ("run --idea stand_in --max-runs 1 --hook blocks.02.hook_mlp_out", "has no per-token activation vector"),
        ("run --idea stand_in --max-runs 1 --evals core,scr", "scr cannot run: it has no stand-in: write one"),
        ("run --idea stand_in --max-runs 1 --evals ravel", "unknown evaluation 'ravel': "),
        ("doctor --evals tp", "unknown evaluation 'tp': did you mean tpp"),
        ("run --idea stand_in --max-runs 1 --modle gpt2", "--modle"),
        ("run --idea stand_in --max-runs 1 --model gtp2", "unknown model 'gtp2': did you mean tiny-lm?"),
        ("rum", "'rum'"),
        ("resume", "is unfinished: start one with `agent run`"),
        ("resume nowhere", "nowhere is not a study that has started"),
        ("review", "start one with `agent run`"),
        ("review nowhere", "nowhere is not a study that has started: give a directory in"),
        ("review .", "is not a study that has started"),
        ("review --port 8000", "--port is for --serve: give that too, or leave it out"),
        (f"review {'long' * 100}", "cannot be read (File name too long)"),
        ("show", "path"),
        ("show nowhere", "nowhere is not a directory"),
        ("show .", "neither a run"),
        ("ideas show stand_inn", "unknown idea 'stand_inn': did you mean stand_in?"),
        ("ideas show", "name"),
        ("cache --clear activation", "--clear activation: did you mean activations"),
        ("cache --clear", "--clear"),
    ],
)
def test_a_mistake_gets_one_line(checkout: Checkout, arguments: str, message: str):
    result = checkout.agent(*arguments.split())
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((checkout.root / "runs").glob("*"))


def test_a_study_that_cannot_fit_is_refused_before_it_starts(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("sound", fixed={"d_sae": 10**9})
    result = checkout.run(1)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: a job \(64 x 1,000,000,000 latents in batches of 1,024\): about [\d,]+ GB of RAM needed, "
        r"and there are [\d.,]+: lower --d-sae( or --batch)?\n",
        result.stderr,
    )
    assert not list((checkout.root / "runs").glob("*"))


def test_agent_without_a_command_lists_the_commands(checkout: Checkout):
    result = checkout.agent()
    assert result.returncode == 0
    assert "resume" in result.stdout
    assert not result.stderr


def test_ideas_are_listed_and_broken_ones_have_their_error(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("sound", "denser")
    broken = checkout.root / "templates/ideas/broken/idea.yaml"
    broken.parent.mkdir()
    broken.write_text("title: A broken idea\nplan: 3\n")
    result = checkout.agent("ideas")
    assert result.returncode == 0
    head, first, second, *errors = (" ".join(line.split()) for line in result.stdout.splitlines())
    assert head == "name title steps"
    assert first == "broken broken: see below"
    assert second == "stand_in A stand-in idea 2"
    assert errors == [f"broken: {broken} line 1: description: expected this field, found none"]


def test_an_idea_is_shown_with_its_plan(checkout: Checkout):
    checkout.plan("sound", primary_metric="loss_added", hypothesis="It helps.")
    result = checkout.agent("ideas", "show", "stand_in")
    assert result.returncode == 0
    for text in (
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
        assert text in result.stdout
    assert "when:" not in result.stdout


def test_the_condition_of_a_step_is_shown(checkout: Checkout):
    checkout.plan("sound", "denser")
    path = checkout.root / "templates/ideas/stand_in/idea.yaml"
    idea = yaml.safe_load(path.read_text())
    idea["plan"][1]["when"] = {"step": "step_1", "metric": "explained_variance_centered", "came_out": "down"}
    path.write_text(yaml.safe_dump(idea))
    result = checkout.agent("ideas", "show", "stand_in")
    assert "when: explained variance of step_1 is below the baseline's" in result.stdout


def test_a_broken_template_is_reported_before_anything_starts(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    template = checkout.root / "templates/ideas/stand_in/experiment.py.j2"
    template.write_text(template.read_text().replace("{{ behaviour }}", "{{ behavior }}"))
    result = checkout.run(1)
    assert result.returncode == 2
    assert "stand_in, step step_1:" in result.stderr
    assert "line 2: 'behavior' is undefined" in result.stderr
    assert not (checkout.root / "runs").exists()


def test_a_directory_that_cannot_be_written_gets_one_line(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    (checkout.root / "runs").write_text("a file where a directory should be")
    result = checkout.run(1)
    assert result.returncode == 1
    assert result.stderr == f"error: {checkout.root / 'runs'}: File exists\n"


def test_missing_git_is_reported(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("fine")
    result = checkout.run(1, PATH=str(tmp_path))
    assert result.returncode == 2
    assert "error: git is not installed" in result.stderr
    assert not list((checkout.root / "runs").glob("*"))


def test_help_takes_less_than_a_second(checkout: Checkout):
    start = time.monotonic()
    result = checkout.agent("--help")
    assert time.monotonic() - start < 1
    assert result.returncode == 0
    assert "show" in result.stdout


def test_a_run_prints_its_first_line_within_two_seconds(checkout: Checkout):
    start = time.monotonic()
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HARVEST="60")
    assert driver.stdout
    assert driver.stdout.readline().startswith("A stand-in idea: tiny-lm")
    assert time.monotonic() - start < 2
    driver.terminate()
    driver.communicate(timeout=30)
    assert driver.returncode == 130


def test_the_cache_is_not_cleared_while_a_study_runs(checkout: Checkout):
    checkout.plan("sound")
    driver = checkout.start("run", "--idea", "stand_in", "--max-runs", "1", SAE_AGENT_STANDIN_HARVEST="60")
    assert driver.stdout
    driver.stdout.readline()
    refusal = checkout.agent("cache", "--clear", "all")
    driver.terminate()
    driver.communicate(timeout=30)
    assert refusal.returncode == 2
    assert "is in use by a study or a run" in refusal.stderr
    assert checkout.agent("cache", "--clear", "all").returncode == 0


def test_the_driver_does_not_import_torch():
    files = [path for path in (ROOT / "agent").rglob("*.py") if "lab" not in path.parts and path.name != "__main__.py"]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert "agent.commands.run" in modules
    heavy = {"torch", "transformers", "sae_lens", "sae_bench"}
    code = f"import sys, {', '.join(modules)}; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_the_command_line_starts_with_no_heavy_import():
    heavy = {"torch", "matplotlib", "git", "rich", "openai", "scipy", "pydantic"}
    code = f"import sys, agent.cli; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
