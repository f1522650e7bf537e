"""Evaluations that need what this machine lacks: unlearning and ravel say all of it at once, and call SAE-Bench."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
from small_lab import D_SAE, HOOK, K

from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import absorption, ravel, unlearning


def place(folder: Path, model: str, **changes: Any) -> EvalTarget:
    known = {"hook_name": HOOK, "world": False, "config": {"hidden_size": 8}, "tokenizer": lambda: None}
    return EvalTarget(model, folder=folder, **(known | changes))


def test_unlearning_says_all_that_it_lacks(tmp_path: Path):
    why = [lack.reason for lack in unlearning.unmet_requirements(place(tmp_path, "tiny-lm"))]
    assert "gemma-2-2b-it and gemma-2-9b-it" in why[0]
    assert why[1] == "the corpus to forget is not there"
    missing = ["wikitext (wikitext-2-raw-v1)", "cais/wmdp (wmdp-bio)", "cais/mmlu (human_aging)"]
    assert [any(name in said for said in why[2:]) for name in missing] == [True] * 3
    assert len(why) == 2 + len(unlearning.DATASETS)
    gemma = unlearning.unmet_requirements(place(tmp_path, "google/gemma-2-2b-it"))
    assert len(gemma) == 1 + len(unlearning.DATASETS)
    assert str(unlearning.site_packages() / unlearning.CORPUS) in gemma[0].remedy
    assert "not stored" in unlearning.unmet_requirements(place(tmp_path, "gemma-2-2b-it", config={}))[0].reason


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['{"text": "one"}', '{"text": "two"}'], ""),
        (['{"text": "one"}', '{"text": "tw'], "is empty, cut short or has no text"),
        ([], "is empty, cut short or has no text"),
        (['{"title": "one"}'], "is empty, cut short or has no text"),
    ],
    ids=["whole", "cut short", "empty", "of something else"],
)
def test_the_corpus_to_forget_is_looked_into(tmp_path: Path, lines: list[str], why: str):
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert unlearning.corpus_problem(tmp_path / "corpus.jsonl") == why


def test_ravel_says_all_that_it_lacks(tmp_path: Path, cache_dir: Path):
    why = [
        lack.reason for lack in ravel.unmet_requirements(place(tmp_path, "tiny-lm", hook_name="blocks.1.mlp.hook_post"))
    ]
    assert ["gemma-2-2b and pythia" in why[0], "mlp.hook_post" in why[1], "8 of its 8 files" in why[2]] == [True] * 3
    (cache_dir / "ravel_prompts").mkdir()
    for file in ravel.FILES:
        (cache_dir / "ravel_prompts" / file).write_text(json.dumps({}))
    assert ravel.unmet_requirements(place(tmp_path, "EleutherAI/pythia-160m-deduped")) == []


@pytest.mark.parametrize(("family", "model"), [(unlearning, "gemma-2-2b-it"), (ravel, "pythia-160m-deduped")])
def test_sae_benchs_own_reason_comes_out(evaluator: Evaluator, tmp_path: Path, family: Any, model: str):
    """The call gets as far as the model, which is not here."""
    (tmp_path / "out").mkdir()
    here: Any = types.SimpleNamespace(model_name=model, folder=tmp_path)
    with pytest.raises(OSError, match="offline"):
        family.score(here, evaluator.random_sae(D_SAE, K), tmp_path / "out", "sae")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("family", "why"),
    [
        (unlearning, "both tuned on instructions"),
        (ravel, "pythia-160m-deduped, and"),
        (absorption, "its context 64"),
    ],
)
def test_without_a_preflight_nothing_is_started_either(evaluator: Evaluator, tmp_path: Path, family: Any, why: str):
    with pytest.raises(EvaluationError, match=why):
        family.score(evaluator, evaluator.random_sae(D_SAE, K), tmp_path, "sae")
    assert not list(tmp_path.iterdir())
