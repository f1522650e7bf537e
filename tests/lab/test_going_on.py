"""A training that is cut short and goes on from its saved state ends as if nothing had happened."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_lab import BATCH, TOKENS, experiment, load, one_line, run, start, stream
from standin import wait_for

from agent import ideas
from agent.lab import results, state
from agent.lab.activations import SMOKE_TOKENS
from agent.lab.defaults import SAVE_EVERY, STATE_FILE
from agent.lab.errors import UserError
from agent.lab.state import BadState
from agent.study.first_steps import goes_on_otherwise

STEPS = -(-SMOKE_TOKENS // BATCH)
SAVED, CUT = 23, 31  # steps after which the state is saved, and after which the training is cut short
LINE = "guard.resumes(lambda: (sae, optimizer, silent_tokens, dead))"


class Cut(Exception):
    """Somebody ended the process."""


@pytest.fixture(scope="module", autouse=True)
def few_steps(cache_dir: Path) -> Iterator[None]:  # noqa: ARG001
    """Trainings of STEPS steps in this process, whose evaluation is left to others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_AGENT_SMOKE", "1")
        patch.setenv("SAE_AGENT_DRIVEN", "1")
        yield


def script_of(directory: Path, model: Path, idea: str | None = None, **constants: Any) -> Path:
    """Write the experiment that an idea's plan ends with, or the baseline."""
    step = ideas.load(idea).plan[-1] if idea else None
    dead_early = {"DEAD_AFTER": 5 * BATCH, "DEAD_EVERY": 7}
    return experiment(directory, model, step, idea or "hierarchical_sae", **dead_early | constants)


def train(script: Path, out_dir: Path, cut_after: int | None = None) -> Path:
    """Train in this process, as `run(main)` does in its own; `cut_after` so many steps, raise Cut."""
    module: Any = load(script)
    done = 0
    constrain = module.constrain

    def constrain_or_end(sae: Any) -> None:
        nonlocal done
        done += 1
        if done == cut_after:
            raise Cut
        constrain(sae)

    module.constrain = constrain_or_end
    out_dir.mkdir(exist_ok=True)
    shutil.copy(script, out_dir / "experiment.py")
    module.main(out_dir)
    return out_dir


def train_in_two(script: Path, out_dir: Path) -> Path:
    """Train, cut it short some steps after its state was saved, and go on."""
    train_a_part(script, out_dir)
    torch.manual_seed(99)
    return train(script, out_dir)


def train_a_part(script: Path, out_dir: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SAVE_EVERY, str(SAVED * BATCH))
        with pytest.raises(Cut):
            train(script, out_dir, cut_after=CUT)
    return out_dir


@pytest.fixture(scope="module")
def script(small_model: Path, harvest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return script_of(tmp_path_factory.mktemp("going on"), small_model)


@pytest.fixture
def part(script: Path, a_part: Path, tmp_path: Path) -> Path:  # noqa: ARG001
    """A training of `script` that was cut short."""
    return shutil.copytree(a_part, tmp_path / "run_1")


@pytest.fixture(scope="module")
def a_part(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_a_part(script, tmp_path_factory.mktemp("a part") / "run_1")


@pytest.fixture(scope="module")
def undisturbed(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(script, tmp_path_factory.mktemp("undisturbed") / "run_1")


def tensors(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "checkpoint/tensors.safetensors")


def rows(out_dir: Path) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds"}) for row in results.read_metrics(out_dir)]


def assert_alike(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    expected, found = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert goes_on_otherwise(one, other, exact=True) == ""


# What it comes to


def test_it_ends_as_if_nothing_had_happened(script: Path, undisturbed: Path, part: Path):
    """Its seconds add up, and lines after the saved step are dropped."""
    before = results.read_metrics(part)
    assert len(before) == CUT - 1
    torch.manual_seed(99)
    assert_alike(train(script, part), undisturbed)
    assert state.files(part) == []
    after = results.read_metrics(part)
    assert after[:SAVED] == before[:SAVED]
    assert [row.step for row in after] == list(range(1, STEPS + 1))
    assert after[SAVED].seconds >= before[SAVED - 1].seconds


@pytest.mark.slow
@pytest.mark.parametrize("idea", ideas.idea_names())
def test_that_of_every_idea_does(small_model: Path, harvest: Any, tmp_path: Path, idea: str):
    assert harvest
    script = script_of(tmp_path / "idea", small_model, idea)
    found = train_in_two(script, tmp_path / "cut")
    assert len(rows(found)) == STEPS
    assert_alike(found, train(script, tmp_path / "undisturbed"))


def test_what_is_not_declared_shows_in_the_first_steps(script: Path, undisturbed: Path, tmp_path: Path):
    forgetful = tmp_path / "forgetful.py"
    forgetful.write_text(script.read_text().replace(LINE, "guard.resumes(lambda: (sae, silent_tokens, dead))"))
    found, expected = train_in_two(forgetful, tmp_path / "cut"), undisturbed
    assert f"up to step {SAVED + 2} is " in goes_on_otherwise(expected, found, exact=True)
    assert goes_on_otherwise(expected, found, exact=False)


def test_without_the_line_it_saves_nothing(script: Path, tmp_path: Path):
    old = tmp_path / "old.py"
    old.write_text(script.read_text().replace(LINE, "pass"))
    assert state.files(train_a_part(old, tmp_path / "cut")) == []


def test_what_cannot_be_kept_is_said_once_and_trained_on(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    odd = tmp_path / "odd.py"
    changed = script.read_text().replace(LINE, LINE.replace("dead))", "dead, seen))"))
    odd.write_text(changed.replace("    for step, x in", "    seen = iter([])\n    for step, x in"))
    monkeypatch.setenv(SAVE_EVERY, str(BATCH))
    train(odd, tmp_path / "run_1")
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "state" in line] == [
        "no state is saved, so an interruption starts this training over: a list_iterator among its variables cannot "
        "be kept"
    ]


@pytest.mark.parametrize("given", ["(sae, optimizer)", "lambda: TOKENS"])
def test_what_names_no_variables_is_refused(script: Path, tmp_path: Path, given: str):
    mistaken = tmp_path / "mistaken.py"
    mistaken.write_text(script.read_text().replace(LINE, f"guard.resumes({given})"))
    with pytest.raises(UserError, match="takes a lambda that names variables of main"):
        train(mistaken, tmp_path / "run_1")


# What it does not go on from


def test_a_state_that_is_cut_short_is_refused(script: Path, part: Path):
    (path,) = state.files(part)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadState, match="is cut short, or no saved state: delete it to start over, or choose another"):
        train(script, part)


def test_that_of_another_experiment_is_refused(script: Path, part: Path, tmp_path: Path):
    other = tmp_path / "other.py"
    other.write_text(script.read_text() + "# changed\n")
    with pytest.raises(BadState, match=r"was saved by another experiment\.py: delete it"):
        train(other, part)


def test_that_of_another_stream_is_refused(script: Path, part: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SAE_AGENT_SMOKE")
    with pytest.raises(BadState, match=rf"is of .*{SMOKE_TOKENS}, {BATCH}, 0\], and this training of .*{TOKENS}"):
        train(script, part)


@pytest.mark.parametrize(("value", "message"), [("nan", "is not finite"), ("shape", "has the shape"), ("gone", "")])
def test_that_of_other_parameters_is_refused(script: Path, part: Path, value: str, message: str):
    (path,) = state.files(part)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    kept = load_file(path)
    name = next(name for name, tensor in kept.items() if tensor.dim() == 2)
    if value == "gone":
        del kept[name]
    else:
        kept[name] = torch.full_like(kept[name], torch.nan) if value == "nan" else kept[name][:-1]
    save_file(kept, path, metadata=metadata)
    with pytest.raises(BadState, match=rf"does not fit this training \(.*{message}"):
        train(script, part)


# By hand


@pytest.mark.slow
def test_after_kill_9_the_same_command_goes_on(script: Path, undisturbed: Path, tmp_path: Path):
    command, every = (script, "--out_dir"), str(BATCH)
    process = start(*command, tmp_path / "cut", SAE_AGENT_SAVE_EVERY=every)
    wait_for(lambda: len(rows(tmp_path / "cut")) >= SAVED)
    process.send_signal(signal.SIGSTOP)
    process.kill()
    process.communicate()
    assert state.files(tmp_path / "cut")
    again = run(*command, tmp_path / "cut", SAE_AGENT_SAVE_EVERY=every)
    assert again.returncode == 0, again.stderr
    assert "going on after " in again.stderr
    assert_alike(tmp_path / "cut", undisturbed)
    assert state.files(tmp_path / "cut") == []


@pytest.mark.slow
def test_another_experiment_leaves_the_directory_as_it_was(script: Path, part: Path, tmp_path: Path):
    other = tmp_path / "other.py"
    other.write_text(script.read_text() + "# changed\n")
    before = {path.name: path.read_bytes() for path in part.iterdir()}
    ended = run(other, "--out_dir", part)
    assert ended.returncode == 2
    assert "was saved by another experiment.py: delete it to start over" in one_line(ended.stderr)
    assert {path.name: path.read_bytes() for path in part.iterdir()} == before


# The stream


def test_a_stream_that_skips_rows_goes_on_where_it_would_have_been(small_model: Path, harvest: Any):
    assert harvest
    whole = list(stream(small_model, 2 * TOKENS))
    for batches in (1, len(whole) // 4, len(whole) - 2):  # the first pass over the shards ends in the middle
        rest = stream(small_model, 2 * TOKENS)
        rest.skip = batches * BATCH
        found = list(rest)
        assert len(found) == len(whole) - batches
        assert all(torch.equal(one, other) for one, other in zip(found, whole[batches:], strict=True))


def test_only_the_newest_state_is_left(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SAVE_EVERY, str(BATCH))
    with pytest.raises(Cut):
        train(script, tmp_path / "run_1", cut_after=CUT)
    assert [path.name for path in state.files(tmp_path / "run_1")] == [STATE_FILE.format((CUT - 1) * BATCH)]
