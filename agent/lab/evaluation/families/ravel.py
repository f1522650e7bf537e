"""SAE-Bench `ravel`: whether latents change one attribute of a city or a laureate and leave the others as they are.

This path has not been run: SAE-Bench supports two models by name, gemma-2-2b and pythia-160m-deduped, and takes hours
without a GPU. This module checks all that it needs at once, and makes the plain call into it.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab import cache
from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import patching
from agent.lab.evaluation.bench.core import EvaluationError
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement
from agent.lab.results import FamilyScores

if TYPE_CHECKING:
    from agent.lab.evaluation.evaluator import Evaluator
    from agent.lab.evaluation.sae_adapter import BenchSAE

SUMMARY = "whether latents change one attribute of an entity and leave its others alone"

SEED, MEGABYTES = 42, 2000
MODELS = ("gemma-2-2b", "pythia-160m-deduped")  # its LLM_NAME_MAP
REPOSITORY = "adamkarvonen/ravel_prompts"
FILES = tuple(
    f"ravel_{entity}_{part}.json"
    for entity in ("city", "nobel_prize_winner")
    for part in ("attribute_to_prompts", "prompt_to_split", "entity_attributes", "entity_to_split")
)


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    missing = []
    if reason := _unknown_model(target.model):
        missing.append(UnmetRequirement(reason, f"use {MODELS[1]}"))
    else:
        missing += requirements.check_model_files(target)
    if not target.hook_name.endswith("hook_resid_post"):
        reason = f"SAE-Bench changes the residual stream after a layer, not {target.hook_name}"
        missing.append(UnmetRequirement(reason, "use a hook like blocks.1.hook_resid_post"))
    if absent := [file for file in FILES if not (prompts_folder() / file).is_file()]:
        arguments = f"{REPOSITORY!r}, repo_type='dataset', local_dir={str(prompts_folder())!r}"
        fetch = f'HF_HUB_OFFLINE=0 python -c "from huggingface_hub import snapshot_download as get; get({arguments})"'
        missing.append(
            UnmetRequirement(
                f"{len(absent)} of its {len(FILES)} prompt files are not in {prompts_folder()}", f"run {fetch}"
            )
        )
    return missing + requirements.check_disk(target, MEGABYTES)


def score(evaluator: "Evaluator", sae: "BenchSAE", out: Path, name: str) -> FamilyScores:
    """Call SAE-Bench. Its intermediate files are made anew for every SAE, so that a killed run leaves nothing behind.

    Raises EvaluationError, or whatever SAE-Bench raises.
    """
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE, LLM_NAME_TO_DTYPE

    if reason := _unknown_model(evaluator.model_name):
        raise EvaluationError(reason)
    model, sae = evaluator.model_name.rpartition("/")[2], patching.UnitNorm(sae)
    with tempfile.TemporaryDirectory(dir=evaluator.folder) as scratch:
        Path(scratch, "base").symlink_to(prompts_folder(), target_is_directory=True)
        config = RAVELEvalConfig(
            model_name=model,
            random_seed=SEED,
            llm_batch_size=LLM_NAME_TO_BATCH_SIZE[model] // 4,  # as SAE-Bench's own main does: there are gradients
            llm_dtype=LLM_NAME_TO_DTYPE[model],
            artifact_dir=scratch,
        )
        with patching.isolated_sae_bench(main, Path(scratch), SEED):
            saes, device = [(name, sae)], str(sae.device)
            main.run_eval(config, saes, device, str(out.absolute()), artifacts_path=scratch)  # type: ignore[arg-type]
    return FamilyScores(
        metrics=patching.metrics(patching.read_answer(out, name)), remark="this path was never run in this project"
    )


def _unknown_model(model: str) -> str:
    name = model.rpartition("/")[2]
    return "" if name in MODELS else f"SAE-Bench supports {' and '.join(MODELS)}, not {name}"


def prompts_folder() -> Path:
    """Return the folder of the prompt files."""
    return cache.root() / "ravel_prompts"
