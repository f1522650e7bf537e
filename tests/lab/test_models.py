"""Models by name: those that load, and the messages about those that do not."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch
from small_lab import CONTEXT, D_MODEL, HOOK, one_line, run
from transformers import AutoModelForCausalLM

from agent.lab import models
from agent.lab.errors import UserError

WITHOUT_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is here")


@pytest.fixture(scope="module")
def loaded(small_model: Path):
    return models.load(str(small_model))


def test_a_path_with_bert_llama_t5_and_spaces_loads_as_what_it_is(small_model: Path, loaded):
    assert all(word in str(small_model) for word in ("bert", "llama", "t5", " "))
    assert loaded.cfg.architecture == "GPTNeoXForCausalLM"
    assert (loaded.cfg.d_model, loaded.cfg.n_ctx, models.context_size(loaded)) == (D_MODEL, CONTEXT, CONTEXT)


def test_it_gives_the_logits_that_transformers_gives(small_model: Path, loaded):
    ids = torch.randint(1, 500, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(loaded(ids, prepend_bos=False), expected, rtol=1e-4, atol=1e-4)


def test_a_model_is_the_same_whatever_its_folder_is_called(small_model: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(small_model)
    assert models.identity(str(tmp_path / "link")) == models.identity(str(small_model))


def test_the_embedded_model_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    directory = models.local_directory("tiny-lm")
    assert directory
    assert (directory / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "said"), [("tiny_lm", "tiny-lm"), ("gpt3", "gpt2"), ("pythia-70m-dedup", "pythia-70m-deduped")]
)
def test_an_unknown_model_is_answered_with_the_nearest(name: str, said: str):
    with pytest.raises(UserError, match=rf"unknown model '{name}': did you mean .*{said}"):
        models.load(name)


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.slow
def test_a_hub_model_without_network_fails_at_once_in_one_line(tmp_path: Path):
    started = time.monotonic()
    ended = run(
        *("-P", "-m", "agent.lab.prepare", "--model", "pythia-70m-deduped", "--hook_name", HOOK, "--tokens", "1000"),
        HF_HOME=str(tmp_path),
        HF_ENDPOINT="http://127.0.0.1:9",
        http_proxy="",
    )
    assert time.monotonic() - started < 30  # of which importing TransformerLens takes most; retries would take 100 s
    assert ended.returncode == 2
    line = one_line(ended.stderr)
    assert "pythia-70m-deduped is not stored on this machine and the hub cannot be reached" in line
    assert "tiny-lm" in line


def test_a_directory_that_is_no_model_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        models.load(str(tmp_path))


def test_a_broken_model_is_named(small_model: Path, tmp_path: Path):
    for path in small_model.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:1000] if path.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match="cannot be loaded as a model") as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("blocks.1.hook_resid_pots", r"no hook .*did you mean .*blocks\.1\.hook_resid_post"),
        ("blocks.7.hook_resid_post", r"no hook .*did you mean .*hook_resid_post"),
        ("hook_embed", "use one like blocks.1.hook_resid_post"),
        ("blocks.1.attn.hook_pattern", "has no per-token activation vector"),
    ],
)
def test_a_hook_that_cannot_be_used_is_answered_with_one_that_can(loaded, hook: str, said: str):
    with pytest.raises(UserError, match=said):
        models.check_hook(loaded, hook)


@pytest.mark.parametrize("hook", ["ln_final.hook_normalized", "blocks.01.hook_mlp_out", "blocks.1.hook_mlp_out\n"])
def test_a_hook_without_a_layer_or_in_another_spelling_is_named(hook: str):
    with pytest.raises(UserError, match=f"{re.escape(repr(hook))} has no per-token activation vector"):
        models.layer_of(hook)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("tpu", "unknown device 'tpu'"),
        ("cuda:99", "no device cuda:99"),
        pytest.param("mps", "no device mps here: use --device cpu", marks=WITHOUT_MPS),
    ],
)
def test_a_device_that_is_not_here_is_named(device: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_DEVICE", device)
    with pytest.raises(UserError, match=said):
        models.device_config()


def test_a_dtype_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_DTYPE", "float16")
    with pytest.raises(UserError, match="unknown dtype 'float16': use float32 or bfloat16"):
        models.device_config()


def test_importing_the_lab_leaves_transformer_lens_alone():
    """Its import takes four seconds, which a run on stored activations need not pay."""
    code = "import sys, agent.lab.activations, agent.lab.training; print('transformer_lens' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False", sys.executable
