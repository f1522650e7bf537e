"""SAE-Bench `unlearning`: what is lost of WMDP's biology, and of nothing else, by clamping the latents for it.

This path has not been run: it takes gemma-2-2b-it or gemma-2-9b-it, a GPU, and a corpus that is given on request. Here
is what SAE-Bench needs, known at once (it finds one after the other, some after hours), and the plain call into it.
The family `forgetting` asks the same question of any model.
"""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "what is unlearnt of hazardous biology, and of nothing else, by clamping the latents that stand for it"

SEED, MEGABYTES = 42, 1000
MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")  # whose prompts it knows
CORPUS = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")  # where it looks, from its working directory
REQUEST = "https://huggingface.co/datasets/cais/wmdp-corpora"
DATASETS = (
    ("wikitext", "wikitext-2-raw-v1"),
    ("cais/wmdp", "wmdp-bio"),
    ("cais/mmlu", "high_school_us_history"),
    ("cais/mmlu", "college_computer_science"),
    ("cais/mmlu", "high_school_geography"),
    ("cais/mmlu", "human_aging"),
)


def unmet_requirements(place: EvalTarget) -> list[UnmetRequirement]:
    """All that is missing."""
    missing = []
    if why := _unknown_model(place.model):
        missing.append(UnmetRequirement(why, f"use {MODELS[0]}, or the family forgetting"))
    else:
        missing += requirements.check_model_files(place)
    corpus = site_packages() / CORPUS
    if said := corpus_problem(corpus):
        missing.append(
            UnmetRequirement(f"the corpus to forget {said}", f"ask for it ({REQUEST}) and put it at {corpus}")
        )
    for dataset, part in DATASETS:
        if said := _dataset_problem(dataset, part):
            fetch = f'python -c "from datasets import load_dataset as get; get({dataset!r}, {part!r})"'
            missing.append(
                UnmetRequirement(f"{dataset} ({part}) is not stored on this machine: {said}", f"run {fetch}")
            )
    return missing + requirements.check_disk(place, MEGABYTES)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """The plain call into SAE-Bench. What it makes on the way is made again for each SAE, so a kill leaves nothing.

    Raises EvaluationError, or whatever SAE-Bench raises.
    """
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE, LLM_NAME_TO_DTYPE

    if why := _unknown_model(evaluator.model_name):
        raise EvaluationError(why)
    model, sae = evaluator.model_name.rpartition("/")[2], patching.UnitNorm(sae)
    config = UnlearningEvalConfig(
        model_name=model,
        random_seed=SEED,
        llm_batch_size=LLM_NAME_TO_BATCH_SIZE[model] // 8,  # its own main divides: the texts are 8 times as long
        llm_dtype=LLM_NAME_TO_DTYPE[model],
    )
    with (
        tempfile.TemporaryDirectory(dir=evaluator.folder) as scratch,
        patching.isolated_sae_bench(main, site_packages(), SEED),
    ):
        saes, device = [(name, sae)], str(sae.device)
        main.run_eval(config, saes, device, str(out.absolute()), artifacts_path=scratch)  # type: ignore[arg-type]
    return FamilyScores(
        metrics=patching.metrics(patching.answer(out, name)), remark="this path was never run in this project"
    )


def _unknown_model(model: str) -> str:
    if (name := model.rpartition("/")[2]) in MODELS:
        return ""
    return f"SAE-Bench has the prompts of {' and '.join(MODELS)}, both tuned on instructions, and not of {name}"


def corpus_problem(corpus: Path) -> str:
    """What is wrong with the corpus: its last line too has to be a text, or it was cut short."""
    try:
        lines = corpus.read_bytes().splitlines()
        return "" if all(isinstance(json.loads(line)["text"], str) for line in (lines[0], lines[-1])) else "has no text"
    except FileNotFoundError:
        return "is not there"
    except (IndexError, KeyError, TypeError, ValueError):
        return "is empty, cut short or has no text"


def site_packages() -> Path:
    """The folder that SAE-Bench lies in."""
    spec = find_spec("sae_bench")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).parent


def _dataset_problem(dataset: str, part: str) -> str:
    """Why a dataset cannot be loaded; its own library is asked, which the lab keeps to what is on the disk."""
    from datasets import load_dataset_builder

    try:
        load_dataset_builder(dataset, part)
    except (OSError, ValueError) as error:  # ConnectionError, FileNotFoundError, and one for a part that is not there
        return str(error).splitlines()[0][:120]
    return ""
