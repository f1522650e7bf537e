"""`python experiment.py --out_dir=DIR` in processes of its own, on a small model."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_lab import BATCH, D_SAE, HOOK, TOKENS, K, experiment, one_line, run, start

from agent import ROOT, ideas
from agent.ideas import Fixed
from agent.lab import activations, checkpoint, results
from agent.lab.errors import UserError
from agent.lab.run import make_out_dir, next_free_name

DRIVEN = {"SAE_AGENT_DRIVEN": "1"}


@pytest.fixture(scope="module")
def script(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return experiment(tmp_path_factory.mktemp("experiments"), small_model)


@pytest.fixture(scope="module")
def driven(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the driver starts it."""
    return drive(script, tmp_path_factory.mktemp("driven") / "run_0")


@pytest.fixture(scope="module")
def twice(script: Path, driven: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two driven runs of one experiment, the second in a directory with spaces in its name."""
    return [driven, drive(script, tmp_path_factory.mktemp("twice") / "my second run")]


def drive(script: Path, out_dir: Path) -> Path:
    ended = run(script, "--out_dir", out_dir, **DRIVEN)
    assert ended.returncode == 0, ended.stderr
    return out_dir


@pytest.fixture(scope="module")
def by_hand(script: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run as a user starts it."""
    out_dir = tmp_path_factory.mktemp("by hand") / "run_0"
    return out_dir, run(script, f"--out_dir={out_dir}")


# A run that goes well


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics_and_weights(twice: list[Path]):
    first, second = ([row.model_dump(exclude={"seconds"}) for row in results.read_metrics(out)] for out in twice)
    assert first == second
    one, two = (checkpoint.content_hash(out / "checkpoint") for out in twice)
    assert one == two


def test_a_driven_run_leaves_the_evaluation_to_the_driver(driven: Path):
    present = {path.name for path in driven.iterdir()}
    assert present == {"experiment.py", "metrics.jsonl", "checkpoint", "sae_lens"}


def test_metrics_end_at_the_token_budget_and_learn(driven: Path):
    rows = results.read_metrics(driven)
    assert rows[-1].tokens == TOKENS
    assert rows[-1].l0 == pytest.approx(K, rel=1e-3)
    assert rows[-1].mse
    assert rows[0].mse
    assert rows[-1].mse < rows[0].mse / 2


def test_it_keeps_a_copy_of_itself(script: Path, driven: Path):
    assert (driven / "experiment.py").read_bytes() == script.read_bytes()


def test_the_checkpoint_rebuilds_as_training_said(driven: Path, harvest: Any):
    """Scaling, thresholds and decoder come back: the squared error on unscaled activations is that of training."""
    folder, manifest = harvest
    loaded = checkpoint.load(driven / "checkpoint")
    x = torch.cat(list(activations.stored_stream(folder, manifest, 20_000, BATCH, seed=3)))
    with torch.no_grad():
        latents = loaded.encode(x / manifest.scale)
        error = (loaded.decode(latents) * manifest.scale - x).pow(2).mean().item()
    assert error == pytest.approx(results.read_metrics(driven)[-1].mse, rel=0.1)
    assert (latents > 0).sum(1).float().mean().item() == pytest.approx(K, rel=0.05)


def test_a_run_by_hand_ends_evaluated(by_hand: tuple[Path, Any]):
    out_dir, ended = by_hand
    assert ended.returncode == 0, ended.stderr
    info = results.read(out_dir)
    assert info.verdict.ok, info
    assert info.errors == {}
    assert info.training
    assert (info.training.tokens, info.training.d_sae, info.training.settings["K"]) == (TOKENS, D_SAE, K)
    assert info.core
    # 5% is asked of the full size. Here the held-out text, of another split, is rarer to so small a model.
    assert info.core.l0 == pytest.approx(K, rel=0.1)
    assert "verdict: ok" in ended.stdout
    assert "explained_variance_centered: 0." in ended.stdout


def test_show_prints_it(by_hand: tuple[Path, Any]):
    shown = run("-m", "agent", "show", by_hand[0])
    assert shown.returncode == 0, shown.stderr
    assert "explained variance" in shown.stdout


def test_sae_lens_opens_what_stands_beside_the_checkpoint(driven: Path):
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(driven / "sae_lens"))
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (32, D_SAE)


@pytest.mark.slow
def test_another_seed_gives_other_weights(script: Path, driven: Path, tmp_path: Path):
    other = tmp_path / "other.py"
    other.write_text(script.read_text().replace("SEED = 0", "SEED = 1"))
    ended = run(other, "--out_dir", tmp_path / "run", SAE_AGENT_SMOKE="1")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/experiment.py").read_text() == other.read_text()  # whatever the file is called
    assert results.read_metrics(tmp_path / "run")[-1].tokens == activations.SMOKE_TOKENS
    W_dec = [load_file(out / "checkpoint/tensors.safetensors")["W_dec"] for out in (driven, tmp_path / "run")]
    assert not torch.equal(*W_dec)


@pytest.mark.slow
def test_a_change_that_acts_later_leaves_the_checkpoint_of_a_smoke_run_as_it_was(script: Path, tmp_path: Path):
    """By which a study warns of it: the auxiliary loss waits for latents that are dead."""
    later, hashes = ("DEAD_AFTER = TOKENS // 20", "DEAD_AFTER = TOKENS"), []
    for name, weight in (("before", "1 / 32"), ("changed", "9 / 32")):
        (tmp_path / name).mkdir()
        changed = edited(script, tmp_path / name, later, ("AUX_COEFFICIENT = 1 / 32", f"AUX_COEFFICIENT = {weight}"))
        ended = run(changed, "--out_dir", tmp_path / name / "run", SAE_AGENT_SMOKE="1", **DRIVEN)
        assert ended.returncode == 0, ended.stderr
        hashes.append(checkpoint.content_hash(tmp_path / name / "run/checkpoint"))
    assert hashes[0] == hashes[1]


# What a study fixes


def fixed(model: Path, /, **changes: Any) -> dict[str, str]:
    """The environment of a driven run."""
    settings = {"model": str(model), "hook_name": HOOK, "text": "", "tokens": TOKENS, "d_sae": D_SAE, "seed": 0}
    return DRIVEN | {"SAE_AGENT_FIXED": json.dumps(settings | changes)}


def edited(script: Path, directory: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the experiment with replacements made."""
    source = script.read_text()
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    path = directory / "edited.py"
    path.write_text(source)
    return path


def recorded(run_dir: Path) -> results.Training:
    return checkpoint.read_header(run_dir / "checkpoint").training


@pytest.mark.slow
def test_in_a_study_an_experiment_gets_the_studys_tokens_and_no_more(
    script: Path, small_model: Path, twice: list[Path], tmp_path: Path
):
    greedy = edited(
        script,
        tmp_path,
        (f"TOKENS = {TOKENS:_}", "TOKENS = 99_000_000"),
        ("enumerate(data, guard.steps):", "enumerate(x for source in (data, again, data) for x in source):"),
        ("    sae = SAE(", "    again = stream(MODEL, HOOK_NAME, tokens=TOKENS, batch=999, seed=1)\n    sae = SAE("),
    )
    ended = run(greedy, "--out_dir", tmp_path / "run", **fixed(small_model))
    assert ended.returncode == 0, ended.stderr
    got, fair = recorded(tmp_path / "run"), recorded(twice[0])
    assert (got.tokens, got.steps) == (fair.tokens, fair.steps) == (TOKENS, -(-TOKENS // BATCH))
    assert results.read_metrics(tmp_path / "run")[-1].tokens == TOKENS


@pytest.mark.slow
def test_by_hand_the_files_own_tokens_rule_and_what_was_served_is_recorded(script: Path, tmp_path: Path):
    looped = edited(script, tmp_path, ("(data, guard.steps):", "(x for _ in range(2) for x in data):"))
    ended = run(looped, "--out_dir", tmp_path / "run", SAE_AGENT_SMOKE="1")
    assert ended.returncode == 0, ended.stderr
    assert recorded(tmp_path / "run").tokens == 2 * activations.SMOKE_TOKENS


@pytest.mark.slow
def test_in_a_study_a_smoke_run_is_as_short_as_ever(script: Path, small_model: Path, tmp_path: Path):
    looped = edited(script, tmp_path, ("(data, guard.steps):", "(x for _ in range(2) for x in data):"))
    ended = run(looped, "--out_dir", tmp_path / "run", **fixed(small_model), SAE_AGENT_SMOKE="1")
    assert ended.returncode == 0, ended.stderr
    assert recorded(tmp_path / "run").tokens == activations.SMOKE_TOKENS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "tiny-lm"}, "but the study fixes it to 'tiny-lm': restore it"),
        (
            {"hook_name": "blocks.0.hook_mlp_out"},
            f"'{HOOK}' but the study fixes it to 'blocks.0.hook_mlp_out'",
        ),
    ],
)
def test_another_model_or_hook_than_the_studys_is_one_line(
    script: Path, small_model: Path, tmp_path: Path, changes: dict[str, str], said: str
):
    ended = run(script, "--out_dir", tmp_path / "run", **fixed(small_model, **changes))
    assert ended.returncode == 2
    assert said in one_line(ended.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_replicate_has_another_seed_throughout(script: Path, driven: Path, tmp_path: Path):
    other = edited(script, tmp_path, ("SEED = 0", "SEED = 5"))
    by_edit = run(other, "--out_dir", tmp_path / "by_edit", SAE_AGENT_SMOKE="1", **DRIVEN)
    by_seed = run(script, "--out_dir", tmp_path / "by_seed", SAE_AGENT_SMOKE="1", SAE_AGENT_SEED="5", **DRIVEN)
    assert (by_edit.returncode, by_seed.returncode) == (0, 0), by_seed.stderr
    one, same = (checkpoint.content_hash(tmp_path / name / "checkpoint") for name in ("by_edit", "by_seed"))
    assert one == same != checkpoint.content_hash(driven / "checkpoint")
    record = recorded(tmp_path / "by_seed")
    assert (record.seed, record.settings["SEED"]) == (5, 5)


def test_an_experiment_without_a_seed_cannot_be_reseeded(script: Path, tmp_path: Path):
    seedless = edited(script, tmp_path, ("SEED = 0", "LUCK = 0"), ("(SEED)", "(LUCK)"), ("seed=SEED", "seed=LUCK"))
    ended = run(seedless, "--out_dir", tmp_path / "run", SAE_AGENT_SEED="5", **DRIVEN)
    assert ended.returncode == 2
    assert "the experiment has no constant SEED" in one_line(ended.stderr)
    assert not (tmp_path / "run").exists()


# Mistakes


def test_help_says_what_it_is(script: Path):
    ended = run(script, "--help")
    assert ended.returncode == 0
    assert "--out_dir" in ended.stdout
    assert "BatchTopK" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out_dir"),
        (["--out_dir"], "expected one argument"),
        (["--out_dir", "{tmp}/new", "--k", "8"], "unrecognized arguments: --k 8"),
    ],
)
def test_a_wrong_command_line_exits_2(script: Path, tmp_path: Path, arguments: list[str], said: str):
    ended = run(script, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert ended.returncode == 2
    assert said in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_refused_with_the_next_free_name(script: Path, tmp_path: Path):
    for name in ("run_3", "run_4"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_3/notes.txt").write_text("mine")
    ended = run(script, f"--out_dir={tmp_path / 'run_3'}")
    assert ended.returncode == 2
    assert one_line(ended.stderr).endswith(f"exists and is not empty: choose {tmp_path / 'run_5'}")
    assert [path.name for path in (tmp_path / "run_3").iterdir()] == ["notes.txt"]
    assert (tmp_path / "run_3/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_too_many_latents_a_token_is_one_line(script: Path, tmp_path: Path):
    wrong = tmp_path / "experiment.py"
    wrong.write_text(script.read_text().replace(f"K = {K}\n", f"K = {D_SAE + 1}\n"))
    ended = run(wrong, "--out_dir", tmp_path / "run")
    assert ended.returncode == 2
    assert f"K {D_SAE + 1} is more than D_SAE {D_SAE}" in one_line(ended.stderr)


@pytest.mark.slow
def test_an_unknown_model_is_one_line_with_the_nearest(script: Path, tmp_path: Path):
    wrong = tmp_path / "experiment.py"
    wrong.write_text(script.read_text().replace("MODEL = ", "MODEL = 'gpt3'  # "))
    ended = run(wrong, "--out_dir", tmp_path / "run")
    assert ended.returncode == 2
    assert "unknown model 'gpt3': did you mean" in one_line(ended.stderr)


def make_refused(out_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        make_out_dir(out_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "results").write_text("mine")
    assert f"is a file: choose {tmp_path / 'results_1'}" in make_refused(tmp_path / "results")
    assert (tmp_path / "results").read_text() == "mine"


def test_a_directory_below_a_file_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory): choose another place" in make_refused(tmp_path / "file" / "run_0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_one_may_not_write_is_said(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert "cannot be written (Permission denied)" in make_refused(tmp_path / "run_0")


def test_an_empty_directory_and_missing_parents_will_do(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    make_out_dir(tmp_path / "empty")
    make_out_dir(tmp_path / "not" / "yet there" / "run_0")
    assert (tmp_path / "not/yet there/run_0").is_dir()


@pytest.mark.parametrize(
    ("taken", "free"), [("run_3", "run_4"), ("results", "results_1"), ("run_09", "run_10"), ("a_b", "a_b_1")]
)
def test_the_next_free_name(tmp_path: Path, taken: str, free: str):
    (tmp_path / taken).mkdir()
    assert next_free_name(tmp_path / taken) == tmp_path / free


# Stopped


@pytest.mark.slow
def test_ctrl_c_during_training_leaves_nothing_that_looks_whole(script: Path, tmp_path: Path):
    long = tmp_path / "experiment.py"
    slow = "    for step, x in enumerate(data, guard.steps):\n        import time; time.sleep(0.05)\n"
    long.write_text(script.read_text().replace("    for step, x in enumerate(data, guard.steps):\n", slow))
    process = start(long, "--out_dir", tmp_path / "run")
    metrics, limit = tmp_path / "run/metrics.jsonl", time.monotonic() + 100
    while not metrics.exists() or metrics.stat().st_size == 0:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"interrupted: {tmp_path / 'run'} is not complete" in err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"experiment.py", "metrics.jsonl"}
    assert results.read_metrics(tmp_path / "run")


def test_a_training_that_blows_up_ends_with_its_verdict(script: Path, tmp_path: Path):
    wild = tmp_path / "experiment.py"
    wild.write_text(script.read_text().replace("return mse + AUX", "return mse * float('nan') + AUX"))
    ended = run(wild, "--out_dir", tmp_path / "run")
    assert ended.returncode == 1
    assert "stopped: nan: loss was not finite at step" in one_line(ended.stderr)
    assert results.read(tmp_path / "run").verdict.name == "nan"
    assert not (tmp_path / "run/checkpoint").exists()


# What ships


def test_the_shipped_experiment_is_short_and_imports_nothing_but_the_lab():
    source = (ROOT / "experiment.py").read_text()
    assert source == ideas.render_baseline(Fixed())
    assert len(source.splitlines()) <= 220
    imported = [line.split()[1] for line in source.splitlines() if line.startswith(("from agent", "import agent"))]
    assert imported
    assert all(name.startswith("agent.lab") for name in imported)


@pytest.mark.skipif(os.cpu_count() == 1, reason="torch uses no more threads than cores")
def test_a_run_by_hand_in_a_study_uses_the_studys_threads(tmp_path: Path):
    """As many as the study's own jobs, on which its figures depend."""
    script = tmp_path / "experiment.py"
    script.write_text(
        "import torch\n"
        "from agent.lab.run import run\n"
        "def main(out_dir):\n"
        "    print(torch.get_num_threads())\n"
        'if __name__ == "__main__":\n'
        "    run(main)\n"
    )
    own = run(script, f"--out_dir={tmp_path / 'run_1'}", OMP_NUM_THREADS="2").stdout
    (tmp_path / "setup.json").write_text('{"fixed": {"threads": 1}}')
    assert (own, run(script, f"--out_dir={tmp_path / 'run_2'}", OMP_NUM_THREADS="2").stdout) == ("2\n", "1\n")
