"""SAE-Bench `sparse_probing_sae_probes`; bench/probing.py scores it."""

from agent.lab.evaluation import requirements
from agent.lab.evaluation.bench import probing
from agent.lab.evaluation.catalogue import EvalTarget, UnmetRequirement

SUMMARY = "whether a few latents tell classes of short texts apart, as sae-probes has it"

PROMPTS = 11_124  # of the datasets together


def unmet_requirements(target: EvalTarget) -> list[UnmetRequirement]:
    prepared = all((target.folder / "probing" / f"{dataset}.made").exists() for dataset in probing.DATASETS)
    width = 4 * requirements.residual_width(target.config)  # of an MLP, the widest hook
    return requirements.check_language_model(target, 1 if prepared else 4 * PROMPTS * width / 1e6)
