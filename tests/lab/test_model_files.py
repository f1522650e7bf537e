"""A model's directory: what of it makes the model's identity, and what is said of one that lacks something."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent.lab import model_files, models, tokens
from agent.lab.errors import UserError

Edit = Callable[[Path], Any]


@pytest.fixture
def copy(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def edit_json(name: str, **changes: Any) -> Edit:
    """Change fields of a JSON file; those that are None are removed."""

    def edit(directory: Path) -> None:
        content = json.loads((directory / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if key not in changes or value is not None}
        (directory / name).write_text(json.dumps(kept))

    return edit


def as_bin(directory: Path) -> None:
    """Keep the weights in torch's format alone."""
    torch.save(AutoModelForCausalLM.from_pretrained(directory).state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def as_shards(directory: Path) -> None:
    """Keep the weights in several files and an index."""
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(directory, max_shard_size="40KB")
    (directory / "model.safetensors").unlink(missing_ok=True)


def change_weights(directory: Path) -> None:
    path = max(directory.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("keep", [lambda _: None, as_bin, as_shards], ids=["safetensors", "bin", "shards"])
def test_weights_replaced_in_place_are_another_model(copy: Path, keep: Edit):
    keep(copy)
    before = models.identity(str(copy))
    assert models.identity(str(copy)) == before
    change_weights(copy)
    assert models.identity(str(copy)) != before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "tokenizer.json"])
def test_another_tokenizer_or_config_is_another_model(copy: Path, name: str):
    before = models.identity(str(copy))
    edit_json(name, changed=1)(copy)
    assert models.identity(str(copy)) != before


def test_files_that_are_not_loaded_do_not_matter(copy: Path):
    before = models.identity(str(copy))
    for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack", "generation_config.json"):
        (copy / name).write_text("another")
    assert models.identity(str(copy)) == before


@pytest.mark.parametrize("keep", [as_bin, as_shards], ids=["bin", "shards"])
def test_every_format_of_weights_is_the_same_model(copy: Path, small_model: Path, keep: Edit):
    keep(copy)
    ids = torch.ones(1, 7, dtype=torch.long)
    torch.testing.assert_close(models.load(str(copy))(ids), models.load(str(small_model))(ids))


def test_the_identity_of_the_embedded_model_is_what_it_was():
    assert models.identity("tiny-lm") == "8a5a7d06f2e8c3a9"


def _cut(name: str) -> Edit:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:100])


def _remove(*names: str) -> Edit:
    return lambda directory: [(directory / name).unlink() for name in names]


def _pointer(directory: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456789\n"
    (directory / "model.safetensors").write_text(pointer)


def _without_a_shard(directory: Path) -> None:
    as_shards(directory)
    next(directory.glob("model-00002-*")).unlink()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_remove("tokenizer.json"), r"holds no tokenizer \(tokenizer\.json, .*tokenizer\.save_pretrained"),
        (_remove("model.safetensors"), r"holds no weights \(model\.safetensors or "),
        (_without_a_shard, r"holds \d+ of its \d+ weight files; model-00002-\S+ is missing"),
        (_pointer, r"model\.safetensors is a pointer of Git LFS, .*git lfs pull"),
        (_cut("config.json"), r"config\.json cannot be read as JSON"),
        (edit_json("config.json", model_type=None), r"config\.json names no model_type"),
    ],
    ids=["no tokenizer", "no weights", "half the shards", "LFS pointer", "config cut short", "no model_type"],
)
def test_a_directory_that_lacks_something_is_refused_before_it_is_loaded(copy: Path, edit: Edit, said: str):
    edit(copy)
    for refuse in (models.identity, models.load):
        with pytest.raises(UserError, match=said) as caught:
            refuse(str(copy))
        assert "\n" not in str(caught.value)


def test_a_config_without_architectures_loads(copy: Path):
    edit_json("config.json", architectures=None)(copy)
    assert models.load(str(copy)).cfg.n_layers == 2


def _without_special_tokens(directory: Path, **kept: str) -> None:
    edit_json("tokenizer_config.json", **dict.fromkeys(("bos_token", "eos_token", "pad_token")))(directory)
    edit_json("tokenizer_config.json", **kept)(directory)
    (directory / "special_tokens_map.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kept", ["bos_token", "eos_token"])
def test_one_special_token_is_enough(copy: Path, kept: str):
    end = AutoTokenizer.from_pretrained(copy).eos_token
    _without_special_tokens(copy, **{kept: end})
    model = models.load(str(copy))
    ids = tokens.pack(model, ["a short text", "and another"] * 20, 16, 10**6)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, 1:] == 0).any(), "documents are not separated"
    assert tokens.special_ids(model) == {0}


def test_a_tokenizer_without_beginning_and_end_is_refused(copy: Path):
    _without_special_tokens(copy)
    with pytest.raises(UserError, match=r"neither a beginning nor an end token, .* set eos_token"):
        models.load(str(copy))


def test_a_special_token_that_the_model_does_not_embed_is_refused(copy: Path):
    tokenizer: Any = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(copy)
    with pytest.raises(UserError, match=r"pad_token of the tokenizer in .* is token 512, and the model embeds 512"):
        models.load(str(copy))


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(copy: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(copy)
    model.resize_token_embeddings(300)
    model.save_pretrained(copy)
    with pytest.raises(UserError, match=r"makes token \d+ of the text, and the model embeds 300 tokens"):
        models.load(str(copy))


def test_an_embedding_that_no_token_uses_is_no_harm(copy: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(copy)
    model.resize_token_embeddings(640)
    model.save_pretrained(copy)
    assert models.load(str(copy)).cfg.d_vocab == 640


def test_weights_of_one_format_are_fetched():
    tokenizer = ["tokenizer.json", "tokenizer_config.json", "config.json"]
    others = ["README.md", "flax_model.msgpack", "tf_model.h5", "onnx/model.onnx", "original/consolidated.00.pth"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    torch_shards = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    for weights in (["model.safetensors"], shards, torch_shards):
        extra = torch_shards if weights is not torch_shards else []
        names = [*tokenizer, *weights, *others, *extra]
        assert model_files.wanted(names) == sorted([*tokenizer, *weights])
