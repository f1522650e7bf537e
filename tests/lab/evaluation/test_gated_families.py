"""unlearning, which cannot run on a small machine: it reports all that is missing.

tests/test_hub_study.py runs unlearning on small made data.
"""

from pathlib import Path
from typing import Any

import pytest
from small_lab import D_SAE, HOOK, K

from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import absorption, unlearning


def target(folder: Path, model: str, **changes: Any) -> EvalTarget:
    known = {"hook_name": HOOK, "world": False, "config": {"hidden_size": 8}, "tokenizer": lambda: None}
    return EvalTarget(model, folder=folder, **(known | changes))


def test_unlearning_reports_all_that_is_missing(tmp_path: Path):
    reasons = [unmet.reason for unmet in unlearning.unmet_requirements(target(tmp_path, "tiny-lm"))]
    assert "gemma-2-2b-it and gemma-2-9b-it" in reasons[0]
    assert reasons[1] == "the corpus to forget is not there"
    missing = ["wikitext (wikitext-2-raw-v1)", "cais/wmdp (wmdp-bio)", "cais/mmlu (human_aging)"]
    assert [any(name in reason for reason in reasons[2:]) for name in missing] == [True] * 3
    assert len(reasons) == 2 + len(unlearning.DATASETS)
    gemma = unlearning.unmet_requirements(target(tmp_path, "google/gemma-2-2b-it"))
    assert len(gemma) == 1 + len(unlearning.DATASETS)
    assert str(unlearning.corpus_path()) in gemma[0].remedy
    assert "not stored" in unlearning.unmet_requirements(target(tmp_path, "gemma-2-2b-it", config={}))[0].reason


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (['{"text": "one"}', '{"text": "two"}'], ""),
        (['{"text": "one"}', '{"text": "tw'], "is empty, cut short or has no text"),
        ([], "is empty, cut short or has no text"),
        (['{"title": "one"}'], "is empty, cut short or has no text"),
    ],
    ids=["whole", "cut short", "empty", "of something else"],
)
def test_the_corpus_to_forget_is_checked(tmp_path: Path, lines: list[str], problem: str):
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert unlearning.corpus_problem(tmp_path / "corpus.jsonl") == problem


def test_unlearning_asks_the_model_that_is_tuned_on_instructions(tmp_path: Path):
    assert unlearning.evaluated_model("gemma-2-2b") == "google/gemma-2-2b-it"
    assert unlearning.evaluated_model("google/gemma-2-9b") == "google/gemma-2-9b-it"
    assert unlearning.evaluated_model("gemma-2-2b-it") == "gemma-2-2b-it"
    (absent, *_) = unlearning.unmet_requirements(target(tmp_path, "google/gemma-2-2b"))
    assert "google/gemma-2-2b-it, which is asked the questions, is not stored" in absent.reason
    assert absent.remedy.endswith("-P -m agent.lab.hub google/gemma-2-2b-it")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (unlearning, "both tuned on instructions"),
        (absorption, "its context 64"),
    ],
)
def test_scoring_checks_the_requirements_itself(evaluator: Evaluator, tmp_path: Path, family: Any, reason: str):
    with pytest.raises(EvaluationError, match=reason):
        family.score(evaluator, evaluator.random_sae(D_SAE, K), tmp_path, "sae")
    assert not list(tmp_path.iterdir())
