"""What the cache's names follow from: windows of text of another length, and a model that is spelled otherwise."""

from pathlib import Path

import pytest
from small_lab import CONTEXT, HOOK

from agent.lab import activations, models
from agent.lab.activations import HarvestKey
from agent.lab.defaults import CONTEXT_VARIABLE
from agent.lab.errors import UserError
from agent.lab.evaluation.evaluator import artefact_folder

ROWS, SHORT = 2000, 32


def names(model: str = "tiny-lm", hook: str = "blocks.1.hook_resid_post") -> tuple[str, str]:
    """Return the names of a harvest and of what evaluations keep."""
    return HarvestKey(model, "0123", hook, ROWS).folder().name, artefact_folder(model, "0123", hook).name


def test_windows_of_another_length_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_AGENT_DEVICE", "cpu")
    usual, world = names(), names("synth2k", "activations")
    assert usual[1] == "tiny-lm-0123-blocks.1.hook-resid-post-cpu-v1"
    monkeypatch.setenv(CONTEXT_VARIABLE, "128")
    assert names() == usual
    monkeypatch.setenv(CONTEXT_VARIABLE, "256")
    assert not set(names()) & set(usual)
    assert names("synth2k", "activations") == world  # a world has no text


def test_text_is_cut_into_windows_of_the_context(small_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = models.load(str(small_model))
    assert activations.training_windows(model, str(small_model), "", ROWS).shape[1] == CONTEXT  # it has no 128
    monkeypatch.setenv(CONTEXT_VARIABLE, str(SHORT))
    assert activations.training_windows(model, str(small_model), "", ROWS).shape[1] == SHORT
    _, manifest = activations.ensure_harvest(str(small_model), HOOK, ROWS)
    assert manifest.rows == ROWS
    monkeypatch.setenv(CONTEXT_VARIABLE, str(CONTEXT + 1))
    with pytest.raises(UserError, match=f"--context {CONTEXT + 1}: the model has {CONTEXT} positions"):
        models.context_size(model)


@pytest.mark.parametrize("wrong", ["15", "-1", "many"])
def test_a_context_that_is_none_is_named(wrong: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CONTEXT_VARIABLE, wrong)
    with pytest.raises(UserError, match=f"SAE_AGENT_CONTEXT is '{wrong}': give a number of tokens, at least 16"):
        models.most_context()


def test_a_model_shares_what_is_cached_however_it_is_spelled(small_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(small_model)
    assert names(".") == names(str(small_model)) == names(f"../{small_model.name}")
    assert names("gpt2-small") == names("openai-community/gpt2") == names("gpt2")
    assert models.canonical_name("gemma-2-2b") == models.canonical_name("google/gemma-2-2b") == "google/gemma-2-2b"
    assert models.canonical_name("/home/me/my llama") == "/home/me/my llama"  # which a confined run does not see
