"""SAE-Bench `unlearning`: how much of WMDP's biology, and of nothing else, is unlearnt by clamping latents.

It was run on small made data and a small stand-in for gemma-2-2b-it alone: the model itself needs a GPU, and the corpus
is given on request. The questions are put to the model that is tuned on instructions, also where the SAE is the base
model's. This module checks all that SAE-Bench needs at once (it finds one after the other, some after hours), and makes
the plain call into it. The family `forgetting` measures the same on any model.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from agent.lab import cache, models
from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "how much of hazardous biology, and of nothing else, is unlearnt by clamping latents"

SEED, MEGABYTES = 42, 1000
MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")  # that SAE-Bench has prompts for
OWNER = "google"  # on the hub
CORPUS = Path(
    "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"
)  # where SAE-Bench looks, from its working directory
REQUEST = "https://huggingface.co/datasets/cais/wmdp-corpora"
DATASETS = (
    ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    ("cais/wmdp", "wmdp-bio"),
    ("cais/mmlu", "high_school_us_history"),
    ("cais/mmlu", "college_computer_science"),
    ("cais/mmlu", "high_school_geography"),
    ("cais/mmlu", "human_aging"),
)


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    missing = []
    if reason := _unknown_model(target.model):
        missing.append(UnmetRequirement(reason, f"use gemma-2-2b or {MODELS[0]}, or the family forgetting"))
    else:
        missing += requirements.check_model_files(target)
        missing += _check_evaluated(target.model)
    corpus = corpus_path()
    if problem := corpus_problem(corpus):
        missing.append(
            UnmetRequirement(f"the corpus to forget {problem}", f"ask for it ({REQUEST}) and put it at {corpus}")
        )
    for dataset, part in DATASETS:
        if problem := _dataset_problem(dataset, part):
            fetch = f'python -c "from datasets import load_dataset as get; get({dataset!r}, {part!r})"'
            missing.append(
                UnmetRequirement(f"{dataset} ({part}) is not stored on this machine: {problem}", f"run {fetch}")
            )
    return missing + requirements.check_disk(target, MEGABYTES)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Call SAE-Bench. Its intermediate files are made anew for every SAE, so that a killed run leaves nothing behind.

    Raises EvaluationError, or whatever SAE-Bench raises.
    """
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import feature_activation, metrics
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE, LLM_NAME_TO_DTYPE

    if reason := _unknown_model(evaluator.model_name):
        raise EvaluationError(reason)
    name_of_model = evaluated_model(evaluator.model_name)
    same = name_of_model == evaluator.model_name
    evaluated: Any = evaluator.model if same else models.load(name_of_model)
    model, sae = name_of_model.rpartition("/")[2], patching.UnitNorm(sae)
    config = UnlearningEvalConfig(
        model_name=model,
        random_seed=SEED,
        llm_batch_size=LLM_NAME_TO_BATCH_SIZE[model]
        // 8,  # as SAE-Bench's own main does: the texts are 8 times as long
        llm_dtype=LLM_NAME_TO_DTYPE[model],
    )
    with tempfile.TemporaryDirectory(dir=evaluator.folder) as scratch:
        corpus = Path(scratch, CORPUS)
        corpus.parent.mkdir(parents=True)
        corpus.symlink_to(corpus_path())
        with (
            patching.isolated_sae_bench(
                main, Path(scratch), SEED, HookedTransformer=patching.PreloadedModel(evaluated)
            ),
            patch.object(feature_activation, "load_dataset", _load_dataset),
            patch.object(metrics, "HookedTransformer", type(evaluated)),  # by which it knows a model with hooks
            patch.object(evaluated.cfg, "model_name", model),  # by which it knows its prompts
        ):
            saes, device = [(name, sae)], str(sae.device)
            main.run_eval(config, saes, device, str(out.absolute()), artifacts_path=scratch)  # type: ignore[arg-type]
    return FamilyScores(
        metrics=patching.metrics(patching.read_answer(out, name)),
        remark=f"measured on {model}; run in this project on small made data alone",
    )


def _load_dataset(name: str, *arguments: Any, **options: Any) -> Any:
    """Load a dataset. SAE-Bench names one without its owner, which the hub's library no longer finds."""
    from datasets import load_dataset

    owned = {dataset.rpartition("/")[2]: dataset for dataset, _ in DATASETS}
    return load_dataset(owned.get(name, name), *arguments, **options)


def evaluated_model(model: str) -> str:
    """Return the model that is asked for a model's SAE: itself, or its version that is tuned on instructions."""
    return model if model.endswith("-it") else f"{OWNER}/{model.rpartition('/')[2]}-it"


def _unknown_model(model: str) -> str:
    if evaluated_model(model).rpartition("/")[2] in MODELS:
        return ""
    name = model.rpartition("/")[2]
    return f"SAE-Bench has prompts for {' and '.join(MODELS)}, both tuned on instructions, not for {name}"


def _check_evaluated(model: str) -> list[UnmetRequirement]:
    evaluated = evaluated_model(model)
    if evaluated == model or models.find_directory(evaluated):
        return []
    reason = f"{evaluated}, which is asked the questions, is not stored on this machine"
    return [UnmetRequirement(reason, f"run {sys.executable} -P -m agent.lab.hub {evaluated}")]


def corpus_problem(corpus: Path) -> str:
    """Return what is wrong with the corpus, or "". The last line is read too: a download may be cut short."""
    try:
        lines = corpus.read_bytes().splitlines()
        return "" if all(isinstance(json.loads(line)["text"], str) for line in (lines[0], lines[-1])) else "has no text"
    except FileNotFoundError:
        return "is not there"
    except (IndexError, KeyError, TypeError, ValueError):
        return "is empty, cut short or has no text"


def corpus_path() -> Path:
    """Return the place of the corpus to forget."""
    return cache.root() / "unlearning" / CORPUS.name


def _dataset_problem(dataset: str, part: str) -> str:
    """Return why a dataset cannot be loaded from the disk (the lab keeps its library offline), or ""."""
    from datasets import load_dataset_builder

    try:
        load_dataset_builder(dataset, part)
    except (OSError, ValueError) as error:  # not stored, or without this part
        return str(error).splitlines()[0][:120]
    return ""
