"""Models of a hub, here one on this machine: what is fetched, completed, and said when it cannot be."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from small_lab import one_line, run

NAME = "google/gemma-2-2b"
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub(small_model: Path, tmp_path: Path) -> Iterator[LoopbackHub]:
    repository = Path(shutil.copytree(small_model, tmp_path / "repository"))
    for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack"):
        (repository / name).write_text("not needed")
    with LoopbackHub({NAME: repository}) as hub:
        yield hub


def snapshot(hub: LoopbackHub, home: Path, name: str = NAME) -> tuple[Path, list[str]]:
    """Return the folder of a model in the cache, fetched if need be, and the files that were fetched for it."""
    hub.downloads.clear()
    code = f"from agent.lab import hub; print(hub.snapshot({name!r}))"
    ended = run("-c", code, **hub.environment(home))
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.strip()), sorted(name.rpartition("/")[2] for name in hub.downloads)


def refusal(hub: LoopbackHub, home: Path, name: str = NAME) -> str:
    """Return the one line that is said of a model that cannot be fetched."""
    code = (
        "from agent.lab import hub\nfrom agent.lab.errors import UserError\n"
        f"try:\n    hub.snapshot({name!r})\nexcept UserError as error:\n    print(error)"
    )
    ended = run("-c", code, **hub.environment(home))
    assert not [line for line in ended.stderr.splitlines() if not line.startswith("fetching")], ended.stderr
    return one_line(ended.stdout)


def test_what_is_needed_is_fetched_once_and_completed(hub: LoopbackHub, tmp_path: Path):
    home = tmp_path / "home"
    folder, fetched = snapshot(hub, home)
    assert folder.name == hub.commit(NAME)
    assert {path.name for path in folder.iterdir()} == set(fetched) == FILES
    assert snapshot(hub, home) == (folder, [])
    for name in ("model.safetensors", "tokenizer.json"):  # as a download that was stopped leaves it
        (folder / name).resolve().unlink()
        (folder / name).unlink()
    assert snapshot(hub, home) == (folder, ["model.safetensors", "tokenizer.json"])


def test_a_model_is_described_by_its_config_before_it_is_fetched(hub: LoopbackHub, tmp_path: Path):
    home = tmp_path / "home"
    described = run("-m", "agent.lab.describe_model", NAME, **hub.environment(home))
    assert described.returncode == 0, described.stderr
    config = json.loads((tmp_path / "repository/config.json").read_text())
    assert json.loads(described.stdout) == {"model": NAME, "config": config}
    assert hub.downloads == [f"{NAME}/config.json"]
    assert snapshot(hub, home)[1] == sorted(FILES - {"config.json"})


@pytest.mark.slow
def test_a_fetch_that_breaks_off_is_one_line_and_goes_on_later(hub: LoopbackHub, tmp_path: Path):
    hub.broken.add("model.safetensors")
    line = refusal(hub, tmp_path / "home")
    assert "could not be fetched" in line
    assert "try again, what was fetched is kept" in line
    hub.broken.clear()
    folder, _ = snapshot(hub, tmp_path / "home")
    content = (tmp_path / "repository/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == content


def test_a_gated_model_is_answered_with_its_page_and_the_place_of_the_token(hub: LoopbackHub, tmp_path: Path):
    hub.gated = frozenset({NAME})
    line = refusal(hub, tmp_path / "home")
    assert f"it is gated: accept its terms at {hub.url}/{NAME}" in line
    assert "HF_TOKEN" in line


def test_a_model_that_does_not_exist_or_holds_no_weights_is_one_line(hub: LoopbackHub, tmp_path: Path):
    assert "the hub has no such model" in refusal(hub, tmp_path / "home", "google/gemma-7")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / "repository" / name).unlink()
    assert "it holds no weights (model.safetensors or" in refusal(hub, tmp_path / "home")


def test_without_the_hub_a_part_of_a_model_is_one_line(hub: LoopbackHub, tmp_path: Path):
    folder, _ = snapshot(hub, tmp_path / "home")
    (folder / "tokenizer.json").unlink()
    hub.__exit__()
    line = refusal(hub, tmp_path / "home")
    assert f"model {NAME} is stored only in part on this machine and the hub cannot be reached" in line
