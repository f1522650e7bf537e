"""Text of a hub dataset: streamed, pinned to the commit; what cannot be had is one line, and half of it is nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_hub import TOKEN, LoopbackHub, as_jsonl, as_parquet
from small_lab import HOOK, one_line, run

from agent.lab import corpus, models
from agent.lab.errors import UserError

DOCUMENTS = [f"document {number} of a hub with some words in it" for number in range(4000)]
TOKENS = 20_000


DATASETS = {
    "Skylion007/openwebtext": {
        "plain_text/train-00000-of-00002.parquet": as_parquet(DOCUMENTS[:2000]),
        "plain_text/train-00001-of-00002.parquet": as_parquet(DOCUMENTS[2000:]),
    },
    "some/jsonl": {"train.jsonl": as_jsonl(DOCUMENTS)},
    "some/titles": {"train.jsonl": as_jsonl(DOCUMENTS[:9], "title")},
    "some/program": {"program.py": b"raise SystemExit('this must not be run')"},
    "some/nothing": {"README.md": b"Come back later."},
}


@pytest.fixture
def hub(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:  # noqa: ARG001
    """A hub, and a cache in which nothing of it is kept."""
    with LoopbackHub({f"datasets/{name}": files for name, files in DATASETS.items()}) as hub:
        settings = hub.environment(tmp_path / "hub") | {"SAE_AGENT_CACHE": str(tmp_path)}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield hub


def read(model: Path, text: str) -> tuple[str, torch.Tensor]:
    """Return the pinned name of a text, and its training windows."""
    pinned = corpus.pin(text)
    return pinned, corpus.train_windows(pinned, str(model), lambda: models.load(str(model)), TOKENS)


def kept(cache: Path) -> list[Path]:
    return list(cache.glob("texts/*/*"))


def test_a_hub_dataset_is_streamed_and_pinned_to_its_commit(small_model: Path, tmp_path: Path, hub: LoopbackHub):
    name = "Skylion007/openwebtext"
    pinned, ids = read(small_model, name)
    assert pinned == f"{name}@{hub.commit(f'datasets/{name}')}"
    assert not list((tmp_path / "hub").rglob("*.parquet")), "the dataset was fetched whole"
    served = hub.served_bytes
    hub.repositories = {f"datasets/{name}": {"train.jsonl": as_jsonl(DOCUMENTS[:2000])}}  # another commit
    again, same = read(small_model, name)
    assert (again, torch.equal(same, ids)) == (pinned, True)
    assert hub.served_bytes == served, "what was read once is kept"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some/titles", "the dataset some/titles has no column text, but title"),
        pytest.param("some/nothing", "the dataset some/nothing cannot be opened", marks=pytest.mark.slow),
        pytest.param("some/program", "the dataset some/program cannot be opened", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_read_is_one_line_and_nothing_is_kept(
    small_model: Path, tmp_path: Path, hub: LoopbackHub, text: str, message: str
):
    with pytest.raises(UserError, match=message) as caught:
        read(small_model, text)
    assert "\n" not in str(caught.value)
    assert hub.commit(f"datasets/{text}")
    assert not kept(tmp_path)


def test_what_is_not_there_or_not_for_this_user_says_what_to_do(
    small_model: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError, match="there is no file some/where here and no such dataset on the hub"):
        corpus.pin("some/where")
    hub.gated = frozenset({"datasets/some/jsonl"})
    with pytest.raises(UserError, match=f"accept its terms at {hub.url}/datasets/some/jsonl, set HF_TOKEN"):
        read(small_model, "some/jsonl")
    hub.gated, hub.private = frozenset(), frozenset({"datasets/some/jsonl"})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert corpus.pin("some/jsonl") == f"some/jsonl@{hub.commit('datasets/some/jsonl')}"
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match="the hub refused the token"):
        corpus.pin("some/titles")


def test_an_absent_hub_is_one_line_of_the_command(small_model: Path, tmp_path: Path):
    options = ["--model", str(small_model), "--hook_name", HOOK, "--text", "some/text", "--tokens", str(TOKENS)]
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    absent = run("-P", "-m", "agent.lab.prepare", *options, **settings)
    assert absent.returncode == 2
    message = "error: some/text is no file here, and the hub (http://127.0.0.1:9) cannot be reached"
    assert one_line(absent.stderr).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["train.jsonl", "train.parquet"])
def test_a_hub_that_breaks_off_in_the_middle_of_a_file_leaves_nothing(
    small_model: Path, tmp_path: Path, hub: LoopbackHub, file: str
):
    """It takes half a minute, in which the hub's library tries again."""
    content = as_jsonl(DOCUMENTS * 5) if file.endswith("jsonl") else as_parquet(DOCUMENTS * 5)
    hub.repositories, hub.broken = {"datasets/some/half": {file: content}}, {file}
    with pytest.raises(UserError, match="the dataset some/half c") as caught:
        read(small_model, "some/half")
    assert "peer closed connection" in str(caught.value)
    assert not kept(tmp_path)
